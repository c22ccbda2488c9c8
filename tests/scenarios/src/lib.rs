//! Scenario files: the rules and the protocol as text, with expected answers as text.
//!
//! A file is read ([`script`]), its commands become steps ([`step`]), a [`Subject`] performs
//! them, and what it answered is written down the same way for every subject ([`answer`]).
//! [`rules::Rules`] is the subject without a server: the pure rules on rows in memory. The format
//! is described in `tests/scenarios/README.md`.

pub mod answer;
mod draft;
mod leader;
pub mod rules;
pub mod runner;
pub mod script;
pub mod step;
pub mod words;

pub use answer::Answer;
pub use runner::{Need, Subject};
pub use step::{Action, Step};
