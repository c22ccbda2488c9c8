//! Words of control: what a stop is aimed at and how hard it is, and how long a writer may be
//! silent.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::code::{Code, Details, Refusal};
use crate::event::Data;
use crate::ids::{ActionHash, ApprovalId, InputId, ParticipantId, RunId};
use crate::limits::{
    APPROVAL_DEFAULT, APPROVAL_MAX, APPROVAL_MIN, APPROVERS_MAX, GRACE_MAX, LABEL_BYTES_MAX,
    LEASE_DEFAULT, LEASE_MAX, LEASE_MIN,
};
use crate::position::Offset;
use crate::row::RunState;
use crate::vocabulary::Verdict;

/// An input, as others than its author call it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputRef {
    /// Its id, scoped to its author.
    pub input: InputId,
    /// Its author. `None`: the caller knows the id only, so whichever input has it.
    pub author: Option<ParticipantId>,
}

impl InputRef {
    /// An input whose author is not known.
    pub fn of_anybody(input: InputId) -> Self {
        Self {
            input,
            author: None,
        }
    }

    /// Whether both may be the same input.
    pub fn may_be(&self, other: &Self) -> bool {
        let same_author = match (&self.author, &other.author) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        same_author && self.input == other.input
    }
}

/// For how long the writer of a run may be silent before the run is orphaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease(Duration);

impl Lease {
    /// The lease of whoever asks for none.
    pub const DEFAULT: Self = Self(LEASE_DEFAULT);

    /// A lease of so long: [`LEASE_MIN`] to [`LEASE_MAX`], in whole milliseconds.
    pub fn new(length: Duration) -> Result<Self, Refusal> {
        if (LEASE_MIN..=LEASE_MAX).contains(&length) {
            return Ok(Self(length));
        }
        let message = format!(
            "a lease is {} to {} s long",
            LEASE_MIN.as_secs(),
            LEASE_MAX.as_secs()
        );
        Err(Refusal::new(Code::Malformed, message))
    }

    /// A lease that stands in the log: whoever proposed it knew the bounds of its day.
    pub fn stored(ms: u32) -> Option<Self> {
        (ms > 0).then(|| Self(Duration::from_millis(ms.into())))
    }

    /// How long it is.
    pub fn length(self) -> Duration {
        self.0
    }

    /// The same in milliseconds.
    pub fn ms(self) -> u32 {
        u32::try_from(self.0.as_millis()).expect("the longest lease fits")
    }
}

/// What a cancel is aimed at. It hits the runs of this that are live when it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One run, and never its children.
    Run(RunId),
    /// A run, which may have ended, and all that work for it.
    Subtree(RunId),
    /// The runs that answer an input; also those that will start soon.
    Input(InputRef),
    /// Every run of the session.
    Session,
}

impl Target {
    /// The run that it names.
    pub fn run(&self) -> Option<&RunId> {
        match self {
            Self::Run(run) | Self::Subtree(run) => Some(run),
            Self::Input(_) | Self::Session => None,
        }
    }
}

/// What must be so for a stop to hit, so that a late one does not hit what came since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The named run is in this state.
    pub state: Option<RunState>,
    /// Runs that started later are spared: what whoever pressed had seen. Not with an input.
    pub as_of: Option<Offset>,
}

/// A stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// What it is aimed at.
    pub target: Target,
    /// The writer may still append an epilogue for so long, milliseconds; `None`: nothing at all.
    pub grace_ms: Option<u32>,
    /// What must be so.
    pub guard: Guard,
}

impl Cancel {
    /// A hard stop without conditions.
    pub fn of(target: Target) -> Self {
        Self {
            target,
            grace_ms: None,
            guard: Guard::default(),
        }
    }

    /// A hard stop of one run, whatever its state.
    pub fn run(run: RunId) -> Self {
        Self::of(Target::Run(run))
    }

    /// Whether the first rules knew it.
    pub(crate) fn is_plain(&self) -> bool {
        let alone = matches!(self.target, Target::Run(_));
        alone && self.grace_ms.is_none() && self.guard == Guard::default()
    }

    /// Checks what needs no state. Call it where bytes stop being untrusted.
    pub fn check_shape(&self) -> Result<(), Refusal> {
        let longest = GRACE_MAX.as_millis();
        if self
            .grace_ms
            .is_some_and(|grace| grace == 0 || u128::from(grace) > longest)
        {
            let details = Details {
                limit: u64::try_from(longest).ok(),
                ..Details::default()
            };
            let message = "a graceful stop leaves 1 ms to 30 s";
            return Err(Refusal::with(Code::Malformed, message, details));
        }
        if self.guard.as_of.is_some() && matches!(self.target, Target::Input(_)) {
            // It hits runs to come, and this would spare just those.
            let message = "a stop of an input spares no later run";
            return Err(Refusal::new(Code::Malformed, message));
        }
        if self.guard.state.is_some() && self.target.run().is_none() {
            let message = "a state is expected of a run, and the target names none";
            return Err(Refusal::new(Code::Malformed, message));
        }
        Ok(())
    }
}

