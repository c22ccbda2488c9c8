//! A real node on a loopback port, spoken to with raw gRPC clients.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a failure is the test's failure"
)]

mod attach;
mod bad_input;
mod codes;
mod identity;
mod lifecycle;
mod publish;
mod runs;
mod slow;
mod support;
mod waiting;
