//! The model's second half: what each command answers, read out of the lists of the first.

use everwire_core::command::{Appended, Duplicate, Published, StartRun};
use everwire_core::event::{Body, Draft, MessageStatus};
use everwire_core::row::RunState;
use everwire_core::{
    Author, Code, Details, Key, Lease, MessageId, Offset, Outcome, PartId, Refusal, RunEpoch,
    RunId, Seq,
};

use super::{Answer, Purpose, Seen, Session, bare, refuse, wrong_state};

impl Session {
    fn check_live(seen: &Seen) -> Result<(), Refusal> {
        let next_epoch = Some(RunEpoch(seen.epoch.0 + 1));
        match seen.end {
            None => Ok(()),
            Some((RunState::Cancelled, offset)) => refuse(
                Code::RunFenced,
                Details {
                    cancel_offset: Some(offset),
                    next_epoch,
                    ..Details::default()
                },
            ),
            Some((state, offset)) => refuse(
                Code::RunEnded,
                Details {
                    state: Some(state.as_str()),
                    offset: Some(offset),
                    next_epoch,
                    ..Details::default()
                },
            ),
        }
    }

    pub(super) fn start(&mut self, time: u64, by: &Author, start: &StartRun) -> Answer {
        let (run, key) = (&start.run, start.key.as_ref());
        let purpose = Purpose::Start(start.clone());
        if let Some(used) = self.recall(time, by, key, &purpose)? {
            return Ok(self.granted(used.granted.expect("kept for grants"), used.offset, true));
        }
        if let Some(seen) = self.seen(run) {
            Self::check_live(&seen)?;
            return refuse(
                Code::AlreadyClaimed,
                Details {
                    by: Some(seen.writer),
                    ..Details::default()
                },
            );
        }
        if let Some(parent) = &start.parent {
            self.check_parent(parent)?;
        }
        let stops = self.buried.iter().filter(|buried| {
            let meant = start.input.as_ref();
            buried.until >= time && meant.is_some_and(|input| input.may_be(&buried.input))
        });
        let stopped = stops.max_by_key(|buried| buried.offset);
        let stopped = stopped.map(|buried| (buried.by.clone(), buried.offset));
        let body = Body::RunStarted {
            input: start.input.clone(),
            parent: start.parent.clone(),
            meta: start.meta.clone(),
        };
        let granted = self.grant(time, by, run, RunEpoch(1), body, key, purpose)?;
        if let Some((by, cancel_offset)) = stopped {
            self.stop_run(time, &by, run, cancel_offset, None);
        }
        Ok(granted)
    }

    fn check_parent(&self, parent: &RunId) -> Result<(), Refusal> {
        let Some(seen) = self.seen(parent) else {
            return bare(Code::UnknownRun);
        };
        match seen.end {
            None => {},
            Some((RunState::Cancelled, offset)) => {
                return refuse(
                    Code::ParentFenced,
                    Details {
                        cancel_offset: Some(offset),
                        ..Details::default()
                    },
                );
            },
            Some((state, _)) => {
                return refuse(
                    Code::WrongState,
                    Details {
                        state: Some(state.as_str()),
                        ..Details::default()
                    },
                );
            },
        }
        if self.above(parent).len() + 1 >= 16 {
            return refuse(
                Code::TooLarge,
                Details {
                    limit: Some(16),
                    ..Details::default()
                },
            );
        }
        Ok(())
    }

    pub(super) fn claim(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        key: Option<&Key>,
    ) -> Answer {
        let purpose = Purpose::Claim(run.clone());
        if let Some(used) = self.recall(time, by, key, &purpose)? {
            return Ok(self.granted(used.granted.expect("kept for grants"), used.offset, true));
        }
        let Some(seen) = self.seen(run) else {
            return bare(Code::UnknownRun);
        };
        Self::check_live(&seen)?;
        if seen.writer != by.participant && !seen.orphaned {
            return refuse(
                Code::AlreadyClaimed,
                Details {
                    by: Some(seen.writer),
                    ..Details::default()
                },
            );
        }
        let epoch = RunEpoch(seen.epoch.0 + 1);
        self.lost_at.retain(|(lost, _)| lost != run);
        self.grant(time, by, run, epoch, Body::RunClaimed, key, purpose)
    }

    #[expect(clippy::too_many_arguments, reason = "the model is plain")]
    fn grant(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        epoch: RunEpoch,
        body: Body,
        key: Option<&Key>,
        purpose: Purpose,
    ) -> Answer {
        let offset = self.add(time, by, Some((run, epoch, None)), Draft::new(body));
        self.keep_key(time, by, key, purpose, offset, Some(epoch));
        Ok(self.granted(epoch, offset, false))
    }

    fn granted(&self, run_epoch: RunEpoch, offset: Offset, duplicate: bool) -> Outcome {
        Outcome::RunGranted {
            session_epoch: self.epoch(),
            run_epoch,
            offset,
            lease: Some(Lease::DEFAULT),
            duplicate,
        }
    }

