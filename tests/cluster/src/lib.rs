//! What the cluster tests share: load on every shard, readers that go on by themselves, and the
//! check that everything acked is on every replica with the same bytes.
//!
//! One cluster at a time: three nodes in debug builds fill a small machine, and a test that
//! measures must not share it.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests says what went wrong by failing the test"
)]

pub mod load;
pub mod reading;
pub mod replicas;

pub use load::Load;
pub use reading::Reading;

use tokio::sync::{Mutex, MutexGuard};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The right to run a cluster; given back when dropped, so take it first.
pub async fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}
