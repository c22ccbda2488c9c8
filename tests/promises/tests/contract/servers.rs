//! The servers: ready line, ports, restart, signals, admin port, keys and tokens.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use everwire_testkit::process::{self, command, json_lines};
use everwire_testkit::{Http, Lines, Server, run, run_with_input, tokens};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Dev, assert_refused, done, object, stdout, words};

#[tokio::test]
async fn dev_tells_where_it_is_and_keeps_its_sessions() {
    let folder = process::folder();
    let data = folder.path().join("data");
    let server = Server::dev(&data).await;
    let addrs = [&server.grpc, &server.http, &server.admin];
    for addr in addrs {
        let port = addr.strip_prefix("127.0.0.1:").expect("loopback");
        assert_ne!(port, "0");
        tokio::net::TcpStream::connect(addr).await.expect(addr);
    }
    let token = process::dev_token(&data);
    for file in ["token", "auth.key"] {
        let mode = std::fs::metadata(data.join(file)).expect("it is there");
        assert_eq!(mode.permissions().mode() & 0o777, 0o600, "{file}");
    }
    let publish = ["publish", "kept", "--run", "r1", "--json"];
    let output = run_with_input(&server.grpc, &token, &publish, "one\ntwo\n").await;
    let acked = json_lines(&done(&publish, output));
    assert_eq!(acked.len(), 2);
    let show = ["session", "show", "kept", "--json"];
    let before = object(&done(&show, run(&server.grpc, &token, &show).await));
    assert_eq!(server.stop().await, Some(0));

    let server = Server::dev(&data).await;
    let again = process::dev_token(&data);
    // The key is kept, so the old token serves as well as the new one.
    for token in [&token, &again] {
        let after = object(&done(&show, run(&server.grpc, token, &show).await));
        for field in [
            "session",
            "session_epoch",
            "shard",
            "tail",
            "bytes",
            "created",
        ] {
            assert_eq!(before[field], after[field], "{field}");
        }
    }
    let tail = ["tail", "kept", "--json"];
    let events = json_lines(&done(&tail, run(&server.grpc, &token, &tail).await));
    let texts: Vec<_> = events
        .iter()
        .filter_map(|event| event["body"]["text"].as_str())
        .collect();
    assert_eq!(texts, ["one", "two"]);
    server.signal(Signal::SIGINT);
    assert_eq!(server.stop().await, Some(0));
}

/// Runs a command that needs no server.
async fn local(folder: &Path, args: &[&str]) -> std::process::Output {
    let output = command(args).current_dir(folder).output().await;
    output.expect("the binary runs")
}

/// A token from the command line, which prints nothing else.
async fn token(folder: &Path, args: &[&str]) -> String {
    let output = done(args, local(folder, args).await);
    assert!(output.stderr.is_empty());
    let text = stdout(&output);
    let token = text.strip_suffix('\n').expect("one line");
    assert_eq!(token.split('.').count(), 3, "{} bytes", token.len());
    token.to_owned()
}

/// The admin port of a server.
async fn assert_admin(server: &Server, metric: &str) {
    let admin = Http::new(&server.admin);
    assert_eq!(admin.get("/livez", &[]).await.status, 200);
    assert_eq!(admin.get("/readyz", &[]).await.status, 200);
    let metrics = admin.get("/metrics", &[]).await;
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    assert!(metrics.text.ends_with("# EOF\n"), "{}", metrics.text);
    assert!(
        metrics.text.contains(metric),
        "no {metric}: {}",
        metrics.text
    );
    assert_eq!(admin.get("/", &[]).await.status, 404);
}

/// A node and an edge, with a key and tokens made by the command line.
async fn node_and_edge(home: &Path) -> (Server, Server) {
    let new_key = words("token --new-key auth.key");
    done(&new_key, local(home, &new_key).await);
    // A key that is there is not overwritten.
    assert_refused(&local(home, &new_key).await, 2, "USAGE");
    let relay =
        "token --key auth.key --namespace * --participant edge-1 --kind edge --allow *=relay";
    let relay = token(home, &words(relay)).await;
    std::fs::write(home.join("edge.token"), relay).expect("a writable folder");
    let home = home.to_str().expect("UTF-8");
    let any = "127.0.0.1:0";
    let node = format!(
        "node --data {home}/data --grpc {any} --admin {any} --auth-key {home}/auth.key.pub"
    );
    let node = Server::start(&Path::new(home).join("node"), &words(&node)).await;
    let edge = format!(
        "edge --http {any} --admin {any} --nodes {} --token-file {home}/edge.token \
         --auth-key {home}/auth.key.pub --name edge-1",
        node.grpc
    );
    let edge = Server::start(&Path::new(home).join("edge"), &words(&edge)).await;
    (node, edge)
}

