//! The model's third part: stops, leases that end, and runs that are given up.

use everwire_core::command::{Expire, SignalOutcome};
use everwire_core::event::{Body, Draft, MessageStatus};
use everwire_core::row::RunState;
use everwire_core::{
    Author, Cancel, Code, Details, InputRef, Key, Offset, Outcome, Refusal, RunEpoch, RunId, Target,
};

use super::{Answer, Buried, Purpose, Seen, Session, TEN_MINUTES_MS, refuse};

impl Session {
    /// All runs above a run, itself not included.
    pub(super) fn above(&self, run: &RunId) -> Vec<RunId> {
        let mut above = Vec::new();
        let mut next = self.seen(run).and_then(|seen| seen.parent);
        while let Some(run) = next {
            next = self.seen(&run).and_then(|seen| seen.parent);
            above.push(run);
        }
        above
    }

    pub(super) fn cancel(&mut self, time: u64, by: &Author, cancel: &Cancel, key: &Key) -> Answer {
        let purpose = Purpose::Cancel(cancel.clone());
        let session_epoch = self.epoch();
        let answer = |outcome, duplicate| {
            Ok(Outcome::Signalled {
                session_epoch,
                outcome,
                duplicate,
            })
        };
        if let Some(used) = self.recall(time, by, Some(key), &purpose)? {
            let offset = used.offset;
            return answer(SignalOutcome::Applied { offset }, true);
        }
        let named = cancel.target.run().map(|run| self.seen(run));
        if let Some(None) = named {
            return answer(SignalOutcome::UnknownRun, false);
        }
        let mut hit = self.live();
        hit.retain(|run| self.is_hit(by, cancel, run));
        let over = |seen: &Seen| {
            let end = seen.end;
            end.map(|(state, offset)| SignalOutcome::AlreadyTerminal { state, offset })
        };
        if let (Target::Run(_), Some(Some(seen))) = (&cancel.target, &named)
            && let Some(over) = over(seen)
        {
            return answer(over, false);
        }
        if let Some(Some(seen)) = &named {
            Self::expected(cancel, seen)?;
            if let (true, Some(over)) = (hit.is_empty(), over(seen)) {
                return answer(over, false);
            }
        }
        let mut buried = None;
        if let (Target::Input(of), true) = (&cancel.target, hit.is_empty()) {
            let input = meant(by, of);
            if let Some(over) = self.last_answer(&input).as_ref().and_then(over) {
                return answer(over, false);
            }
            self.check_room(time, by, &input)?;
            buried = Some(input);
        }
        let seen = cancel.target.run().zip(named.flatten());
        let stamp = seen.as_ref().map(|(run, seen)| (*run, seen.epoch, None));
        let target = match &cancel.target {
            Target::Input(input) => Target::Input(meant(by, input)),
            other => other.clone(),
        };
        let signal = Body::SignalCancel {
            target,
            grace_ms: cancel.grace_ms,
        };
        let offset = self.add(time, by, stamp, Draft::new(signal));
        self.keep_key(time, by, Some(key), purpose, offset, None);
        for run in hit {
            self.stop_run(time, by, &run, offset, cancel.grace_ms);
        }
        if let Some(input) = buried {
            self.buried.retain(|other| other.input != input);
            self.buried.push(Buried {
                input,
                by: by.clone(),
                offset,
                until: time + TEN_MINUTES_MS,
            });
        }
        answer(SignalOutcome::Applied { offset }, false)
    }

    fn is_hit(&self, by: &Author, cancel: &Cancel, run: &RunId) -> bool {
        let seen = self.seen(run).expect("it is live");
        let in_time = cancel.guard.as_of.is_none_or(|of| seen.started <= of);
        in_time
            && match &cancel.target {
                Target::Run(of) => of == run,
                Target::Subtree(root) => root == run || self.above(run).contains(root),
                Target::Input(input) => {
                    let meant = meant(by, input);
                    seen.input.is_some_and(|answers| answers.may_be(&meant))
                },
                Target::Session => true,
            }
    }