/// A run's request for an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its id; unique in its session.
    pub approval: ApprovalId,
    /// What is to be done, for people; at most 256 bytes.
    pub action: String,
    /// What whoever answers must have seen.
    pub action_hash: ActionHash,
    /// Who may answer; empty: whoever has the right.
    pub approvers: Vec<ParticipantId>,
    /// How long it waits for an answer, milliseconds; 0 in a draft for [`APPROVAL_DEFAULT`].
    pub within_ms: u32,
    /// When it expires; stamped by the server, so a draft holds 0.
    pub deadline: Timestamp,
    /// What it stands for when nobody answers in time.
    pub on_expiry: Verdict,
    /// What is to be done, for programs.
    pub data: Option<Data>,
}

impl Request {
    /// How long it waits, milliseconds, when a draft says `within_ms`.
    pub fn waits_ms(within_ms: u32) -> u32 {
        if within_ms > 0 {
            return within_ms;
        }
        u32::try_from(APPROVAL_DEFAULT.as_millis()).expect("an hour fits")
    }

    /// Checks what needs no state.
    pub(crate) fn check_shape(&self) -> Result<(), Refusal> {
        let within = Duration::from_millis(Self::waits_ms(self.within_ms).into());
        if !(APPROVAL_MIN..=APPROVAL_MAX).contains(&within) {
            let message = "an approval waits for 1 s to 30 days";
            return Err(Refusal::new(Code::Malformed, message));
        }
        if self.approvers.len() > APPROVERS_MAX {
            let details = Details {
                limit: u64::try_from(APPROVERS_MAX).ok(),
                ..Details::default()
            };
            let message = "an approval is kept to too many participants";
            return Err(Refusal::with(Code::TooLarge, message, details));
        }
        Ok(())
    }
}

/// Somebody's answer to a request for an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub approval: ApprovalId,
    /// Yes or no.
    pub verdict: Verdict,
    /// The action that was seen.
    pub action_hash: ActionHash,
    /// What else is to be said; at most 256 bytes.
    pub note: Option<String>,
}

/// A signal that ends no run. Stops are [`Cancel`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Runs are to wait.
    Pause(Target),
    /// Runs are to go on.
    Resume(Target),
    /// An approval is given or denied.
    Answer(Answer),
}

impl Signal {
    /// The word on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Answer(answer) => answer.verdict.as_str(),
        }
    }

    /// Checks what needs no state. Call it where bytes stop being untrusted.
    pub fn check_shape(&self) -> Result<(), Refusal> {
        match self {
            Self::Pause(Target::Input(_)) | Self::Resume(Target::Input(_)) => {
                let message = "an input can be neither paused nor resumed";
                Err(Refusal::new(Code::Malformed, message))
            },
            Self::Answer(Answer {
                note: Some(note), ..
            }) if note.len() > LABEL_BYTES_MAX => {
                let details = Details {
                    limit: u64::try_from(LABEL_BYTES_MAX).ok(),
                    ..Details::default()
                };
                Err(Refusal::with(
                    Code::TooLarge,
                    "the note is too long",
                    details,
                ))
            },
            Self::Pause(_) | Self::Resume(_) | Self::Answer(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(author: Option<&str>) -> InputRef {
        InputRef {
            input: InputId::parse("i").unwrap(),
            author: author.map(|author| ParticipantId::parse(author).unwrap()),
        }
    }

    #[test]
    fn an_input_of_an_unknown_author_may_be_anybodys() {
        assert!(input(None).may_be(&input(Some("ann"))));
        assert!(input(Some("ann")).may_be(&input(Some("ann"))));
        assert!(!input(Some("ann")).may_be(&input(Some("bob"))));
    }

    #[test]
    fn leases_and_graces_have_bounds() {
        assert!(Lease::new(LEASE_MIN).is_ok());
        assert!(Lease::new(LEASE_MAX).is_ok());
        assert!(Lease::new(LEASE_MIN - Duration::from_millis(1)).is_err());
        assert!(Lease::new(LEASE_MAX + Duration::from_millis(1)).is_err());
        let grace = |ms| {
            let stop = Cancel {
                grace_ms: Some(ms),
                ..Cancel::of(Target::Session)
            };
            stop.check_shape().is_ok()
        };
        assert_eq!(
            [0, 1, 30_000, 30_001].map(grace),
            [false, true, true, false]
        );
    }

    #[test]
    fn a_stop_of_an_input_spares_no_later_run() {
        let as_of = |target| Cancel {
            guard: Guard {
                state: None,
                as_of: Some(Offset::ZERO),
            },
            ..Cancel::of(target)
        };
        assert!(as_of(Target::Session).check_shape().is_ok());
        assert!(as_of(Target::Input(input(None))).check_shape().is_err());
    }

    #[test]
    fn only_a_named_run_has_a_state_to_expect() {
        let expecting = |target| Cancel {
            guard: Guard {
                state: Some(RunState::Running),
                as_of: None,
            },
            ..Cancel::of(target)
        };
        let run = || RunId::parse("r").unwrap();
        assert!(expecting(Target::Run(run())).check_shape().is_ok());
        assert!(expecting(Target::Subtree(run())).check_shape().is_ok());
        assert!(expecting(Target::Session).check_shape().is_err());
    }
}
