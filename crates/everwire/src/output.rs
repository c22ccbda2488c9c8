//! How a command ends and what it prints: JSON lines on stdout, `CODE: what; advice` on stderr.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use everwire_core::{Advice, Code, Refusal};

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A refusal by a server, or by ourselves in its words.
    Refused(Refusal),
    /// The command line or the configuration is wrong.
    Usage(String),
    /// Something local failed: a file, a pipe, a child.
    Failed(String),
    /// Whoever read our stdout has left, as `head` does: not done, and nothing to say about it.
    ReaderLeft,
}

impl Failure {
    /// The command line or the configuration is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Something local failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// 1 failed, 2 usage, 3 refused by a rule, 4 not authorised, 5 unreachable, 6 not found.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => refusal.code.exit_code(),
            Self::Usage(_) => 2,
            Self::Failed(_) | Self::ReaderLeft => 1,
        }
    }

    /// Says it on stderr and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let line = match self {
            Self::Refused(refusal) => {
                let advice = advice_sentence(refusal.advice());
                format!("{}: {}; {advice}", refusal.code, refusal.message)
            },
            Self::Usage(message) => format!("USAGE: {message}; see --help"),
            Self::Failed(message) => format!("FAILED: {message}; put that right and try again"),
            Self::ReaderLeft => return ExitCode::from(self.exit_code()),
        };
        note(&line);
        ExitCode::from(self.exit_code())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

fn advice_sentence(advice: Advice) -> &'static str {
    match advice {
        Advice::Retry => "try again after a pause",
        Advice::RetryElsewhere => "try again at another node, or see whether this one runs",
        Advice::Reattach => "attach again",
        Advice::Reauthenticate => "get a new token",
        Advice::Stop => "do not repeat it, the answer would be the same",
    }
}

/// One line on stdout, flushed, so that a pipe sees it at once.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::ReaderLeft,
        _ => error.into(),
    })
}

/// A message for a person, on stderr. A closed stderr is nobody's problem.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A name from the command line; wrong ones are usage errors, not server refusals.
pub(crate) fn parsed<T, E: std::fmt::Display>(
    what: &str,
    text: &str,
    result: Result<T, E>,
) -> Result<T, Failure> {
    result.map_err(|error| Failure::usage(format!("{what} {text:?}: {error}")))
}

/// The exit code for a code that is an outcome, not a failure (a denied cancel, say).
pub(crate) fn exit_for(code: Code) -> ExitCode {
    ExitCode::from(code.exit_code())
}
