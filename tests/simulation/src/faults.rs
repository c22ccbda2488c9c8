//! What befalls the world: a plan that the seed makes, and the hand that carries it out.

use crate::cluster::{EDGE, NODES};
use crate::dice::Dice;

/// One blow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blow {
    /// A machine loses power, and comes back so many milliseconds later.
    Kill(Victim, u64),
    /// Nothing lands any more that the first sends to the second.
    Cut(&'static str, &'static str),
    /// The same both ways.
    Sever(&'static str, &'static str),
    /// All cuts are healed.
    Heal,
    /// From now on the drives only say that they sync; see `SimDisk::lie`.
    Lie,
}

/// Whom a blow hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Victim {
    /// This machine.
    Machine(&'static str),
    /// Whoever leads the session's shard.
    Leader,
    /// All nodes at once.
    Everybody,
}

/// What the seed plans for `length` milliseconds, by its time. Cuts are healed at the end.
pub fn plan(dice: &Dice, length: u64) -> Vec<(u64, Blow)> {
    let mut plan = Vec::new();
    let mut at = dice.pick(200..1_500);
    // Whatever else happens: once the leader dies.
    let leader_at = dice.pick(500..length);
    plan.push((leader_at, Blow::Kill(Victim::Leader, dice.pick(300..3_000))));
    while at < length {
        let down = dice.pick(50..4_000);
        match dice.pick(0..100) {
            0..=29 => plan.push((at, Blow::Kill(Victim::Machine(node(dice)), down))),
            30..=39 => plan.push((at, Blow::Kill(Victim::Leader, down))),
            40..=44 => plan.push((at, Blow::Kill(Victim::Everybody, down))),
            45..=54 => plan.push((at, Blow::Kill(Victim::Machine(EDGE), down))),
            55..=74 => {
                let (from, to) = pair(dice);
                plan.push((at, Blow::Cut(from, to)));
                plan.push((at + down, Blow::Heal));
            },
            _ => {
                let (from, to) = pair(dice);
                plan.push((at, Blow::Sever(from, to)));
                plan.push((at + down, Blow::Heal));
            },
        }
        at += dice.pick(300..3_500);
    }
    plan.push((length, Blow::Heal));
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn node(dice: &Dice) -> &'static str {
    let number = usize::try_from(dice.pick(0..3)).unwrap_or(0);
    NODES.get(number).copied().unwrap_or("n1")
}

/// Two machines that talk to each other: two nodes, or the edge and a node.
fn pair(dice: &Dice) -> (&'static str, &'static str) {
    let first = if dice.chance(25) { EDGE } else { node(dice) };
    loop {
        let second = node(dice);
        if second != first {
            return (first, second);
        }
    }
}