    /// Whether only its writer could be told about an epoch.
    fn check_writer(&self, by: &Author, run: &RunId, epoch: RunEpoch) -> Result<Seen, Refusal> {
        let Some(seen) = self.seen(run) else {
            return bare(Code::UnknownRun);
        };
        let writer = self.granted_to(run, epoch);
        if writer.as_ref().unwrap_or(&seen.writer) != &by.participant {
            return bare(Code::Denied);
        }
        Ok(seen)
    }

    /// Refuses an epoch that is not the run's, or was never granted.
    fn check_epoch(&self, seen: &Seen, run: &RunId, epoch: RunEpoch) -> Result<(), Refusal> {
        let granted = self.granted_to(run, epoch).is_some();
        if granted && epoch >= seen.epoch {
            return Ok(());
        }
        let (known, known_offset) = self.last_seq(run, epoch);
        refuse(
            Code::StaleEpoch,
            Details {
                run_epoch: Some(seen.epoch),
                last_seq: granted.then_some(Seq(known)),
                last_offset: granted.then_some(known_offset),
                ..Details::default()
            },
        )
    }

    fn check_epilogue(
        &self,
        time: u64,
        seen: &Seen,
        run: &RunId,
        drafts: &[Draft],
    ) -> Result<(), Refusal> {
        let only = drafts
            .iter()
            .all(|draft| matches!(draft.body, Body::RunEpilogue { .. }));
        let grace = self.graces.iter().find(|(of, _)| of == run);
        if only && grace.is_some_and(|(_, until)| time <= *until) {
            return Ok(());
        }
        refuse(
            Code::RunFenced,
            Details {
                cancel_offset: seen.end.map(|(_, offset)| offset),
                ..Details::default()
            },
        )
    }

    pub(super) fn heartbeat(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        epoch: RunEpoch,
        observed: Option<Offset>,
    ) -> Answer {
        let seen = self.check_writer(by, run, epoch)?;
        if observed.is_some_and(|through| through > self.tail()) {
            return bare(Code::Malformed);
        }
        self.check_epoch(&seen, run, epoch)?;
        let session_epoch = self.epoch();
        if let (Some((RunState::Cancelled, signal_offset)), Some(through)) = (seen.end, observed) {
            let told = self
                .of_run(run)
                .any(|event| matches!(event.body, Body::SignalObserved { .. }));
            if through >= signal_offset && !told {
                let body = Body::SignalObserved { signal_offset };
                let stamp = Some((run, seen.epoch, None));
                let offset = self.add(time, by, stamp, Draft::new(body));
                return Ok(Outcome::Renewed {
                    session_epoch,
                    state: RunState::Cancelled,
                    observed: Some(offset),
                });
            }
        }
        Self::check_live(&seen)?;
        if seen.orphaned {
            return refuse(Code::WrongState, wrong_state(seen.state(), seen.epoch));
        }
        Ok(Outcome::Renewed {
            session_epoch,
            state: RunState::Running,
            observed: None,
        })
    }

    pub(super) fn publish(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        epoch: RunEpoch,
        first: u64,
        drafts: &[Draft],
    ) -> Answer {
        let seen = self.check_writer(by, run, epoch)?;
        let last = first + drafts.len() as u64 - 1;
        let known = self.last_seq(run, epoch).0;
        let duplicate =
            (known >= first).then(|| self.duplicate(run, epoch, first, known.min(last)));
        let published = |session: &Self, appended| {
            Ok(Outcome::Published(Published {
                session_epoch: session.epoch(),
                duplicate,
                appended,
            }))
        };
        if known >= last {
            return published(self, None);
        }
        self.check_epoch(&seen, run, epoch)?;
        if epoch == seen.epoch {
            Self::check_live(&seen)?;
            if seen.orphaned || self.closed.contains(&(run.clone(), epoch)) {
                return refuse(Code::WrongState, wrong_state(seen.state(), epoch));
            }
        } else {
            self.check_epilogue(time, &seen, run, drafts)?;
        }
        if first > known + 1 {
            return refuse(
                Code::SeqGap,
                Details {
                    expected_seq: Some(Seq(known + 1)),
                    ..Details::default()
                },
            );
        }
        let new = (first..).zip(drafts).skip_while(|(seq, _)| *seq <= known);
        let appended = self.write(time, by, (run, epoch), new.collect())?;
        published(self, Some(appended))
    }

    /// Appends drafts that are new, all or none.
    fn write(
        &mut self,
        time: u64,
        by: &Author,
        (run, epoch): (&RunId, RunEpoch),
        new: Vec<(u64, &Draft)>,
    ) -> Result<Appended, Refusal> {
        let length = self.log.len();
        let (first, last) = (
            new.first().expect("not empty").0,
            new.last().expect("not empty").0,
        );
        for (seq, draft) in new {
            if let Err(code) = self.lay(run, draft) {
                self.log.truncate(length);
                let mut details = Details::default();
                if code == Code::TooManyPending {
                    details.limit = Some(64);
                } else {
                    self.closed.push((run.clone(), epoch));
                    details = wrong_state(RunState::Running, epoch);
                }
                return refuse(code, details);
            }
            let mut draft = draft.clone();
            match &mut draft.body {
                Body::PartDelta {
                    message,
                    part,
                    position,
                    ..
                } => *position = self.text_of(message, part).len() as u64,
                Body::StepStart { step, attempt, .. } => *attempt = self.attempts(run, step) + 1,
                _ => {},
            }
            self.add(time, by, Some((run, epoch, Some(seq))), draft);
        }
        let appended = Appended {
            first_seq: Seq(first),
            last_seq: Seq(last),
            first_offset: Offset::new(length as u64 + 1).expect("small"),
            last_offset: self.tail(),
        };
        self.batches.push((run.clone(), epoch, first, last));
        let end = self.seen(run).expect("it is there").end;
        if end.is_some_and(|(_, offset)| offset.get() > length as u64) {
            self.seal(time, by, run, epoch, MessageStatus::Incomplete);
        }
        Ok(appended)
    }

