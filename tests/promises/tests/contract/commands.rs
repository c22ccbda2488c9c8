//! The command line: help, examples, exit codes, what is not there yet; status, limits, selftest.

use std::collections::BTreeSet;

use everwire_testkit::process::{command, fixed_addr, json_lines};
use everwire_testkit::{root, run, run_with_input, tokens};
use serde_json::Value;

use crate::{Dev, RULES, assert_refused, fields, object, page, stdout};

/// A row of the page's table: the command and the options that it names.
#[derive(Debug)]
struct Row {
    path: Vec<String>,
    options: BTreeSet<String>,
}

/// The rows of the table; `create|list` makes two of one.
fn rows() -> Vec<Row> {
    let page = page();
    let rows = page.lines().filter_map(|line| {
        let line = line.strip_prefix("| `everwire ")?;
        // A bar inside a code span is escaped.
        let (does, said) = line.split_once("` | ")?;
        Some((does.replace("\\|", "|"), said.contains("`--json`")))
    });
    rows.flat_map(|(does, has_json)| {
        let mut options = options(&does);
        if has_json {
            options.insert("--json".to_owned());
        }
        let words = does.split(' ');
        let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '|');
        let words: Vec<_> = words.take_while(is_name).collect();
        let last = words.last().copied().unwrap_or_default();
        let all: Vec<_> = last.split('|').map(str::to_owned).collect();
        all.into_iter()
            .map(|last| {
                let mut path: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
                path.pop();
                path.push(last);
                Row {
                    path,
                    options: options.clone(),
                }
            })
            .collect::<Vec<_>>()
    })
    .collect()
}

/// The `--options` in a text.
fn options(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
    let words = text.split(|c| !is_part(c));
    let options = words.filter(|word| word.starts_with("--") && word.len() > 2);
    options.map(str::to_owned).collect()
}

async fn help(path: &[String]) -> String {
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    let output = command(&path).arg("--help").output().await;
    let output = output.expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "{path:?}");
    assert!(output.stderr.is_empty(), "{path:?}");
    stdout(&output)
}

#[tokio::test]
async fn every_command_of_the_page_has_its_options_and_an_example() {
    let rows = rows();
    assert!(rows.len() >= 16, "{rows:?}");
    for row in rows {
        let help = help(&row.path).await;
        for option in &row.options {
            assert!(help.contains(option), "{:?}: {option}", row.path);
        }
        let example = format!("\n  everwire {}", row.path.join(" "));
        let is_shown = help
            .split_once("Example:")
            .is_some_and(|(_, examples)| examples.contains(&row.path.join(" ")));
        assert!(is_shown, "no example{example}:\n{help}");
    }
}

#[tokio::test]
async fn the_page_names_every_command() {
    let known: BTreeSet<_> = rows().iter().map(|row| row.path.join(" ")).collect();
    for parent in ["", "session", "agent"] {
        let path: Vec<_> = parent.split_whitespace().map(str::to_owned).collect();
        let help = help(&path).await;
        let (_, list) = help.split_once("Commands:\n").expect("a list of commands");
        let names = list.lines().take_while(|line| !line.is_empty());
        let names = names.filter_map(|line| line.split_whitespace().next());
        for name in names.filter(|name| *name != "help") {
            let name = format!("{parent} {name}").trim_start().to_owned();
            let is_known = known.contains(&name)
                || known
                    .iter()
                    .any(|known| known.starts_with(&format!("{name} ")));
            assert!(is_known, "{name} is not on the page");
        }
    }
}

#[tokio::test]
async fn every_option_of_a_server_has_its_key_in_the_environment() {
    for server in ["dev", "node", "edge"] {
        let help = help(&[server.to_owned()]).await;
        let section = server.to_uppercase();
        let told = help
            .lines()
            .filter(|line| line.trim_start().starts_with("--"));
        let mut seen = 0;
        for line in told {
            let option = options(line).into_iter().next().expect("an option");
            let key = match option.as_str() {
                "--print-config" => continue,
                "--config" => "EVERWIRE_CONFIG_FILE".to_owned(),
                "--log-format" | "--log-level" => {
                    format!("EVERWIRE_{}", key(&option))
                },
                _ => format!("EVERWIRE_{section}_{}", key(&option)),
            };
            seen += 1;
            assert!(help.contains(&format!("[env: {key}=")), "{server} {option}");
        }
        assert!(seen >= 6, "{server}: {help}");
    }
}

