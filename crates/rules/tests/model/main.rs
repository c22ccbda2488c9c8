//! The rules from outside: against a plain model, against their own invariants, refusal by
//! refusal.
//!
//! `model` is a second implementation, written differently on purpose: it keeps nothing but the
//! log and reads every answer out of it. `random` makes sequences of commands, `properties`
//! compares, `refusals` shows each code once, `rows` what is written.

mod cuts;
#[cfg(feature = "test-poison")]
mod frozen;
mod intent;
mod model;
mod properties;
mod random;
mod refusals;
mod resends;
mod resolve;
mod rows;
mod timers;
mod waiting;
mod world;
