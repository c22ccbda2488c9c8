//! Configuration: defaults < file < environment < flags, shown by `--print-config`; what is not
//! known is refused, because a misspelt key is otherwise silently without effect.

use std::path::{Path, PathBuf};

use everwire_testkit::process::{command, folder};
use toml::{Table, Value};

const SERVERS: [&str; 3] = ["dev", "node", "edge"];

/// How `everwire SERVER --print-config …` ended, with its output.
struct Printed {
    exit: Option<i32>,
    text: String,
    errors: String,
}

impl Printed {
    /// The value of `section.key`.
    fn value(&self, section: &str, key: &str) -> Value {
        assert_eq!(self.exit, Some(0), "{}", self.errors);
        let table: Table = self.text.parse().expect("TOML");
        let section = table.get(section).and_then(Value::as_table);
        let value = section.and_then(|section| section.get(key)).cloned();
        value.unwrap_or_else(|| panic!("no {key} in {}", self.text))
    }

    /// That it was refused as wrong usage, naming `what`.
    fn assert_refused(&self, what: &str) {
        assert_eq!(self.exit, Some(2), "{what}: {}", self.text);
        assert!(self.errors.contains(what), "{what}: {}", self.errors);
        assert!(self.errors.starts_with("USAGE: "), "{}", self.errors);
        assert!(self.text.is_empty(), "{}", self.text);
    }
}