fn key(option: &str) -> String {
    option
        .trim_start_matches('-')
        .to_uppercase()
        .replace('-', "_")
}

#[tokio::test]
async fn examples_run_as_they_stand() {
    let dev = Dev::start().await;
    let (private, public) = everwire_proto::token::Signer::generate();
    std::fs::write(dev.data().join("auth.key"), private).expect("a writable folder");
    std::fs::write(dev.data().join("auth.key.pub"), public).expect("a writable folder");
    std::os::unix::fs::symlink(root().join("demo"), dev.data().join("demo")).expect("a link");
    let binary = everwire_testkit::everwire();
    let bin = binary.parent().expect("a folder").to_owned();
    let shell = format!("PATH={}:$PATH; ", bin.display());
    dev.piped(
        &["publish", "demo", "--run", "r1", "--keep-open"],
        "hello\n",
    )
    .await;

    let runnable = [
        "token",
        "session create",
        "session list",
        "session show",
        "session unfreeze",
        "publish",
    ];
    let rest = [
        "tail",
        "cancel",
        "agent replay",
        "status",
        "limits",
        "session delete",
    ];
    let mut count = 0;
    for path in runnable.iter().chain(&rest) {
        let path: Vec<_> = path.split(' ').map(str::to_owned).collect();
        let help = help(&path).await;
        let (_, examples) = help.split_once("Example:\n").expect("an example");
        let lines = examples.lines().map(str::trim);
        // What follows for ever is somebody else's test.
        let ends = |line: &&str| {
            line.contains("everwire")
                && !["--follow", "--answer-inputs"]
                    .iter()
                    .any(|flag| line.contains(flag))
        };
        for line in lines.filter(ends) {
            let output = tokio::process::Command::new("bash")
                .arg("-c")
                .arg(format!("{shell}{line}"))
                .current_dir(dev.data())
                .env("EVERWIRE_ADDR", &dev.server.grpc)
                .env("EVERWIRE_TOKEN", &dev.token)
                .output()
                .await;
            let output = output.expect("bash runs");
            assert!(
                output.status.success(),
                "{line}: {}",
                crate::stderr(&output)
            );
            count += 1;
        }
    }
    assert!(count >= 11, "{count} examples");
}

#[tokio::test]
async fn what_is_not_there_yet_is_a_usage_error() {
    for line in [
        "cluster transfer",
        "node replace",
        "node recover --accept-loss",
        "bench",
        "node --seeds a,b",
        "node --peer 127.0.0.1:1",
        "cancel s --all --run r",
        "cancel s --run r --input-by ann",
        "cancel s --all --expect running",
        "cancel s --run r --graceful 30001",
        "tail s --form assembled",
        "tail",
        "publish s --run-epoch 1",
        "cancel s",
    ] {
        let args: Vec<_> = line.split(' ').collect();
        let output = command(&args).output().await.expect("the binary runs");
        assert_refused(&output, 2, "USAGE");
        assert!(output.stdout.is_empty(), "{line}");
    }
}

