//! Stops and leases on the wire.
//!
//! A cancel has the same flat fields wherever a client says it: in gRPC, in both subprotocols of
//! the edge, in HTTP. Comes in: those fields, unchecked. Goes out: a word of `core` of the right
//! shape, or MALFORMED that names the field.

use std::time::Duration;

use everwire_core::Refusal;
use everwire_core::control::{Cancel, Guard, InputRef, Lease, Target};
use everwire_core::ids::RunId;
use everwire_core::position::Offset;
use everwire_core::row::RunState;

use crate::event::text;
use crate::field::{self, malformed};
use crate::v1;

/// The fields of a cancel, as `everwire.v1.CancelRequest` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CancelFields {
    /// One run.
    pub run: String,
    /// A run and all that work for it.
    pub subtree: String,
    /// The runs that answer an input.
    pub input: String,
    /// The author of the input.
    pub input_by: String,
    /// Every live run.
    pub all: bool,
    /// How long an epilogue may take, milliseconds; 0: there is none.
    pub graceful_ms: u32,
    /// The state that the run must be in.
    pub expect: String,
    /// Runs that started later are spared.
    pub as_of: Option<u64>,
}

impl CancelFields {
    /// A cancel as fields.
    pub fn of(cancel: &Cancel) -> Self {
        let mut fields = Self {
            graceful_ms: cancel.grace_ms.unwrap_or(0),
            expect: cancel.guard.state.map_or("", RunState::as_str).to_owned(),
            as_of: cancel.guard.as_of.map(Offset::get),
            ..Self::default()
        };
        fields.aim(&cancel.target);
        fields
    }

    /// The fields of a target alone.
    pub(crate) fn aimed(target: &Target) -> Self {
        let mut fields = Self::default();
        fields.aim(target);
        fields
    }

    fn aim(&mut self, target: &Target) {
        match target {
            Target::Run(run) => self.run = run.to_string(),
            Target::Subtree(root) => self.subtree = root.to_string(),
            Target::Input(input) => {
                self.input = input.input.to_string();
                self.input_by = text(input.author.as_ref());
            },
            Target::Session => self.all = true,
        }
    }

    /// Reads and checks them.
    pub fn read(&self) -> Result<Cancel, Refusal> {
        let cancel = Cancel {
            target: self.target()?,
            grace_ms: (self.graceful_ms > 0).then_some(self.graceful_ms),
            guard: Guard {
                state: state("expect", &self.expect)?,
                as_of: self
                    .as_of
                    .map(|as_of| field::offset("as_of", as_of))
                    .transpose()?,
            },
        };
        cancel.check_shape()?;
        Ok(cancel)
    }

    /// Reads the target.
    pub(crate) fn target(&self) -> Result<Target, Refusal> {
        let run: Option<RunId> = field::optional_name("run", &self.run)?;
        let subtree: Option<RunId> = field::optional_name("subtree", &self.subtree)?;
        let input = field::optional_name("input", &self.input)?;
        let author = field::optional_name("input_by", &self.input_by)?;
        if author.is_some() && input.is_none() {
            return Err(malformed("input_by", "stands without an input"));
        }
        match (run, subtree, input, self.all) {
            (Some(run), None, None, false) => Ok(Target::Run(run)),
            (None, Some(root), None, false) => Ok(Target::Subtree(root)),
            (None, None, Some(input), false) => Ok(Target::Input(InputRef { input, author })),
            (None, None, None, true) => Ok(Target::Session),
            (None, None, None, false) => Err(malformed("run", "is missing")),
            _ => Err(malformed(
                "run",
                "a signal names one of run, subtree, input and all",
            )),
        }
    }
}

/// A message with the fields of a cancel.
pub trait HoldsCancel {
    /// Writes them.
    fn put_cancel(&mut self, cancel: &Cancel);
    /// Reads and checks them.
    fn cancel(&self) -> Result<Cancel, Refusal>;
}

macro_rules! holds_cancel {
    ($($message:ty),*) => {$(
        impl HoldsCancel for $message {
            fn put_cancel(&mut self, cancel: &Cancel) {
                let fields = CancelFields::of(cancel);
                self.run = fields.run;
                self.subtree = fields.subtree;
                self.input = fields.input;
                self.input_by = fields.input_by;
                self.all = fields.all;
                self.graceful_ms = fields.graceful_ms;
                self.expect = fields.expect;
                self.as_of = fields.as_of;
            }

            fn cancel(&self) -> Result<Cancel, Refusal> {
                let fields = CancelFields {
                    run: self.run.clone(),
                    subtree: self.subtree.clone(),
                    input: self.input.clone(),
                    input_by: self.input_by.clone(),
                    all: self.all,
                    graceful_ms: self.graceful_ms,
                    expect: self.expect.clone(),
                    as_of: self.as_of,
                };
                fields.read()
            }
        }
    )*};
}

holds_cancel!(v1::CancelRequest, crate::edge_v1::Signal);

/// The state that is named, if one is.
pub(crate) fn state(name: &str, word: &str) -> Result<Option<RunState>, Refusal> {
    if word.is_empty() {
        return Ok(None);
    }
    let state = RunState::parse(word);
    let state = state.ok_or_else(|| malformed(name, "is not a word that is known here"))?;
    Ok(Some(state))
}

/// A lease in milliseconds; 0 for the default.
pub fn lease(name: &str, ms: u32) -> Result<Option<Lease>, Refusal> {
    if ms == 0 {
        return Ok(None);
    }
    let lease = Lease::new(Duration::from_millis(ms.into()));
    lease
        .map(Some)
        .map_err(|refusal| malformed(name, refusal.message))
}

/// An input and perhaps its author; both empty for none.
pub fn input_ref(input: &str, author: &str) -> Result<Option<InputRef>, Refusal> {
    let author = field::optional_name("input_by", author)?;
    let input = field::optional_name("input", input)?;
    match (input, author) {
        (Some(input), author) => Ok(Some(InputRef { input, author })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(malformed("input_by", "stands without an input")),
    }
}

/// A target as a message.
pub(crate) fn target_to(target: &Target) -> v1::signal_cancel::Target {
    use v1::signal_cancel::Target as Wire;
    match target {
        Target::Run(run) => Wire::Run(run.to_string()),
        Target::Subtree(root) => Wire::Subtree(root.to_string()),
        Target::Input(input) => Wire::Input(input_target(input)),
        Target::Session => Wire::Session(v1::SessionTarget {}),
    }
}

pub(crate) fn input_target(input: &InputRef) -> v1::InputTarget {
    v1::InputTarget {
        input: input.input.to_string(),
        input_by: text(input.author.as_ref()),
    }
}

pub(crate) fn target_from(target: Option<v1::signal_cancel::Target>) -> Result<Target, Refusal> {
    use v1::signal_cancel::Target as Wire;
    Ok(match target {
        Some(Wire::Run(run)) => Target::Run(field::name("body.run", &run)?),
        Some(Wire::Subtree(root)) => Target::Subtree(field::name("body.subtree", &root)?),
        Some(Wire::Input(input)) => Target::Input(input_from(&input)?),
        Some(Wire::Session(v1::SessionTarget {})) => Target::Session,
        None => return Err(malformed("body.run", "is missing")),
    })
}

pub(crate) fn input_from(input: &v1::InputTarget) -> Result<InputRef, Refusal> {
    Ok(InputRef {
        input: field::name("input", &input.input)?,
        author: field::optional_name("input_by", &input.input_by)?,
    })
}