async fn print(server: &str, file: Option<&Path>, env: &[(&str, &str)], flags: &[&str]) -> Printed {
    let mut run = command(&[server, "--print-config"]);
    if let Some(file) = file {
        run.arg("--config").arg(file);
    }
    let output = run.args(flags).envs(env.iter().copied()).output().await;
    let output = output.expect("the binary runs");
    Printed {
        exit: output.status.code(),
        text: String::from_utf8(output.stdout).expect("UTF-8"),
        errors: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

#[tokio::test]
async fn flags_beat_the_environment_that_beats_the_file_that_beats_defaults() {
    let folder = folder();
    for (server, default) in [
        ("dev", "127.0.0.1:7402"),
        ("node", "127.0.0.1:7402"),
        ("edge", "127.0.0.1:7412"),
    ] {
        let text = format!("[{server}]\nadmin = '127.0.0.1:1001'\n");
        let file = written(folder.path(), "layers.toml", &text);
        let key = format!("EVERWIRE_{}_ADMIN", server.to_uppercase());
        let env = [(key.as_str(), "127.0.0.1:1002")];
        let flag = ["--admin", "127.0.0.1:1003"];
        for (file, env, flags, expected) in [
            (None, &env[..0], &flag[..0], default),
            (Some(&*file), &env[..0], &flag[..0], "127.0.0.1:1001"),
            (Some(&*file), &env[..], &flag[..0], "127.0.0.1:1002"),
            (None, &env[..], &flag[..0], "127.0.0.1:1002"),
            (Some(&*file), &env[..], &flag[..], "127.0.0.1:1003"),
            (Some(&*file), &env[..0], &flag[..], "127.0.0.1:1003"),
        ] {
            let printed = print(server, file, env, flags).await;
            assert_eq!(printed.value(server, "admin"), Value::from(expected));
        }
    }
}

#[tokio::test]
async fn the_log_and_the_file_itself_come_by_every_layer_too() {
    let folder = folder();
    let text = "[log]\nlevel = 'warn'\nformat = 'json'\n";
    let file = written(folder.path(), "log.toml", text);
    let path = file.to_str().expect("UTF-8");
    let by_environment = [("EVERWIRE_CONFIG_FILE", path)];
    let printed = print("dev", None, &by_environment, &[]).await;
    assert_eq!(printed.value("log", "level"), Value::from("warn"));
    assert_eq!(printed.value("log", "format"), Value::from("json"));
    let both = [
        ("EVERWIRE_CONFIG_FILE", path),
        ("EVERWIRE_LOG_LEVEL", "error"),
    ];
    let printed = print("dev", None, &both, &["--log-format", "human"]).await;
    assert_eq!(printed.value("log", "level"), Value::from("error"));
    assert_eq!(printed.value("log", "format"), Value::from("human"));
}

#[tokio::test]
async fn lists_and_switches_come_by_environment_and_flag() {
    let env = [
        ("EVERWIRE_EDGE_NODES", "127.0.0.1:1,127.0.0.1:2"),
        ("EVERWIRE_EDGE_INSECURE", "true"),
    ];
    let origins = ["--origin", "https://a", "--origin", "https://b"];
    let printed = print("edge", None, &env, &origins).await;
    let list = |words: [&str; 2]| Value::Array(words.map(Value::from).to_vec());
    let nodes = list(["127.0.0.1:1", "127.0.0.1:2"]);
    assert_eq!(printed.value("edge", "nodes"), nodes);
    let origins = list(["https://a", "https://b"]);
    assert_eq!(printed.value("edge", "origin"), origins);
    assert_eq!(printed.value("edge", "insecure"), Value::from(true));
    let off = print("edge", None, &env, &["--insecure", "false"]).await;
    assert_eq!(off.value("edge", "insecure"), Value::from(false));
}

#[tokio::test]
async fn what_is_not_known_is_refused() {
    let folder = folder();
    for (text, what) in [
        ("[dev]\ngprc = '127.0.0.1:0'\n", "gprc"),
        ("[devv]\n", "devv"),
        ("[log]\nlevels = 'info'\n", "levels"),
        ("[dev]\ngrpc = 7400\n", "grpc"),
        ("[dev]\nadmin = 'here'\n", "admin"),
        ("dev = 1\n", "dev"),
        ("[dev\n", "bad.toml"),
    ] {
        let file = written(folder.path(), "bad.toml", text);
        let printed = print("dev", Some(&file), &[], &[]).await;
        printed.assert_refused(what);
    }
    let missing = folder.path().join("missing.toml");
    let printed = print("dev", Some(&missing), &[], &[]).await;
    printed.assert_refused("missing.toml");
    // Whatever the command: a typo in one server's section is a typo.
    for key in ["EVERWIRE_DEV_GPRC", "EVERWIRE_EDGE_", "EVERWIRE_LOG_LEVELS"] {
        let printed = print("dev", None, &[(key, "1")], &[]).await;
        printed.assert_refused(key);
    }
    // What names none of our sections is somebody else's.
    for key in ["EVERWIREX", "EVERWIRE_BIN", "EVERWIRE_DEVICE"] {
        let printed = print("dev", None, &[(key, "1")], &[]).await;
        assert_eq!(printed.exit, Some(0), "{}", printed.errors);
    }
    print("dev", None, &[("EVERWIRE_DEV_GRPC", "nonsense")], &[])
        .await
        .assert_refused("nonsense");
    print("dev", None, &[], &["--gprc", "127.0.0.1:0"])
        .await
        .assert_refused("--gprc");
}

#[tokio::test]
async fn what_is_printed_is_a_file_that_gives_the_same() {
    let folder = folder();
    let dev = [
        "--data",
        "/var/lib/x y",
        "--origin",
        "https://a",
        "--insecure",
    ];
    let tls = ["--tls-cert", "c.pem", "--tls-key", "k.pem"];
    let edge = [
        "--nodes",
        "a:1,b:2",
        "--name",
        "e \"1\"",
        "--node-ca",
        "ca.pem",
    ];
    for (server, flags) in SERVERS.into_iter().zip([&dev[..], &tls, &edge]) {
        for flags in [&[], flags] {
            let first = print(server, None, &[], flags).await;
            assert_eq!(first.exit, Some(0), "{}", first.errors);
            let file = written(folder.path(), "printed.toml", &first.text);
            let second = print(server, Some(&file), &[], &[]).await;
            assert_eq!(first.text, second.text, "{}", second.errors);
        }
    }
}

#[tokio::test]
async fn defaults_are_those_of_the_contract() {
    let printed = print("dev", None, &[], &[]).await;
    for (key, value) in [
        ("data", "./everwire-data"),
        ("grpc", "127.0.0.1:7400"),
        ("http", "127.0.0.1:7410"),
        ("admin", "127.0.0.1:7402"),
    ] {
        assert_eq!(printed.value("dev", key), Value::from(value));
    }
    assert_eq!(printed.value("dev", "insecure"), Value::from(false));
}
