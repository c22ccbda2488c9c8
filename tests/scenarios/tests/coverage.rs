//! The page, the code and the scenario files say the same: every row of `docs/protocol/rules.md`
//! is shown by a scenario with the answer that the page gives, every code of the rules is
//! reached, and each with the facts that the page lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use everwire_core::Code;
use everwire_scenarios::script::{Entry, Script};

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("tests/scenarios lies two below the root")
        .to_owned()
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/protocol/rules.md")).expect("the page")
}

/// Cells of all table rows of the page that begin with a word in backquotes.
fn rows(page: &str) -> Vec<(String, Vec<String>)> {
    let rows = page.lines().filter_map(|line| {
        let line = line.strip_prefix("| `")?;
        let (name, rest) = line.split_once('`')?;
        let cells = rest
            .trim_start_matches(" |")
            .trim_end_matches('|')
            .split(" | ");
        Some((
            name.to_owned(),
            cells.map(|cell| cell.trim().to_owned()).collect(),
        ))
    });
    rows.collect()
}

/// Rows that have a name like `claim.foreign` → the first word in backquotes of the outcome.
fn rules() -> BTreeMap<String, Option<String>> {
    let kinds: BTreeSet<_> = everwire_core::Kind::ALL
        .iter()
        .map(|kind| kind.as_str())
        .collect();
    let rules = rows(&page()).into_iter().filter_map(|(name, cells)| {
        if !name.contains('.') || kinds.contains(name.as_str()) {
            return None;
        }
        let outcome = cells.last().expect("a row has cells").clone();
        let word = outcome.split('`').nth(1).map(str::to_owned);
        Some((name, word))
    });
    rules.collect()
}

/// The first word of each answer of an expectation: `duplicate …; committed …` has two. Of an
/// event it is the kind.
fn words(expected: &[String]) -> Vec<&str> {
    let answers = expected.iter().flat_map(|line| line.split("; "));
    let is_word = |word: &&str| word.parse::<u64>().is_err();
    answers
        .filter_map(|answer| answer.split(' ').find(is_word))
        .collect()
}

/// Whether time alone does something here: what it did is what the next command answers.
fn passes_time(command: &str) -> bool {
    command.starts_with("advance ")
}

fn answers() -> Vec<String> {
    let entries = Script::all()
        .expect("scenario files")
        .into_iter()
        .flat_map(|script| script.entries);
    let answers = entries.filter_map(|entry| match entry {
        Entry::Command { expected, .. } => Some(expected),
        Entry::Note(_) => None,
    });
    answers.flatten().collect()
}

#[test]
fn every_file_says_what_it_is_about() {
    for script in Script::all().expect("scenario files") {
        let purpose = script.purpose().unwrap_or_default();
        let is_sentence =
            purpose.len() > 30 && purpose.ends_with('.') && !purpose.starts_with("rule:");
        assert!(is_sentence, "{}: {purpose:?}", script.name);
    }
}

#[test]
fn every_rule_of_the_page_is_shown_with_its_answer() {
    let rules = rules();
    assert!(rules.len() > 120, "the page has {} rules", rules.len());
    let mut shown = BTreeSet::new();
    for script in Script::all().expect("scenario files") {
        let mut tag = None;
        for entry in &script.entries {
            match entry {
                Entry::Note(note) => {
                    if let Some(name) = note.strip_prefix("# rule: ") {
                        assert!(
                            rules.contains_key(name),
                            "{}: {name} is not on the page",
                            script.name
                        );
                        tag = Some(name.to_owned());
                    }
                },
                Entry::Command { text, .. } if passes_time(text) => {},
                Entry::Command { text, expected, .. } => {
                    let Some(name) = tag.take() else { continue };
                    if let Some(word) = rules.get(&name).expect("checked above") {
                        let words = words(expected);
                        let context = format!("{}: {text}: {name} answers {word}", script.name);
                        assert!(words.contains(&word.as_str()), "{context}, not {words:?}");
                    }
                    shown.insert(name);
                },
            }
        }
        assert_eq!(tag, None, "{}: a rule without a command", script.name);
    }
    let missing: Vec<_> = rules.keys().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "no scenario shows {missing:?}");
}

/// The codes table of the page: code → facts.
fn codes() -> BTreeMap<Code, BTreeSet<String>> {
    let rows = rows(&page()).into_iter().filter_map(|(name, cells)| {
        let code = Code::parse(&name)?;
        let details = cells.last().expect("a row has cells");
        let facts = details.split('`').skip(1).step_by(2).map(str::to_owned);
        Some((code, facts.collect()))
    });
    rows.collect()
}

#[test]
fn the_page_lists_the_codes_of_the_source() {
    let mut source = String::new();
    for folder in ["crates/rules/src", "crates/rules/src/session"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("the rules") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                source.push_str(&std::fs::read_to_string(path).expect("source files are UTF-8"));
            }
        }
    }
    // An attach is answered `gone` by a type of its own.
    let given = Code::ALL
        .iter()
        .filter(|code| source.contains(&format!("Code::{code:?},")) || **code == Code::Gone);
    let given: BTreeSet<_> = given.copied().collect();
    let listed: BTreeSet<_> = codes().into_keys().collect();
    assert_eq!(given, listed);
}

#[test]
fn every_code_is_reached_with_the_facts_of_the_page() {
    let mut reached: BTreeMap<Code, BTreeSet<String>> = BTreeMap::new();
    for answer in answers() {
        let mut words = answer.split(' ');
        let Some(code) = words.next().and_then(Code::parse) else {
            continue;
        };
        let facts = reached.entry(code).or_default();
        for word in words {
            let (fact, _) = word.split_once('=').expect("facts follow a code");
            // An answer writes a session epoch by the name that the file gave it.
            let fact = if fact == "epoch" {
                "session_epoch"
            } else {
                fact
            };
            facts.insert(fact.to_owned());
        }
    }
    assert_eq!(reached, codes());
}