    fn expected(cancel: &Cancel, seen: &Seen) -> Result<(), Refusal> {
        let state = cancel.guard.state.is_none_or(|of| of == seen.state());
        let time = cancel.guard.as_of.is_none_or(|of| seen.started <= of);
        if state && time {
            return Ok(());
        }
        refuse(
            Code::WrongState,
            Details {
                state: Some(seen.state().as_str()),
                ..Details::default()
            },
        )
    }

    /// The run that was started last for an input that is in the log.
    fn last_answer(&self, input: &InputRef) -> Option<Seen> {
        let posted = self.log.iter().find(|event| {
            Some(&event.author.participant) == input.author.as_ref()
                && matches!(&event.body, Body::Input { input: of, .. } if *of == input.input)
        })?;
        let answers = self.log.iter().filter(|event| {
            let answers =
                matches!(&event.body, Body::RunStarted { input: Some(of), .. } if of == input);
            answers && event.offset > posted.offset
        });
        let run = answers.last()?.run.as_ref()?.run.clone();
        self.seen(&run)
    }

    fn check_room(&self, time: u64, by: &Author, input: &InputRef) -> Result<(), Refusal> {
        let others = self.buried.iter();
        let others = others.filter(|other| other.until >= time && other.input != *input);
        let (mut all, mut own) = (0, 0);
        for other in others {
            all += 1;
            own += u64::from(other.by.participant == by.participant);
        }
        for (count, limit) in [(all, 64), (own, 8)] {
            if count >= limit {
                let details = Details {
                    limit: Some(limit),
                    ..Details::default()
                };
                return refuse(Code::TooManyPending, details);
            }
        }
        Ok(())
    }

    pub(super) fn stop_run(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        cancel_offset: Offset,
        grace_ms: Option<u32>,
    ) {
        let epoch = self.seen(run).expect("it is live").epoch;
        let stamp = Some((run, epoch, None));
        let cancelled = Body::RunCancelled { cancel_offset };
        self.add(time, by, stamp, Draft::new(cancelled));
        if let Some(grace) = grace_ms {
            self.graces.push((run.clone(), time + u64::from(grace)));
        }
        self.lost_at.retain(|(lost, _)| lost != run);
        self.seal(time, by, run, epoch, MessageStatus::Cancelled);
    }

    pub(super) fn expire(&mut self, time: u64, expire: &Expire) {
        let run = &expire.run;
        let Some(seen) = self.seen(run) else { return };
        let last = self.last_seq(run, expire.run_epoch).1;
        let as_seen = (seen.epoch, last) == (expire.run_epoch, expire.last_offset);
        if seen.state() != RunState::Running || !as_seen {
            return;
        }
        let stamp = Some((run, seen.epoch, None));
        self.add(
            time,
            &Author::server(),
            stamp,
            Draft::new(Body::RunOrphaned),
        );
        let mut due = time + TEN_MINUTES_MS;
        while self.lost_at.iter().any(|(_, other)| *other == due) {
            due += 1;
        }
        self.lost_at.push((run.clone(), due));
    }

    /// The deadline of this moment has come, if there is one.
    pub(super) fn lose(&mut self, time: u64, due: u64) {
        let lost = self.lost_at.iter().find(|(_, other)| *other == due);
        let Some((run, _)) = lost.filter(|_| due <= time).cloned() else {
            return;
        };
        self.lost_at.retain(|(other, _)| *other != run);
        let epoch = self.seen(&run).map_or(RunEpoch(0), |seen| seen.epoch);
        let reason = "lost".to_owned();
        let (server, stamp) = (Author::server(), Some((&run, epoch, None)));
        self.add(time, &server, stamp, Draft::new(Body::RunFailed { reason }));
        self.seal(time, &server, &run, epoch, MessageStatus::Incomplete);
    }
}

/// Whoever names no author means an input of his own.
fn meant(by: &Author, input: &InputRef) -> InputRef {
    let author = input.author.clone();
    InputRef {
        input: input.input.clone(),
        author: Some(author.unwrap_or_else(|| by.participant.clone())),
    }
}
