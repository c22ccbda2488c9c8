//! The machine and the moment: without them a figure says nothing.

use std::fs::File;
use std::io::Write as _;
use std::ops::{AddAssign, Sub};
use std::time::Duration;

use everwire_testkit::machine::Quiet;
use everwire_testkit::{process, tokens};
use nix::unistd::Pid;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::times::Percentiles;

/// How many bare syncs are measured.
const BARE_SYNCS: usize = 300;

/// A number that counts something.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a scrape writes counts as floating point"
)]
pub(crate) fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Where and when it was measured.
pub(crate) struct Machine {
    quiet: Quiet,
    /// When it began.
    pub(crate) date: String,
    /// What `everwire --version` says: the commit is in it.
    pub(crate) version: String,
    /// Cores and their kind.
    pub(crate) cores: String,
    /// How long a bare sync of the same disk takes, before anything else runs there.
    pub(crate) bare_sync: Option<Percentiles>,
    /// Whether this program, and so the servers beside it, were built with optimisation.
    pub(crate) optimised: bool,
}

impl Machine {
    /// Looks around, and watches from now on.
    pub(crate) async fn watch() -> Self {
        let seconds = i64::try_from(tokens::now().0 / 1000).expect("a time of this age");
        let date = OffsetDateTime::from_unix_timestamp(seconds).expect("a time of this age");
        let version = process::command(&["--version"]).output().await;
        let version = version.expect("the binary runs").stdout;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            quiet: Quiet::watch(),
            date: date.format(&Rfc3339).expect("a date"),
            version: String::from_utf8_lossy(&version).trim().to_owned(),
            cores: format!("{cores} x {}", model()),
            bare_sync: tokio::task::spawn_blocking(bare_syncs).await.ok().flatten(),
            optimised: !cfg!(debug_assertions),
        }
    }

    /// How busy it was meanwhile.
    pub(crate) fn quiet(&self) -> String {
        self.quiet.describe()
    }
}

/// Appends a few bytes to a file and syncs it, again and again: what any log must do at least.
fn bare_syncs() -> Option<Percentiles> {
    let folder = process::folder();
    let mut file = File::create(folder.path().join("syncs")).ok()?;
    let mut times = Vec::new();
    for _ in 0..BARE_SYNCS {
        file.write_all(&[7; 400]).ok()?;
        let began = Instant::now();
        file.sync_data().ok()?;
        times.push(began.elapsed());
    }
    Percentiles::of(times)
}

fn model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let model = lines.find(|(key, _)| key.trim() == "model name");
    model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Processor time that processes have used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used(Duration);

impl Used {
    /// Of a process so far, user and system; nothing where nobody tells.
    pub(crate) fn of(pid: Pid) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may hold anything but ends with the last parenthesis.
        let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        // A hundred ticks a second, on every Linux that anybody runs.
        Self(Duration::from_millis(ticks * 10))
    }

    /// As a share of one core.
    pub(crate) fn share(self, of: Duration) -> f64 {
        self.0.as_secs_f64() / of.as_secs_f64()
    }
}

impl AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sub for Used {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}