#[tokio::test]
async fn every_exit_code_is_reached() {
    let dev = Dev::start().await;
    let addr = &dev.server.grpc;
    dev.done(&["session", "create", "here", "--json"]).await;
    let publish = ["publish", "here", "--run", "r1"];
    dev.piped(&publish, "hello\n").await;

    // A port that is taken is nobody's usage error.
    let taken = ["dev", "--data", "unused", "--admin", &dev.server.admin];
    let output = command(&taken).output().await.expect("the binary runs");
    assert_refused(&output, 1, "FAILED");
    for args in [
        &["session", "show", "not a name"][..],
        &["session", "show", "here", "--token-file", "not/there"],
        &["token", "--namespace", "n"],
        &["agent", "replay", "here", "--from", "not/there"],
    ] {
        let output = command(args).env("EVERWIRE_ADDR", addr).output().await;
        assert_refused(&output.expect("the binary runs"), 2, "USAGE");
    }
    assert_refused(&dev.run(&publish).await, 3, "RUN_ENDED");
    let nobody = command(&["session", "show", "here"])
        .env("EVERWIRE_ADDR", addr)
        .current_dir(dev.data())
        .output()
        .await;
    assert_refused(&nobody.expect("the binary runs"), 4, "UNAUTHENTICATED");
    let show = ["session", "show", "here"];
    let forged = run(addr, &tokens::forged("eve"), &show).await;
    assert_refused(&forged, 4, "UNAUTHENTICATED");
    let late = run(addr, &tokens::expired(dev.data(), "ann"), &show).await;
    assert_refused(&late, 4, "TOKEN_EXPIRED");
    let nothing = tokens::mint(
        dev.data(),
        &tokens::claims("ann", everwire_core::ParticipantKind::User, &[]),
    );
    assert_refused(&run(addr, &nothing, &show).await, 4, "DENIED");
    for args in [
        &["session", "show", "nowhere"][..],
        &["session", "delete", "nowhere"],
        &["tail", "nowhere"],
    ] {
        assert_refused(&dev.run(args).await, 6, "UNKNOWN_SESSION");
    }
    // Nobody listens there: the kernel gives this port to no client.
    let nowhere = fixed_addr();
    let output = run(&nowhere, &dev.token, &show).await;
    assert_eq!(output.status.code(), Some(5), "{}", crate::stderr(&output));
    let said = crate::stderr(&output);
    let code = said.split(':').next().unwrap_or_default().to_owned();
    assert_refused(&output, 5, &code);
}

#[tokio::test]
async fn the_version_says_the_commit() {
    let output = command(&["--version"]).output().await.expect("it runs");
    let text = stdout(&output);
    let (name, rest) = text.trim().split_once(' ').expect("a name and a version");
    let (version, commit) = rest.split_once(' ').expect("a version and a commit");
    assert_eq!(name, "everwire");
    assert!(version.split('.').count() == 3, "{text}");
    assert!(commit.starts_with('(') && commit.len() > 8, "{text}");
}

#[tokio::test]
async fn status_and_limits_have_their_shapes() {
    let dev = Dev::start().await;
    let status = object(&dev.done(&["status", "--json"]).await);
    let names = ["cluster", "metadata_rules", "nodes", "shards", "version"];
    assert_eq!(fields(&status), names);
    assert_eq!(status["metadata_rules"], RULES);
    let of = |name: &str| status[name].as_array().expect("a list").clone();
    assert_eq!(of("nodes").len(), 1);
    for node in of("nodes") {
        let names = [
            "addr", "alive", "holds", "id", "leads", "leaving", "metadata", "meters", "name",
            "rules",
        ];
        assert_eq!(fields(&node), names);
        assert_eq!(node["rules"], RULES);
        assert_eq!(
            (&node["leads"], &node["holds"]),
            (&of("shards").len().into(), &of("shards").len().into())
        );
        assert_eq!(
            (&node["metadata"], &node["leaving"]),
            (&"leader".into(), &false.into())
        );
        let names = [
            "disk_available",
            "disk_total",
            "elections",
            "queued_bytes",
            "sync_p50_us",
            "sync_p99_us",
            "syncs",
        ];
        assert_eq!(fields(&node["meters"]), names);
        assert!(node["meters"]["disk_total"].as_u64() > node["meters"]["disk_available"].as_u64());
        assert!(node["meters"]["syncs"].as_u64() > Some(0), "{node}");
        assert_eq!(node["addr"], Value::from(dev.server.grpc.as_str()));
        assert_eq!(node["alive"], Value::from(true));
    }
    assert!(!of("shards").is_empty());
    for shard in of("shards") {
        let names = [
            "applied",
            "committed",
            "followers",
            "id",
            "lag",
            "leader",
            "replicas",
            "rules",
            "term",
        ];
        assert_eq!(fields(&shard), names);
        assert_eq!(shard["rules"], RULES);
        assert_eq!(shard["leader"], of("nodes")[0]["id"]);
        assert_eq!(shard["applied"], shard["committed"], "{shard}");
    }
    dev.done(&["status"]).await;

    let limits = json_lines(&dev.done(&["limits", "--json"]).await);
    let value = |name: &str| {
        let line = limits.iter().find(|line| line["name"] == name);
        line.unwrap_or_else(|| panic!("no {name}"))["value"].clone()
    };
    assert!(
        limits
            .iter()
            .all(|line| fields(line) == ["name", "unit", "value"])
    );
    assert_eq!(value("event_bytes_max"), 256 << 10);
    assert_eq!(value("edge_frame_in_bytes_max"), 128 << 10);
    assert_eq!(value("key_ttl"), 24 * 3600);
    assert_eq!(value("ticket_ttl"), 30);
}

