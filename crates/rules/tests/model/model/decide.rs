//! The model's second half: what each command answers, read out of the lists of the first.

use everwire_core::command::{Appended, CancelOutcome, Duplicate, Published};
use everwire_core::event::{Body, Draft, MessageStatus};
use everwire_core::row::RunState;
use everwire_core::{
    Author, Code, Details, InputId, Key, MessageId, Offset, Outcome, PartId, Refusal, RunEpoch,
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

    pub(super) fn start(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        input: Option<&InputId>,
        key: Option<&Key>,
    ) -> Answer {
        let purpose = Purpose::Start(run.clone(), input.cloned());
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
        self.grant(
            time,
            by,
            run,
            RunEpoch(1),
            Body::RunStarted {
                input: input.cloned(),
            },
            key,
            purpose,
        )
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
        if seen.writer != by.participant {
            return refuse(
                Code::AlreadyClaimed,
                Details {
                    by: Some(seen.writer),
                    ..Details::default()
                },
            );
        }
        let epoch = RunEpoch(seen.epoch.0 + 1);
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
            duplicate,
        }
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
        let Some(seen) = self.seen(run) else {
            return bare(Code::UnknownRun);
        };
        // All epochs of a run belong to one participant as long as only its writer may claim.
        if seen.writer != by.participant {
            return bare(Code::Denied);
        }
        let last = first + drafts.len() as u64 - 1;
        let (known, known_offset) = self.last_seq(run, epoch);
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
        if epoch != seen.epoch {
            let granted = epoch < seen.epoch;
            return refuse(
                Code::StaleEpoch,
                Details {
                    run_epoch: Some(seen.epoch),
                    last_seq: granted.then_some(Seq(known)),
                    last_offset: granted.then_some(known_offset),
                    ..Details::default()
                },
            );
        }
        Self::check_live(&seen)?;
        if self.closed.contains(&(run.clone(), epoch)) {
            return refuse(Code::WrongState, wrong_state(epoch));
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
                    details = wrong_state(epoch);
                }
                return refuse(code, details);
            }
            let mut draft = draft.clone();
            if let Body::PartDelta {
                message,
                part,
                position,
                ..
            } = &mut draft.body
            {
                *position = self.text_of(message, part).len() as u64;
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
        if self.seen(run).expect("it is there").end.is_some() {
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

    fn seal(
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

    pub(super) fn cancel(
        &mut self,
        time: u64,
        by: &Author,
        run: &RunId,
        key: &Key,
        hash: u128,
    ) -> Answer {
        let purpose = Purpose::Cancel(run.clone(), hash);
        let session_epoch = self.epoch();
        let answer = |outcome, duplicate| {
            Ok(Outcome::Cancelled {
                session_epoch,
                outcome,
                duplicate,
            })
        };
        if let Some(used) = self.recall(time, by, Some(key), &purpose)? {
            return answer(
                CancelOutcome::Applied {
                    offset: used.offset,
                },
                true,
            );
        }
        let Some(seen) = self.seen(run) else {
            return answer(CancelOutcome::UnknownRun, false);
        };
        if let Some((state, offset)) = seen.end {
            return answer(CancelOutcome::AlreadyTerminal { state, offset }, false);
        }
        let stamp = Some((run, seen.epoch, None));
        let signal = Body::SignalCancel { run: run.clone() };
        let offset = self.add(time, by, stamp, Draft::new(signal));
        let cancelled = Body::RunCancelled {
            cancel_offset: offset,
        };
        self.add(time, by, stamp, Draft::new(cancelled));
        self.seal(time, by, run, seen.epoch, MessageStatus::Cancelled);
        self.keep_key(time, by, Some(key), purpose, offset, None);
        answer(CancelOutcome::Applied { offset }, false)
    }
}
