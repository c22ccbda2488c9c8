//! One seed, twice: the same log, byte for byte, and nothing violated in it. Another seed:
//! another log. A world whose drives lie: found.
//!
//! Each play is a process of its own. `EVERWIRE_SEED` and `EVERWIRE_SEEDS` choose which seed is
//! the first and how many there are.

use std::process::{Child, Command, Output, Stdio};

fn start(seed: u64, flags: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwire-simulate"));
    command.arg(seed.to_string()).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the simulation runs")
}

/// Plays a seed twice, at the same time: the plays do not know of each other. The machines' own
/// logs are looked at in one of them: looking changes nothing.
fn both(seed: u64) -> [Output; 2] {
    let looked_at = ["--wires", "--tell", "info"];
    let plays = [start(seed, &["--wires"]), start(seed, &looked_at)];
    // A pipe holds little: each is read by a thread of its own.
    let plays = plays.map(|play| std::thread::spawn(|| play.wait_with_output()));
    plays.map(|play| play.join().expect("no panic").expect("it ends"))
}

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok().filter(|text| !text.is_empty());
    set.map_or(default, |text| text.parse().expect("a number"))
}

/// The end of a log without its wires, for whoever has to look into it.
fn end(output: &Output) -> String {
    let log = String::from_utf8_lossy(&output.stdout);
    let hum = |line: &&str| line.contains(" wire ") || line.contains(" disk ");
    let lines: Vec<&str> = log.lines().filter(|line| !hum(line)).collect();
    let skipped = lines.len().saturating_sub(80);
    let shown: Vec<&str> = lines.into_iter().skip(skipped).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    format!("{}\n{errors}", shown.join("\n"))
}

#[test]
fn one_seed_twice_is_one_log_and_sound_and_another_seed_is_another() {
    let first = number("EVERWIRE_SEED", 1);
    let mut digests = Vec::new();
    for seed in first..first + number("EVERWIRE_SEEDS", 2) {
        let [one, other] = both(seed);
        assert!(one.status.success(), "seed {seed}:\n{}", end(&one));
        let logs = [&one, &other].map(|output| String::from_utf8_lossy(&output.stdout));
        let mut lines = logs[0].lines().zip(logs[1].lines()).enumerate();
        let differs = lines.find(|(_, (one, other))| one != other);
        assert!(differs.is_none(), "seed {seed}: {differs:?}");
        assert_eq!(one.stdout.len(), other.stdout.len(), "seed {seed}");
        let last = logs[0].lines().last().unwrap_or_default().to_owned();
        println!("seed {seed}: {last}");
        digests.push(last);
    }
    let all = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), all, "two seeds gave one log");
}

#[test]
fn drives_that_lie_about_their_syncs_are_found() {
    let played = start(1, &["--lie"]).wait_with_output().expect("it ends");
    let log = String::from_utf8_lossy(&played.stdout);
    assert_eq!(played.status.code(), Some(1), "{}", end(&played));
    let lost = |line: &str| line.contains("violated: ") && line.contains("was acked at");
    assert!(log.lines().any(lost), "{}", end(&played));
}
