//! `make bench`: measures and says so. `--json` for programs, `--hold` to fail below the floor,
//! `--seconds N` for the length of each load, `--only NAME` for one of them, `--smoke` for a look at
//! whether it works.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use everwire_bench::{Pace, Plan, measure};

const USAGE: &str = "usage: everwire-bench [--json] [--hold] [--seconds N] [--only single|paced|pipelined] [--smoke]";

fn say(text: &str) {
    // Whoever read it may have left.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn pace(name: &str) -> Option<Pace> {
    Pace::ALL.into_iter().find(|pace| pace.name() == name)
}

#[tokio::main]
async fn main() -> ExitCode {
    let (mut json, mut hold, mut plan) = (false, false, Plan::whole());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--hold" => hold = true,
            "--smoke" => plan = Plan::smoke(),
            "--only" => match args.next().and_then(|name| pace(&name)) {
                Some(found) => plan.only = Some(found),
                None => {
                    say(USAGE);
                    return ExitCode::from(2);
                },
            },
            "--seconds" => match args.next().and_then(|seconds| seconds.parse().ok()) {
                Some(seconds @ 1..=60) => plan.each = Duration::from_secs(seconds),
                _ => {
                    say(USAGE);
                    return ExitCode::from(2);
                },
            },
            _ => {
                say(USAGE);
                return ExitCode::from(2);
            },
        }
    }
    let report = measure(plan).await;
    if json {
        say(&report.object().to_string());
    } else {
        say(&report.table());
    }
    if hold && !report.is_met() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
