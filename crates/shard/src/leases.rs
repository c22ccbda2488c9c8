//! How long the writers of a shard's runs have been silent, as its leader knows it (RULES 6, 8).
//!
//! A lease is a duration on the leader's own monotonic clock, and nothing of it is in the log but
//! that it has ended. Whoever takes office gives every live run one full lease: so a change of
//! leader neither ends a living one nor keeps a dead one. What is forgotten here, or said twice,
//! does no harm: `Expire` does nothing unless the run stands as it says.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use everwire_core::command::Expire;
use everwire_core::limits::LEASE_DEFAULT;
use everwire_core::row::{EpochRow, Row, RowKey, RunRow, RunState, SessionKey};
use everwire_core::{Offset, ParticipantId, RunEpoch, RunId};

/// An expiry that does not seem to have been applied is said again after so long.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(1);

type RunKey = (SessionKey, RunId);
type Rows = std::collections::BTreeMap<RowKey, Option<Row>>;

/// Nothing while this node does not lead the shard.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    office: Mutex<Option<Office>>,
}

/// The live runs of the shard.
#[derive(Debug, Default)]
struct Office {
    writers: HashMap<RunKey, Writer>,
    /// When each writer's silence is to be looked at; never later than its lease ends.
    due: BTreeSet<(Duration, SessionKey, RunId)>,
    /// Showed a sign of life since the last look: what is applied has no clock.
    alive: HashSet<RunKey>,
    /// `None` when the disk has been read.
    meanwhile: Option<Meanwhile>,
}

/// What is applied while the disk is read, which may or may not be in what was read.
#[derive(Debug, Default)]
struct Meanwhile {
    /// Ended or lost.
    over: HashSet<RunKey>,
    /// Where the writers that are not known yet stand. Without it an expiry would name an offset
    /// from before, and be refused for ever.
    wrote: HashMap<RunKey, (RunEpoch, Offset)>,
}

/// Whoever writes one run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Writer {
    participant: ParticipantId,
    run_epoch: RunEpoch,
    last_offset: Offset,
    lease: Duration,
    /// The last sign of life.
    seen: Duration,
    /// Where its run stands; only of one that runs does silence count.
    state: RunState,
}