#[tokio::test]
async fn selftest_shows_the_three_promises() {
    let dev = Dev::start().await;
    let edge = format!("http://{}", dev.server.http);
    let args = ["selftest", "--edge", &edge, "--token", &dev.token, "--json"];
    let output = dev.done(&args).await;
    let lines = json_lines(&output);
    let kept: Vec<_> = lines.iter().filter(|line| line["kept"] == true).collect();
    let names: Vec<_> = kept.iter().map(|line| line["promise"].clone()).collect();
    assert_eq!(names, ["resilient_delivery", "continuity", "live_control"]);
    let left = dev.done(&["session", "list", "selftest-"]).await;
    assert!(left.stdout.is_empty(), "it removes its session");
    // A token that may do nothing proves nothing.
    let output = run(&dev.server.grpc, &tokens::forged("eve"), &args[..3]).await;
    assert_eq!(output.status.code(), Some(4), "{}", crate::stderr(&output));
}

#[tokio::test]
async fn commands_find_their_server_and_their_token() {
    let home = everwire_testkit::process::folder();
    let data = home.path().join("everwire-data");
    let server = everwire_testkit::Server::dev(&data).await;
    let dead = fixed_addr();
    let both = format!("{dead},{}", server.grpc);
    let token = everwire_testkit::process::dev_token(&data);
    let file = ["--token-file", "everwire-data/token"];
    let flag = ["--token", &token];
    let addr = ["--addr", &server.grpc];
    for (flags, env) in [
        // On the first day no flag is needed but the address: dev's token is found.
        (vec![], vec![("EVERWIRE_ADDR", server.grpc.as_str())]),
        (file.to_vec(), vec![("EVERWIRE_ADDR", &server.grpc)]),
        (addr.to_vec(), vec![("EVERWIRE_ADDR", &dead)]),
        (
            flag.to_vec(),
            vec![("EVERWIRE_ADDR", &both), ("EVERWIRE_TOKEN", "nonsense")],
        ),
        (
            vec![],
            vec![("EVERWIRE_ADDR", &both), ("EVERWIRE_TOKEN", &token)],
        ),
    ] {
        let output = command(&["session", "create", "s", "--json"])
            .args(&flags)
            .envs(env)
            .current_dir(home.path())
            .output()
            .await;
        let output = output.expect("the binary runs");
        assert_eq!(
            output.status.code(),
            Some(0),
            "{flags:?}: {}",
            crate::stderr(&output)
        );
        assert_eq!(object(&output)["session"], "s");
    }
}

/// A command is right when some node of those that it was told lives, whichever it asks first.
#[tokio::test]
async fn commands_go_around_a_dead_node() {
    let dev = Dev::start().await;
    let (dead, silent) = (fixed_addr(), fixed_addr());
    let addrs = format!("{dead},{},{silent}", dev.server.grpc);
    // Which address is asked first is chosen by chance.
    for round in 0..4 {
        for (args, input) in [
            ("session create s", ""),
            ("session show s", ""),
            ("session list", ""),
            ("publish s --run r1 --keep-open", "hello\n"),
            ("tail s --json", ""),
            ("cancel s --run r1", ""),
            ("status --json", ""),
            ("session delete s", ""),
        ] {
            let words: Vec<_> = args.split(' ').collect();
            let output = run_with_input(&addrs, &dev.token, &words, input).await;
            assert_eq!(
                output.status.code(),
                Some(0),
                "{round} {args}: {}",
                crate::stderr(&output)
            );
        }
    }
}

#[test]
fn make_has_the_targets_of_the_page() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).expect("the Makefile");
    let page = page();
    let (_, line) = page.split_once("\n## make\n").expect("a section");
    let (line, _) = line.split_once("\n## ").expect("one more section");
    let words = line
        .split('`')
        .filter_map(|code| code.strip_prefix("make "));
    let targets: Vec<_> = words.filter_map(|words| words.split(' ').next()).collect();
    assert!(targets.len() >= 5, "{targets:?}");
    for target in targets {
        let is_there = makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")));
        assert!(is_there, "make {target}");
    }
}
