//! What every source file owes its reader, and what some must never do.

use everwire_house::{SourceFile, files};

const LINES_MAX: usize = 600;

fn rust() -> Vec<SourceFile> {
    let mut all = files("crates", "rs");
    all.extend(files("tests", "rs"));
    all
}

/// Lines of a file without its `mod tests` at the end and without comments.
fn code(file: &SourceFile) -> impl Iterator<Item = (usize, &str)> {
    let before_tests = file.text.split("\n#[cfg(test)]").next().unwrap_or_default();
    before_tests
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn assert_never(folder: &str, words: &[&str], why: &str) {
    for file in files(folder, "rs") {
        for (number, line) in code(&file) {
            for word in words {
                assert!(
                    !line.contains(word),
                    "{}:{number}: {word}: {why}",
                    file.path
                );
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for file in rust() {
        assert!(
            file.text.starts_with("//!"),
            "{} does not open with //!",
            file.path
        );
    }
}

#[test]
fn files_stay_readable() {
    let mut all = rust();
    for (folder, ending) in [
        ("sdk", "ts"),
        ("demo", "ts"),
        ("demo", "mjs"),
        ("tests", "mjs"),
        ("tests", "py"),
    ] {
        all.extend(files(folder, ending));
    }
    for file in all {
        let lines = file.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", file.path);
    }
}

#[test]
fn the_rules_are_pure() {
    let words = [
        "HashMap",
        "HashSet",
        "std::time",
        "Instant",
        "SystemTime",
        "rand::",
        "std::env",
        "std::fs",
        "std::net",
        "std::thread",
        "async fn",
        ".await",
        "tokio",
    ];
    let why = "the rules read nothing but their rows and their command";
    assert_never("crates/rules/src", &words, why);
}

#[test]
fn the_words_do_nothing() {
    let words = [
        "std::fs",
        "std::net",
        "std::thread",
        "async fn",
        ".await",
        "tokio",
        "prost",
    ];
    assert_never("crates/core/src", &words, "core is words");
}

#[test]
fn time_is_passed_in() {
    let words = [
        "SystemTime::now",
        "std::time::Instant",
        "thread_rng",
        "rand::random",
    ];
    for folder in ["store", "client", "shard", "node", "edge"] {
        let why = "take core::Clock and core::Random: the simulator owns both";
        assert_never(&format!("crates/{folder}/src"), &words, why);
    }
}

#[test]
fn queues_have_bounds() {
    assert_never(
        "crates",
        &["unbounded_channel", "mpsc::unbounded"],
        "name a bound in limits",
    );
}

#[test]
fn nothing_is_left_for_later() {
    assert_never(
        "crates",
        &["todo!(", "unimplemented!("],
        "finish it or file it",
    );
}

/// Architecture invariant 1: a disconnect is never a signal. The edge makes a signal where it
/// reads a client's explicit frame or request, and nowhere else; the code that handles the end
/// of a connection lies in other files and cannot make one.
#[test]
fn only_explicit_requests_make_signals() {
    let made_in: Vec<_> = files("crates/edge/src", "rs")
        .into_iter()
        .filter(|file| code(file).any(|(_, line)| line.contains("Ask::Signal")))
        .map(|file| file.path)
        .collect();
    assert_eq!(made_in, SIGNAL_MAKERS);
}

/// The two rooms in which an explicit request becomes a signal.
const SIGNAL_MAKERS: [&str; 2] = [
    "crates/edge/src/http.rs",
    "crates/edge/src/socket/frames.rs",
];
