//! Names that a command makes up when its caller gave none.

use everwire_core::RunId;

use crate::output::Failure;
use crate::system::SystemRandom;

/// A run id that nobody else has.
pub(crate) fn run_id() -> Result<RunId, Failure> {
    let text = format!("run-{:016x}", SystemRandom::shared().next());
    RunId::parse(&text).map_err(|error| Failure::failed(error.to_string()))
}
