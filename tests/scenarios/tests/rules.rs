//! Every scenario file against the rules alone. Prints what differs and, as its last line,
//! `N passed, N failed`. `EVERWIRE_REGENERATE=1` writes the answers into the files instead; read
//! the diff before you keep it.

use std::process::ExitCode;

use everwire_scenarios::rules::Rules;
use everwire_scenarios::runner::{Report, run};
use everwire_scenarios::script::Script;

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the test's report"
)]
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    quiet_about_poison();
    let regenerate = std::env::var("EVERWIRE_REGENERATE").is_ok_and(|word| word == "1");
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let scripts = match Script::all() {
        Ok(scripts) => scripts,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        },
    };
    let (mut passed, mut failed) = (0, 0);
    for script in scripts {
        if !wanted.is_empty() && !wanted.iter().any(|word| script.name.contains(word)) {
            continue;
        }
        let (report, given) = run(&script, &mut Rules::default()).await;
        if regenerate && let Err(error) = std::fs::write(&given.path, given.text()) {
            eprintln!("{}: {error}", given.path.display());
            return ExitCode::FAILURE;
        }
        match report {
            Report::Passed => passed += 1,
            Report::Skipped(need) => {
                println!("{}: the rules alone must offer {need}", script.name);
                failed += 1;
            },
            Report::Failed(failures) => {
                failures.iter().for_each(|failure| println!("{failure}"));
                failed += 1;
            },
        }
    }
    println!("{passed} passed, {failed} failed");
    // A filter may mean another test binary; no file at all means a broken checkout.
    if failed > 0 || (passed == 0 && wanted.is_empty()) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A panic that the rules catch is an answer, and no noise in the report.
fn quiet_about_poison() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !everwire_rules::catches_panics() {
            report(info);
        }
    }));
}