    /// Whether a draft fits what the log says so far.
    fn lay(&self, run: &RunId, draft: &Draft) -> Result<(), Code> {
        let messages = self.open_messages(run);
        let parts = self.open_parts(run);
        let part_is_open =
            |message: &MessageId, part: &PartId| parts.contains(&(message.clone(), part.clone()));
        let fits = match &draft.body {
            Body::MessageStart { message, .. } => {
                let used = self.log.iter().any(
                    |event| matches!(&event.body, Body::MessageStart { message: other, .. } if other == message),
                );
                if !used && messages.len() >= 64 {
                    return Err(Code::TooManyPending);
                }
                !used
            },
            Body::MessageEnd { message, .. } => messages.contains(message),
            Body::PartStart { message, part, .. } => {
                let used = self.log.iter().any(|event| {
                    matches!(&event.body, Body::PartStart { message: of, part: other, .. }
                        if (of, other) == (message, part))
                });
                let fits = messages.contains(message) && !used;
                if fits && parts.len() >= 64 {
                    return Err(Code::TooManyPending);
                }
                fits
            },
            Body::PartDelta { message, part, .. } | Body::PartEnd { message, part, .. } => {
                part_is_open(message, part)
            },
            Body::StepStart { step, .. } => self.open_step(run).is_none_or(|open| open == *step),
            Body::StepEnd { step, .. } => self.open_step(run).as_ref() == Some(step),
            Body::RunEpilogue { .. } => self.graces.iter().any(|(of, _)| of == run),
            _ => true,
        };
        if fits { Ok(()) } else { Err(Code::WrongState) }
    }

    /// The text of a part so far.
    pub(crate) fn text_of(&self, message: &MessageId, part: &PartId) -> String {
        let texts = self.log.iter().filter_map(|event| match &event.body {
            Body::PartDelta {
                message: of,
                part: other,
                text,
                ..
            } if (of, other) == (message, part) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    fn duplicate(&self, run: &RunId, epoch: RunEpoch, first: u64, through: u64) -> Duplicate {
        let batches = self
            .batches
            .iter()
            .filter(|batch| (&batch.0, batch.1) == (run, epoch));
        let batches: Vec<_> = batches.collect();
        let remembered = batches.iter().rev().take(256);
        let oldest = remembered.map(|batch| batch.2).min().unwrap_or(u64::MAX);
        let place = |seq: u64| {
            let event = self.of_run(run).find(|event| {
                let stamp = event.run.as_ref().expect("filtered");
                (stamp.run_epoch, stamp.seq) == (epoch, Some(Seq(seq)))
            });
            event.expect("it is committed").offset
        };
        if through < oldest {
            return Duplicate {
                through_seq: Seq(through),
                through_offset: self.last_seq(run, epoch).1,
                exact: false,
            };
        }
        let dense = place(through).get() - place(first).get() == through - first;
        Duplicate {
            through_seq: Seq(through),
            through_offset: place(through),
            exact: dense && first >= oldest,
        }
    }

    pub(super) fn seal(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        epoch: RunEpoch,
        status: MessageStatus,
    ) {
        for message in self.open_messages(run) {
            let body = Body::MessageEnd { message, status };
            self.add(time, by, Some((run, epoch, None)), Draft::new(body));
        }
    }

    pub(super) fn post(
        &mut self,
        time: u64,
        by: &Author,
        draft: &Draft,
        key: Option<&Key>,
        hash: u128,
    ) -> Answer {
        let purpose = Purpose::Post(hash);
        let session_epoch = self.epoch();
        let posted = |offset, duplicate| {
            Ok(Outcome::Posted {
                session_epoch,
                offset,
                duplicate,
            })
        };
        if let Some(used) = self.recall(time, by, key, &purpose)? {
            return posted(used.offset, true);
        }
        if let Body::Input { input, .. } = &draft.body {
            let before = self.log.iter().find(|event| {
                event.author.participant == by.participant
                    && matches!(&event.body, Body::Input { input: other, .. } if other == input)
            });
            if let Some(before) = before {
                let offset = Some(before.offset);
                return refuse(
                    Code::KeyReused,
                    Details {
                        offset,
                        ..Details::default()
                    },
                );
            }
        }
        let offset = self.add(time, by, None, draft.clone());
        self.keep_key(time, by, key, purpose, offset, None);
        posted(offset, false)
    }
}