#[tokio::test]
async fn node_and_edge_start_with_keys_of_the_command_line() {
    let home = process::folder();
    let home = home.path();
    let (node, edge) = node_and_edge(home).await;
    assert!(node.http.is_empty(), "a node has no HTTP");
    assert!(edge.grpc.is_empty(), "an edge has no gRPC");
    assert_admin(&node, "everwire_node_").await;
    assert_admin(&edge, "everwire_edge_").await;

    let ann = "token --key auth.key --namespace acme --participant ann --kind user --ttl 15m \
               --allow chat-*=create,subscribe,publish --allow own=subscribe,admin";
    let ann = token(home, &words(ann)).await;
    // A pattern covers its prefix and nothing else.
    let http = Http::new(&edge.http).with_token(&ann);
    let app = r#"{"kind":"app","body":{"name":"x"}}"#;
    let taken = http.post("/v1/sessions/chat-1/events", &[], app).await;
    let offset = taken.json()["offset"].clone();
    assert_eq!((taken.status, offset), (200, Value::from(1)));
    let refused = http.post("/v1/sessions/other/events", &[], app).await;
    assert_eq!(refused.refusal(), (403, "DENIED".into()));
    assert_eq!(edge.stop().await, Some(0));
    assert_eq!(node.stop().await, Some(0));
}

#[tokio::test]
async fn a_secret_signs_and_verifies_and_is_long_enough() {
    let home = process::folder();
    let home = home.path();
    std::fs::write(home.join("secret"), "0123456789abcdef0123456789abcdef\n").expect("writable");
    std::fs::write(home.join("short"), "0123456789abcdef").expect("writable");
    let mint = |key: &str| {
        format!(
            "token --key {key} --namespace dev --participant ann --kind agent --allow *=create,run"
        )
    };
    let signed = token(home, &words(&mint("secret"))).await;
    let short = local(home, &words(&mint("short"))).await;
    assert_refused(&short, 2, "USAGE");
    let secret = home.join("secret");
    let secret = secret.to_str().expect("UTF-8");
    let server = Server::dev_with(&home.join("data"), &["--auth-key", secret]).await;
    let publish = ["publish", "s", "--json"];
    let output = run_with_input(&server.grpc, &signed, &publish, "hello\n").await;
    assert_eq!(json_lines(&done(&publish, output)).len(), 1);
    // The key that dev made for itself serves besides.
    let own = process::dev_token(&home.join("data"));
    done(&publish, run(&server.grpc, &own, &["tail", "s"]).await);
    let short = words("dev --data d --admin 127.0.0.1:0 --auth-key short");
    let output = local(home, &short).await;
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{}",
        crate::stderr(&output)
    );
}

#[tokio::test]
async fn what_a_token_cannot_be_is_a_usage_error() {
    let home = process::folder();
    let home = home.path();
    let new_key = words("token --new-key k");
    done(&new_key, local(home, &new_key).await);
    let good = [
        ("--namespace", "n"),
        ("--participant", "p"),
        ("--kind", "user"),
        ("--allow", "a-*=subscribe"),
        ("--ttl", "1h"),
        ("--key", "k"),
    ];
    for (option, value) in [
        ("--namespace", "*"),
        ("--namespace", "N O"),
        ("--participant", ""),
        ("--kind", "robot"),
        ("--allow", "subscribe"),
        ("--allow", "*=fly"),
        ("--allow", "a*b=subscribe"),
        ("--ttl", "soon"),
        ("--key", "missing"),
        ("--key", "k.pub"),
    ] {
        let args = good.iter().flat_map(|(name, fine)| {
            let value = if *name == option { value } else { fine };
            [*name, value]
        });
        let args: Vec<_> = ["token"].into_iter().chain(args).collect();
        let output = local(home, &args).await;
        assert_refused(&output, 2, "USAGE");
        assert!(output.stdout.is_empty(), "{option} {value}");
    }
}

#[tokio::test]
async fn an_edge_moves_its_clients_before_it_stops() {
    let dev = Dev::start().await;
    let token = tokens::user(dev.data(), "ann");
    let mut tab = Lines::open(&dev.server.http, &token).await;
    let attach = r#"{"t":"attach","id":"1","session":"s","create":true}"#;
    assert_eq!(tab.ask("1", attach).await["answer"], "resumed");
    let stopping = tokio::spawn(dev.server.stop());
    let moving = tab.line_of("moving").await;
    let within = moving["within_ms"].as_u64().expect("a number");
    assert!((1..=60_000).contains(&within), "{moving}");
    // It stays until the edge throws it out, and is told why.
    let (code, close) = tab.bye().await;
    assert_eq!((code.as_str(), close), ("DRAINING", Some(4030)));
    let exit = tokio::time::timeout(Duration::from_secs(30), stopping).await;
    assert_eq!(exit.expect("it stops").expect("no panic"), Some(0));
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused() {
    let dev = Dev::start().await;
    let data = dev.data().to_str().expect("UTF-8");
    let any = "127.0.0.1:0";
    let args = format!("dev --data {data} --grpc {any} --http {any} --admin {any}");
    let second = local(dev.data(), &words(&args)).await;
    assert_eq!(second.status.code(), Some(1), "{}", crate::stderr(&second));
    assert!(second.stdout.is_empty());
    dev.done(&["session", "create", "s"]).await;
    // Its keys and its token were not replaced by the one that could not start.
    let old = run(&dev.server.grpc, &dev.token, &["session", "show", "s"]).await;
    assert_eq!(old.status.code(), Some(0));
}
