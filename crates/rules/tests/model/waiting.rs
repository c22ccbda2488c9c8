//! Runs that wait and approvals, as random people, agents and leaders use them: what must hold
//! after each step, and on every replica.

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::command::{Batch, Control, Fire, SignalOutcome};
use everwire_core::event::{ApprovalOutcome, Body, SuspendReason, Verdict};
use everwire_core::row::{Row, RowKey, RunRow, RunState, SessionKey, TimerKind};
use everwire_core::{
    Answer, ApprovalId, Cancel, Code, Command, Event, Op, Outcome, Request, Signal, Target,
    Timestamp,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::{
    World, app, batch, cancel_of, claim, command, controlling, expire, message_start, name,
    publish, start,
};

fn signal(by: &str, signal: Signal, key: &str) -> Command {
    let body_hash = format!("{signal:?}").bytes().fold(7, |hash: u128, byte| {
        hash.wrapping_mul(31).wrapping_add(byte.into())
    });
    let key = name(key);
    command(
        by,
        Op::Signal {
            signal,
            key,
            body_hash,
        },
    )
}

fn request(approval: &str, within_ms: u32, on_expiry: Verdict) -> Body {
    Body::ApprovalRequested(Request {
        approval: name(approval),
        action: "Do it".to_owned(),
        action_hash: name("h"),
        approvers: Vec::new(),
        within_ms,
        deadline: Timestamp(0),
        on_expiry,
        data: None,
    })
}

fn answer(approval: &str, verdict: Verdict) -> Signal {
    Signal::Answer(Answer {
        approval: name(approval),
        verdict,
        action_hash: name("h"),
        note: None,
    })
}

/// A timer is proposed late, and an answer comes first: it is too late all the same.
#[test]
fn an_answer_behind_the_deadline_commits_that_there_was_none() {
    let mut world = World::default();
    world.taken(start("bot", "r1", None));
    let waits = Body::RunSuspended {
        reason: SuspendReason::Approval,
        note: None,
    };
    let bodies = vec![request("a1", 5_000, Verdict::Approve), waits];
    world.taken(publish("bot", "r1", 1, 1, bodies));
    let late = signal("ann", answer("a1", Verdict::Deny), "k1");
    let Outcome::Refused(refusal) = world.at(5_000, late) else {
        panic!("it was in time")
    };
    assert_eq!(refusal.code, Code::Expired);
    let [.., expired, resumed] = world.log() else {
        panic!("nothing was committed")
    };
    assert_eq!(refusal.details.offset, Some(expired.offset));
    let Body::ApprovalResolved {
        outcome, on_expiry, ..
    } = &expired.body
    else {
        panic!("{expired:?}")
    };
    let told = (*outcome, *on_expiry, expired.author.participant.as_str());
    let silence = (ApprovalOutcome::Expired, Some(Verdict::Approve), "everwire");
    assert_eq!(told, silence);
    assert_eq!(resumed.body, Body::RunResumed);
    check(&world);
    let again = signal("ann", answer("a1", Verdict::Deny), "k1");
    assert_eq!(world.refused(again).code, Code::Expired);
}

/// What somebody does.
#[derive(Clone, Debug)]
enum Deed {
    Start(u8),
    Claim(u8, bool),
    Say(u8, Vec<Word>),
    Pause(u8, bool),
    Resume(u8, bool),
    Answer(u8, bool, bool),
    Stop(u8),
    StopAll,
    /// So many seconds go by, and the leader fires what is due, or forgets to.
    Wait(u8, bool),
    /// The leader thinks that a writer was silent for too long.
    Expire(u8),
}

#[derive(Clone, Copy, Debug)]
enum Word {
    App,
    Message(u8),
    Suspend(SuspendReason),
    Resume,
    Request(u8, u8),
    Withdraw(u8),
    Complete,
}

fn word() -> impl Strategy<Value = Word> {
    use SuspendReason::{Approval, Auth, Input};
    prop_oneof![
        3 => Just(Word::App),
        1 => (0..3_u8).prop_map(Word::Message),
        2 => prop::sample::select(vec![Approval, Input, Auth]).prop_map(Word::Suspend),
        2 => Just(Word::Resume),
        3 => (0..6_u8, 1..9_u8).prop_map(|(id, within)| Word::Request(id, within)),
        1 => (0..6_u8).prop_map(Word::Withdraw),
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let run = 0..3_u8;
    let words = vec(word(), 1..4);
    prop_oneof![
        2 => run.clone().prop_map(Deed::Start),
        3 => (run.clone(), any::<bool>()).prop_map(|(run, own)| Deed::Claim(run, own)),
        8 => (run.clone(), words).prop_map(|(run, words)| Deed::Say(run, words)),
        1 => run.clone().prop_map(|run| Deed::Say(run, vec![Word::Complete])),
        2 => (run.clone(), any::<bool>()).prop_map(|(run, all)| Deed::Pause(run, all)),
        3 => (run.clone(), any::<bool>()).prop_map(|(run, all)| Deed::Resume(run, all)),
        5 => (0..6_u8, any::<bool>(), any::<bool>())
            .prop_map(|(id, yes, ann)| Deed::Answer(id, yes, ann)),
        1 => run.clone().prop_map(Deed::Stop),
        1 => Just(Deed::StopAll),
        3 => (1..6_u8, any::<bool>()).prop_map(|(wait, fires)| Deed::Wait(wait, fires)),
        1 => run.prop_map(Deed::Expire),
    ]
}

/// The world, what was done to it, and what time it is.
#[derive(Default)]
struct Play {
    world: World,
    done: Vec<Batch>,
    now: u64,
    keys: u32,
}

impl Play {
    fn apply(&mut self, batch: Batch) -> Option<Outcome> {
        self.done.push(batch.clone());
        self.world.apply(vec![batch]).into_iter().next()
    }

    fn send(&mut self, command: Command) -> Outcome {
        let sent = batch(self.now, vec![command]);
        self.apply(sent).expect("one command, one outcome")
    }

    fn press(&mut self, by: &str, pressed: Signal) -> Outcome {
        self.keys += 1;
        let key = format!("k{}", self.keys);
        self.send(signal(by, pressed, &key))
    }

    fn session(&self) -> Option<SessionKey> {
        let mut keys = self.world.rows.keys();
        keys.find_map(|key| match key {
            RowKey::Head(session) => Some(*session),
            _ => None,
        })
    }

    fn row(&self, run: &str) -> Option<(RunRow, u64, u64)> {
        let session = self.session()?;
        let Row::Run(row) = self.world.rows.get(&RowKey::Run(session, name(run)))? else {
            return None;
        };
        let epoch = RowKey::Epoch(session, name(run), row.run_epoch);
        let Some(Row::Epoch(epoch)) = self.world.rows.get(&epoch) else {
            return None;
        };
        Some((row.clone(), epoch.last_seq.0, epoch.last_offset.get()))
    }

    fn act(&mut self, deed: &Deed) {
        let run = |number: &u8| format!("r{number}");
        let target = |number: &u8, all: bool| match all {
            true => Target::Session,
            false => Target::Run(name(&run(number))),
        };
        match deed {
            Deed::Start(number) => drop(self.send(start("bot", &run(number), None))),
            Deed::Claim(number, own) => {
                let by = if *own { "bot" } else { "bot2" };
                self.send(claim(by, &run(number), None));
            },
            Deed::Say(number, words) => {
                let run = run(number);
                let Some((row, seq, _)) = self.row(&run) else {
                    return;
                };
                let bodies = words.iter().map(|word| self.body(*word)).collect();
                let (by, epoch) = (row.writer.as_str().to_owned(), row.run_epoch.0);
                self.send(publish(&by, &run, epoch, seq + 1, bodies));
            },
            Deed::Pause(number, all) => {
                self.press("ann", Signal::Pause(target(number, *all)));
            },
            Deed::Resume(number, all) => {
                self.press("bob", Signal::Resume(target(number, *all)));
            },
            Deed::Answer(id, yes, ann) => {
                let verdict = if *yes {
                    Verdict::Approve
                } else {
                    Verdict::Deny
                };
                let by = if *ann { "ann" } else { "bob" };
                self.answered(by, *id, verdict);
            },
            Deed::Stop(number) => self.stop(target(number, false)),
            Deed::StopAll => self.stop(Target::Session),
            Deed::Wait(seconds, fires) => {
                self.now += u64::from(*seconds) * 1_000;
                if *fires {
                    self.fire();
                }
            },
            Deed::Expire(number) => {
                let run = run(number);
                if let (Some(session), Some((row, _, last))) = (self.session(), self.row(&run)) {
                    let control = expire(session, &run, row.run_epoch.0, last);
                    self.apply(controlling(self.now, control));
                }
            },
        }
    }

    fn body(&self, word: Word) -> Body {
        match word {
            Word::App => app("x"),
            Word::Message(number) => message_start(&format!("m{}-{number}", self.done.len())),
            Word::Suspend(reason) => Body::RunSuspended { reason, note: None },
            Word::Resume => Body::RunResumed,
            Word::Request(id, within) => {
                let on_expiry = match within % 2 {
                    0 => Verdict::Approve,
                    _ => Verdict::Deny,
                };
                let within = u32::from(within) * 1_000;
                request(&format!("a{id}"), within, on_expiry)
            },
            Word::Withdraw(id) => Body::ApprovalResolved {
                approval: name(&format!("a{id}")),
                outcome: ApprovalOutcome::Withdrawn,
                note: None,
                on_expiry: None,
            },
            Word::Complete => Body::RunCompleted,
        }
    }

    /// An answer is taken exactly if the request is open and its time is not over.
    fn answered(&mut self, by: &str, id: u8, verdict: Verdict) {
        let approval = format!("a{id}");
        let row = self.session().and_then(|session| {
            let key = RowKey::Approval(session, name(&approval));
            self.world.rows.get(&key).cloned()
        });
        let now = self.world.state.time.0.max(self.now);
        let outcome = self.press(by, answer(&approval, verdict));
        let code = match &outcome {
            Outcome::Refused(refusal) => Some(refusal.code),
            Outcome::Signalled {
                outcome: SignalOutcome::Applied { .. },
                ..
            } => None,
            other => panic!("{other:?}"),
        };
        let expected = match row {
            None if self.session().is_none() => Some(Code::UnknownSession),
            None => Some(Code::UnknownApproval),
            Some(Row::Approval(row)) => match row.resolved {
                Some(resolved) if resolved.outcome == ApprovalOutcome::Expired => {
                    Some(Code::Expired)
                },
                Some(_) => Some(Code::AlreadyResolved),
                None => (now >= row.deadline.0).then_some(Code::Expired),
            },
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!(code, expected, "{outcome:?}");
    }

    fn stop(&mut self, target: Target) {
        self.keys += 1;
        let key = format!("k{}", self.keys);
        self.send(cancel_of("ann", Cancel::of(target), &key));
    }

    fn fire(&mut self) {
        let timers = self.world.rows.iter();
        let due: Vec<_> = timers
            .filter_map(|(key, row)| match (key, row) {
                (RowKey::Timer(session, due, kind), Row::Timer(row)) if due.0 <= self.now => {
                    Some(Fire {
                        session: *session,
                        due: *due,
                        kind: *kind,
                        guard: row.guard,
                    })
                },
                _ => None,
            })
            .collect();
        for fire in due {
            self.apply(controlling(self.now, Control::Fire(fire)));
        }
    }
}

/// What holds of the rows and the log, whatever was done.
fn check(world: &World) {
    let mut approvals = BTreeMap::new();
    let (mut open, mut timers, mut live) = (BTreeSet::new(), BTreeSet::new(), 0);
    let mut head = None;
    for (key, row) in &world.rows {
        match (key, row) {
            (RowKey::Head(_), Row::Head(row)) => head = Some(row),
            (RowKey::Run(..), Row::Run(row)) => {
                let waits = row.state == RunState::Suspended;
                assert_eq!(waits, row.suspended.is_some(), "{row:?}");
                assert!(!row.state.is_terminal() || row.open_approvals.is_empty());
                assert_eq!(row.lost_at.is_some(), row.state == RunState::Orphaned);
                live += u32::from(!row.state.is_terminal());
                open.extend(row.open_approvals.iter().cloned());
            },
            (RowKey::Approval(_, id), Row::Approval(row)) => {
                approvals.insert(id.clone(), row);
            },
            (RowKey::Timer(_, due, TimerKind::Approval), Row::Timer(row)) => {
                let id = row.approval.clone().expect("it names one");
                assert!(timers.insert((id, *due)));
            },
            _ => {},
        }
    }
    let Some(head) = head else { return };
    let is_open = |id: &&ApprovalId| approvals.get(*id).is_some_and(|row| row.resolved.is_none());
    let rows: BTreeSet<_> = approvals.keys().filter(is_open).cloned().collect();
    assert_eq!(open, rows);
    assert_eq!(u64::from(head.open_approvals), rows.len() as u64);
    assert_eq!(head.live_runs, live);
    let due = |id: &ApprovalId| {
        let row = approvals.get(id).expect("it has a row");
        (id.clone(), row.due.expect("it is open"))
    };
    assert_eq!(timers, rows.iter().map(due).collect());
    for log in world.logs.values() {
        check_log(log, &approvals.keys().cloned().collect());
    }
}

fn check_log(log: &[Event], known: &BTreeSet<ApprovalId>) {
    let (mut asked, mut resolved) = (BTreeSet::new(), BTreeSet::new());
    let mut waits: BTreeMap<_, SuspendReason> = BTreeMap::new();
    for (place, event) in log.iter().enumerate() {
        assert_eq!(event.offset.get(), place as u64 + 1);
        match &event.body {
            Body::ApprovalRequested(request) => {
                assert!(asked.insert(request.approval.clone()), "{event:?}");
            },
            Body::ApprovalResolved {
                approval, outcome, ..
            } => {
                assert!(asked.contains(approval), "{event:?}");
                assert!(
                    resolved.insert(approval.clone()),
                    "a second winner: {event:?}"
                );
                let silent = event.author.participant.as_str() == "everwire";
                let expired = *outcome == ApprovalOutcome::Expired;
                // Only a run that was lost has its requests withdrawn by the server.
                assert!(silent || !expired, "{event:?}");
                let answered =
                    matches!(outcome, ApprovalOutcome::Approved | ApprovalOutcome::Denied);
                assert!(!silent || !answered, "{event:?}");
            },
            _ => {},
        }
        let Some(stamp) = &event.run else { continue };
        let reason = waits.get(&stamp.run).copied();
        match &event.body {
            Body::RunSuspended { reason: why, .. } => {
                assert_eq!(reason, None, "{event:?}");
                waits.insert(stamp.run.clone(), *why);
            },
            Body::RunResumed => {
                assert!(waits.remove(&stamp.run).is_some(), "{event:?}");
                let own = stamp.seq.is_some();
                assert!(!own || reason != Some(SuspendReason::Paused), "{event:?}");
            },
            Body::RunCancelled { .. } => drop(waits.remove(&stamp.run)),
            Body::RunOrphaned => assert_eq!(reason, None, "{event:?}"),
            // Whoever waits says nothing.
            _ => assert!(reason.is_none() || stamp.seq.is_none(), "{event:?}"),
        }
    }
    assert_eq!(&asked, known);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_waiting_and_approvals_stay_whole(deeds in vec(deed(), 1..60)) {
        let mut play = Play { now: 1_000, ..Play::default() };
        for deed in &deeds {
            play.act(deed);
            check(&play.world);
        }
        // A replica that takes it all in one transaction comes to the same.
        let mut other = World::default();
        other.apply(play.done);
        prop_assert_eq!(other, play.world);
    }
}
