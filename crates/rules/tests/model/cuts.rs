//! Each replica cuts batches into transactions as it likes, and the audit compares what each
//! batch alone has changed: so that must not show the cuts, late leaders and deletes included.

use everwire_core::command::Batch;
use everwire_rules::Txn;
use proptest::prelude::*;

use crate::intent::{Intent, sequences};
use crate::random::{Play, Sent};
use crate::world::World;

/// What each batch changed, with a new transaction where a cut says so.
fn changes(batches: &[Batch], cuts: &[bool]) -> (Vec<String>, World) {
    let mut world = World::default();
    let mut changes = Vec::new();
    let mut rest = batches;
    let mut cuts = cuts.iter().cycle().copied();
    while !rest.is_empty() {
        let joined = (1..rest.len()).take_while(|_| !cuts.next().unwrap_or(true));
        let (transaction, after) = rest.split_at(joined.count() + 1);
        rest = after;
        let mut txn = Txn::new(&world, world.state);
        for batch in transaction {
            txn.apply(batch.clone()).expect("the world can be read");
            changes.push(format!("{:?}", txn.last_batch()));
        }
        let finished = txn.finish();
        world.keep(finished);
    }
    (changes, world)
}

/// What a sequence sent, and what a leader asked for once more when things have moved on.
fn sent(sequence: &[(Intent, u8)], late: &[usize]) -> Vec<Batch> {
    let mut play = Play::default();
    for (intent, session) in sequence {
        play.play(intent, *session);
    }
    let now = play.sent.last().map_or(0, |(time, _)| *time);
    let mut batches: Vec<_> = play.sent.iter().map(|(time, it)| it.batch(*time)).collect();
    let controls = play.sent.iter().enumerate();
    let controls = controls.filter(|(_, (_, it))| matches!(it, Sent::Control(_)));
    for ((place, (_, it)), late) in controls.zip(late.iter().cycle()) {
        let place = (place + 1 + late).min(batches.len());
        batches.insert(place, it.batch(now));
    }
    batches
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_each_batch_changes_does_not_show_the_cuts(
        sequence in sequences(100),
        late in prop::collection::vec(0..20_usize, 1..20),
        cuts in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let batches = sent(&sequence, &late);
        let (alone, world) = changes(&batches, &[true]);
        let (cut, other) = changes(&batches, &cuts);
        prop_assert_eq!(alone, cut);
        prop_assert_eq!(world, other);
    }
}
