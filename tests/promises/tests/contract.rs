//! `docs/contract.md`, run: names, shapes, exit codes and ports that other people's scripts rely
//! on. Each test starts what it needs and asks the real binary.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests says what went wrong by failing the test"
)]

#[path = "contract/commands.rs"]
mod commands;
#[path = "contract/edge.rs"]
mod edge;
#[path = "contract/grpc.rs"]
mod grpc;
#[path = "contract/metrics.rs"]
mod metrics;
#[path = "contract/publish.rs"]
mod publish;
#[path = "contract/servers.rs"]
mod servers;

use std::path::Path;
use std::process::Output;

use everwire_testkit::{Server, process, root, run, run_with_input};
use serde_json::Value;
use tempfile::TempDir;

/// The newest version of the rules that this release knows.
const RULES: u32 = 3;

/// The page.
fn page() -> String {
    std::fs::read_to_string(root().join("docs/contract.md")).expect("the page")
}

/// `everwire dev` in a folder of its own, and its development token.
struct Dev {
    folder: TempDir,
    server: Server,
    token: String,
}

impl Dev {
    async fn start() -> Self {
        let folder = process::folder();
        let server = Server::dev(folder.path()).await;
        let token = process::dev_token(folder.path());
        Self {
            folder,
            server,
            token,
        }
    }

    fn data(&self) -> &Path {
        self.folder.path()
    }

    /// A command with the development token.
    async fn run(&self, args: &[&str]) -> Output {
        run(&self.server.grpc, &self.token, args).await
    }

    /// The same, which must do what it was asked for.
    async fn done(&self, args: &[&str]) -> Output {
        done(args, self.run(args).await)
    }

    /// A command with the development token and text on stdin, which must be done.
    async fn piped(&self, args: &[&str], input: &str) -> Output {
        let output = run_with_input(&self.server.grpc, &self.token, args, input).await;
        done(args, output)
    }
}

fn done(args: &[&str], output: Output) -> Output {
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    output
}

/// A command line, split at blanks.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The one JSON object that a command printed.
fn object(output: &Output) -> Value {
    let lines = process::json_lines(output);
    let [line] = lines.as_slice() else {
        panic!("one line is wanted: {lines:?}");
    };
    assert!(line.is_object(), "{line}");
    line.clone()
}

/// Exit code, and `CODE: what happened; advice` as the last line on stderr.
fn assert_refused(output: &Output, exit: i32, code: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    let last = said.lines().last().unwrap_or_default();
    let (what, rest) = last.split_once(": ").unwrap_or_default();
    assert_eq!(what, code, "{said}");
    let (happened, advice) = rest.split_once("; ").unwrap_or_default();
    assert!(
        !happened.is_empty() && !advice.is_empty(),
        "no `CODE: what happened; advice`: {said}"
    );
}

/// The names of an object's fields, in order.
fn fields(object: &Value) -> Vec<&str> {
    let object = object.as_object().expect("an object");
    let mut names: Vec<_> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}