fn lease_of(run: &RunRow) -> Duration {
    match run.lease_ms {
        // Granted by rules that knew none.
        0 => LEASE_DEFAULT,
        ms => Duration::from_millis(ms.into()),
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, Option<Office>> {
        self.office
            .lock()
            .expect("no panic happens under this lock")
    }

    /// From here on what is applied is followed. Says whether the disk must be read once.
    pub(crate) fn take_office(&self) -> bool {
        let mut office = self.lock();
        if office.is_some() {
            return false;
        }
        *office = Some(Office {
            meanwhile: Some(Meanwhile::default()),
            ..Office::default()
        });
        true
    }

    /// This node does not lead any more, or could not read what it must know.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    /// Takes what the disk had, each with one full lease from now. What was applied since is newer.
    pub(crate) fn found(&self, runs: Vec<(SessionKey, RunId, RunRow, EpochRow)>, now: Duration) {
        let mut office = self.lock();
        let Some(office) = &mut *office else { return };
        let meanwhile = office.meanwhile.take().unwrap_or_default();
        for (session, run, row, epoch) in runs {
            let key = (session, run);
            if row.state.is_terminal() || meanwhile.over.contains(&key) {
                continue;
            }
            if let Some(known) = office.writers.get_mut(&key) {
                // It stands where it is known to, and may have written before.
                if known.run_epoch == row.run_epoch {
                    known.last_offset = known.last_offset.max(epoch.last_offset);
                }
                continue;
            }
            let wrote = meanwhile.wrote.get(&key);
            let wrote = wrote.filter(|(run_epoch, _)| *run_epoch == row.run_epoch);
            let writer = Writer {
                state: row.state,
                lease: lease_of(&row),
                participant: row.writer,
                run_epoch: row.run_epoch,
                last_offset: wrote.map_or(epoch.last_offset, |(_, offset)| *offset),
                seen: now,
            };
            office.watch(key, writer);
        }
    }

    /// Follows what is applied.
    pub(crate) fn applied(&self, rows: &Rows, erased: &[SessionKey]) {
        let mut office = self.lock();
        let Some(office) = &mut *office else { return };
        for (key, row) in rows {
            match (key, row) {
                (RowKey::Run(session, run), Some(Row::Run(row))) if !row.state.is_terminal() => {
                    office.stands((*session, run.clone()), row);
                },
                (RowKey::Run(session, run), _) => office.ended((*session, run.clone())),
                (RowKey::Epoch(session, run, run_epoch), Some(Row::Epoch(row))) => {
                    office.wrote((*session, run.clone()), *run_epoch, row.last_offset);
                },
                _ => {},
            }
        }
        for session in erased {
            let gone = office.writers.keys().filter(|(of, _)| of == session);
            for key in gone.cloned().collect::<Vec<_>>() {
                office.ended(key);
            }
        }
    }

    /// A sign of life that is in no log. Says where the run stands, if there is such a writer and
    /// it has not lost it.
    pub(crate) fn renew(
        &self,
        session: SessionKey,
        run: &RunId,
        run_epoch: RunEpoch,
        participant: &ParticipantId,
    ) -> Option<RunState> {
        let mut office = self.lock();
        let office = office.as_mut()?;
        let key = (session, run.clone());
        let writer = office
            .writers
            .get(&key)
            .filter(|writer| writer.run_epoch == run_epoch && writer.participant == *participant);
        let state = writer.map(|writer| writer.state);
        let state = state.filter(|state| *state != RunState::Orphaned)?;
        office.alive.insert(key);
        Some(state)
    }

    /// The runs whose writers have been silent for a whole lease, at most `limit`.
    pub(crate) fn ended(&self, now: Duration, limit: usize) -> Vec<Expire> {
        let mut office = self.lock();
        let Some(office) = &mut *office else {
            return Vec::new();
        };
        for key in std::mem::take(&mut office.alive) {
            if let Some(writer) = office.writers.get_mut(&key) {
                writer.seen = now;
            }
        }
        let mut ended = Vec::new();
        while ended.len() < limit
            && let Some(first) = office.due.first()
            && first.0 <= now
            && let Some((_, session, run)) = office.due.pop_first()
        {
            let key = (session, run);
            let writer = office.writers.get(&key);
            let Some(writer) = writer.filter(|writer| writer.state == RunState::Running) else {
                continue;
            };
            let ends = writer.seen.saturating_add(writer.lease);
            let (session, run) = key;
            if ends > now {
                office.due.insert((ends, session, run));
                continue;
            }
            ended.push(Expire {
                session,
                run: run.clone(),
                run_epoch: writer.run_epoch,
                last_offset: writer.last_offset,
            });
            let again = now.saturating_add(SAY_AGAIN_AFTER);
            office.due.insert((again, session, run));
        }
        ended
    }
}

impl Office {
    fn watch(&mut self, key: RunKey, writer: Writer) {
        let first = writer.seen.saturating_add(writer.lease);
        self.due.insert((first, key.0, key.1.clone()));
        self.writers.insert(key, writer);
    }

    /// A run is live: newly, under a new epoch, in another state, or as before with other parts
    /// open. One that runs again has one full lease from now.
    fn stands(&mut self, key: RunKey, row: &RunRow) {
        let known = self.writers.get_mut(&key);
        if let Some(writer) = known.filter(|writer| writer.run_epoch == row.run_epoch) {
            let before = std::mem::replace(&mut writer.state, row.state);
            if row.state == RunState::Running && before != RunState::Running {
                self.alive.insert(key.clone());
                self.due.insert((Duration::ZERO, key.0, key.1));
            }
            return;
        }
        let writer = Writer {
            state: row.state,
            participant: row.writer.clone(),
            run_epoch: row.run_epoch,
            last_offset: Offset::ZERO,
            lease: lease_of(row),
            // Replaced by the next look, which comes before any lease ends.
            seen: Duration::ZERO,
        };
        self.alive.insert(key.clone());
        self.watch(key, writer);
    }

    fn wrote(&mut self, key: RunKey, run_epoch: RunEpoch, last_offset: Offset) {
        match (self.writers.get_mut(&key), &mut self.meanwhile) {
            (Some(writer), _) if writer.run_epoch == run_epoch => {
                writer.last_offset = last_offset;
                self.alive.insert(key);
            },
            (None, Some(meanwhile)) => {
                meanwhile.wrote.insert(key, (run_epoch, last_offset));
            },
            _ => {},
        }
    }

    fn ended(&mut self, key: RunKey) {
        self.writers.remove(&key);
        self.alive.remove(&key);
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.over.insert(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::{Seq, SessionNo, Slot};

    const LEASE: Duration = Duration::from_secs(15);

    fn session() -> SessionKey {
        SessionKey {
            slot: Slot::new(7).unwrap(),
            session_no: SessionNo(1),
        }
    }

    fn id(run: &str) -> RunId {
        RunId::parse(run).unwrap()
    }

    fn bot() -> ParticipantId {
        ParticipantId::parse("bot").unwrap()
    }

    fn run(state: RunState, epoch: u32) -> RunRow {
        RunRow {
            state,
            run_epoch: RunEpoch(epoch),
            ..RunRow::started(bot(), Offset::ZERO.next())
        }
    }

    fn epoch(last: u64) -> EpochRow {
        EpochRow {
            writer: bot(),
            granted: Offset::ZERO.next(),
            last_seq: Seq(last),
            last_offset: Offset::new(last).unwrap(),
            batches: last,
        }
    }

    fn apply(leases: &Leases, name: &str, row: RunRow) {
        let key = RowKey::Run(session(), id(name));
        leases.applied(&Rows::from([(key, Some(Row::Run(row)))]), &[]);
    }

    fn write(leases: &Leases, name: &str, number: u32, last: u64) {
        let key = RowKey::Epoch(session(), id(name), RunEpoch(number));
        leases.applied(&Rows::from([(key, Some(Row::Epoch(epoch(last))))]), &[]);
    }

    fn renewed(
        leases: &Leases,
        session: SessionKey,
        run: &RunId,
        run_epoch: RunEpoch,
        participant: &ParticipantId,
    ) -> bool {
        let state = leases.renew(session, run, run_epoch, participant);
        state == Some(RunState::Running)
    }

    fn ended(leases: &Leases, at: Duration) -> Vec<(String, u32, u64)> {
        let ended = leases.ended(at, 9).into_iter();
        let said = ended.map(|expire| {
            let run = expire.run.as_str().to_owned();
            (run, expire.run_epoch.0, expire.last_offset.get())
        });
        said.collect()
    }

    /// One that has taken office and read an empty disk.
    fn in_office() -> Leases {
        let leases = Leases::default();
        assert!(leases.take_office());
        assert!(!leases.take_office());
        leases.found(Vec::new(), Duration::ZERO);
        leases
    }

    #[test]
    fn silence_ends_a_lease_and_signs_of_life_do_not() {
        let (leases, second) = (in_office(), Duration::from_secs(1));
        apply(&leases, "r1", run(RunState::Running, 1));
        apply(&leases, "r2", run(RunState::Running, 1));
        assert_eq!(ended(&leases, second), []);
        write(&leases, "r1", 1, 4);
        assert_eq!(ended(&leases, second * 10), []);
        assert!(renewed(&leases, session(), &id("r2"), RunEpoch(1), &bot()));
        assert_eq!(ended(&leases, second * 20), []);
        // r1 was heard of before the look at 10 s, r2 before that at 20 s.
        assert_eq!(ended(&leases, second * 25), [("r1".to_owned(), 1, 4)]);
        assert_eq!(ended(&leases, second * 25), [], "it is said once a second");
        let both = [("r1".to_owned(), 1, 4), ("r2".to_owned(), 1, 0)];
        let mut said = ended(&leases, second * 35);
        said.sort();
        assert_eq!(said, both);
        apply(&leases, "r1", run(RunState::Orphaned, 1));
        apply(&leases, "r2", run(RunState::Cancelled, 1));
        assert_eq!(ended(&leases, second * 99), []);
    }

    #[test]
    fn only_the_writer_renews_and_a_claim_begins_anew() {
        let (leases, second) = (in_office(), Duration::from_secs(1));
        apply(&leases, "r1", run(RunState::Running, 1));
        write(&leases, "r1", 1, 4);
        let ann = ParticipantId::parse("ann").unwrap();
        assert!(!renewed(&leases, session(), &id("r1"), RunEpoch(1), &ann));
        assert!(!renewed(&leases, session(), &id("r1"), RunEpoch(2), &bot()));
        assert!(!renewed(&leases, session(), &id("r2"), RunEpoch(1), &bot()));
        assert_eq!(ended(&leases, second), []);
        apply(&leases, "r1", run(RunState::Running, 2));
        write(&leases, "r1", 1, 5);
        assert_eq!(ended(&leases, second * 10), []);
        assert_eq!(ended(&leases, second * 24), []);
        assert_eq!(ended(&leases, second * 25), [("r1".to_owned(), 2, 0)]);
    }

    #[test]
    fn whoever_takes_office_gives_each_running_run_a_full_lease() {
        let leases = Leases::default();
        apply(&leases, "r0", run(RunState::Running, 1));
        assert!(!renewed(&leases, session(), &id("r0"), RunEpoch(1), &bot()));
        assert!(leases.take_office());
        // Applied while the disk is read.
        apply(&leases, "r2", run(RunState::Completed, 1));
        apply(&leases, "r3", run(RunState::Running, 3));
        let row = |name: &str, state, number| (session(), id(name), run(state, number), epoch(7));
        let then = Duration::from_secs(100);
        let found = vec![
            row("r1", RunState::Running, 1),
            row("r2", RunState::Running, 1),
            row("r3", RunState::Running, 2),
            row("r4", RunState::Orphaned, 1),
        ];
        leases.found(found, then);
        assert_eq!(ended(&leases, then), []);
        assert_eq!(ended(&leases, then + LEASE - Duration::from_millis(1)), []);
        let mut said = ended(&leases, then + LEASE);
        said.sort();
        assert_eq!(said, [("r1".to_owned(), 1, 7), ("r3".to_owned(), 3, 0)]);
        leases.close();
        assert_eq!(ended(&leases, then * 2), []);
        assert!(leases.take_office());
    }

    /// An expiry names where the writer stands, or the rules refuse it each time it is said.
    #[test]
    fn what_is_written_while_the_disk_is_read_is_not_forgotten() {
        let leases = Leases::default();
        assert!(leases.take_office());
        write(&leases, "r1", 1, 8);
        write(&leases, "r2", 1, 9);
        let row = |name: &str, number| {
            (
                session(),
                id(name),
                run(RunState::Running, number),
                epoch(7),
            )
        };
        // r2 was claimed since, and its writer has written nothing yet.
        leases.found(vec![row("r1", 1), row("r2", 2)], Duration::ZERO);
        let mut said = ended(&leases, LEASE);
        said.sort();
        assert_eq!(said, [("r1".to_owned(), 1, 8), ("r2".to_owned(), 2, 7)]);
    }

    /// Whoever waits is not silent, and goes on where it stood.
    #[test]
    fn a_run_that_waits_loses_no_lease_and_has_a_full_one_when_it_goes_on() {
        let (leases, second) = (in_office(), Duration::from_secs(1));
        apply(&leases, "r1", run(RunState::Running, 1));
        write(&leases, "r1", 1, 4);
        assert_eq!(ended(&leases, second), []);
        apply(&leases, "r1", run(RunState::Suspended, 1));
        assert_eq!(ended(&leases, second * 99), []);
        let state = leases.renew(session(), &id("r1"), RunEpoch(1), &bot());
        assert_eq!(state, Some(RunState::Suspended));
        apply(&leases, "r1", run(RunState::Running, 1));
        assert_eq!(ended(&leases, second * 100), []);
        assert_eq!(ended(&leases, second * 114), []);
        assert_eq!(ended(&leases, second * 115), [("r1".to_owned(), 1, 4)]);
        // Paused without a writer, it is one without a writer when it goes on.
        apply(&leases, "r1", run(RunState::Orphaned, 1));
        apply(&leases, "r1", run(RunState::Suspended, 1));
        apply(&leases, "r1", run(RunState::Running, 1));
        assert_eq!(ended(&leases, second * 200), []);
        assert_eq!(ended(&leases, second * 215), [("r1".to_owned(), 1, 4)]);
    }

    /// A new leader that reads it from the disk while it goes on knows where its writer stands.
    #[test]
    fn a_run_that_goes_on_while_the_disk_is_read_can_still_expire() {
        let leases = Leases::default();
        assert!(leases.take_office());
        apply(&leases, "r1", run(RunState::Running, 1));
        let row = (session(), id("r1"), run(RunState::Suspended, 1), epoch(7));
        leases.found(vec![row], Duration::ZERO);
        assert_eq!(ended(&leases, Duration::ZERO), []);
        assert_eq!(ended(&leases, LEASE), [("r1".to_owned(), 1, 7)]);
    }

    #[test]
    fn a_deleted_session_has_no_leases() {
        let leases = in_office();
        apply(&leases, "r1", run(RunState::Running, 1));
        leases.applied(&Rows::new(), &[session()]);
        assert_eq!(ended(&leases, LEASE * 2), []);
    }
}
