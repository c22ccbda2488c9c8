//! Real processes: `everwire` servers and commands.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::everwire;

/// Longest wait for a server to stop.
const WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for a server to be ready. A node with an empty disk is that when it has got, two
/// shards at a time, all that its predecessor held.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A running `everwire dev`, `node` or `edge`. Ended with SIGKILL when dropped.
pub struct Server {
    child: Child,
    /// gRPC address, if it has one.
    pub grpc: String,
    /// HTTP address, if it has one.
    pub http: String,
    /// Admin address.
    pub admin: String,
    /// Where its log lines go.
    pub log: PathBuf,
}

impl Server {
    /// `everwire dev` on a data directory, with JSON logs at debug level.
    pub async fn dev(data: &Path) -> Self {
        Self::dev_with(data, &[]).await
    }

    /// The same with more arguments.
    pub async fn dev_with(data: &Path, more: &[&str]) -> Self {
        let data = data.to_str().expect("a UTF-8 path");
        let zero = "127.0.0.1:0";
        let mut args = vec!["dev", "--data", data];
        for flag in ["--grpc", "--http", "--admin"] {
            if !more.contains(&flag) {
                args.extend([flag, zero]);
            }
        }
        args.extend(more);
        Self::start(Path::new(data), &args).await
    }

    /// Any server; `folder` is where its log goes.
    pub async fn start(folder: &Path, args: &[&str]) -> Self {
        Self::start_in(folder, args, &[]).await
    }

    /// The same with an environment.
    pub async fn start_in(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        Starting::spawn(folder, args, env).ready().await
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        let id = self.child.id().expect("it runs");
        Pid::from_raw(i32::try_from(id).expect("a process id"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it was started").is_some()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it ran");
    }

    /// SIGTERM, and its exit code.
    pub async fn stop(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let status = tokio::time::timeout(WITHIN, self.child.wait()).await;
        status.expect("it stops in time").expect("it ran").code()
    }

    /// Everything it logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }
}

/// A server that was started and has not said yet that it is ready: it may wait for others, or
/// never be. Ended with SIGKILL when dropped.
pub struct Starting {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Starting {
    /// Starts any server with JSON logs at debug level; `folder` is where its log goes.
    pub fn spawn(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::spawn_as(command(args), folder, env)
    }

    /// The same with a command of one's own: the binary behind another program.
    pub fn spawn_as(mut command: Command, folder: &Path, env: &[(&str, &str)]) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for the log");
        let log = folder.join("server.log");
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file");
        let mut child = command
            .env("EVERWIRE_LOG_FORMAT", "json")
            .env("EVERWIRE_LOG_LEVEL", "info,everwire=debug")
            // Heard by builds with the feature `test-poison` only.
            .env("EVERWIRE_TEST_POISON", "1")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let lines = BufReader::new(stdout).lines();
        Self { child, lines, log }
    }

    /// Waits until it serves; fails when it ends before, or takes too long.
    pub async fn ready(self) -> Server {
        let log = self.log.clone();
        self.ready_unless_ended().await.unwrap_or_else(|| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("{} ended before it was ready:\n{said}", log.display())
        })
    }

    /// The same; `None` when it ended before.
    pub async fn ready_unless_ended(mut self) -> Option<Server> {
        let line = tokio::time::timeout(READY_WITHIN, self.lines.next_line()).await;
        let Ok(line) = line else {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            panic!("{} had no ready line in time:\n{said}", self.log.display());
        };
        let line = line.expect("readable stdout")?;
        let ready: Value = serde_json::from_str(&line).expect("the ready line is JSON");
        assert_eq!(ready.get("ready"), Some(&Value::Bool(true)), "{line}");
        let addr = |key: &str| {
            let text = ready.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        Some(Server {
            grpc: addr("grpc"),
            http: addr("http"),
            admin: addr("admin"),
            log: self.log,
            child: self.child,
        })
    }

    /// Waits until it ends without ever having been ready: its exit code, and what it said.
    pub async fn refused(mut self) -> (Option<i32>, String) {
        let line = tokio::time::timeout(WITHIN, self.lines.next_line()).await;
        let line = line.expect("it ends in time").expect("readable stdout");
        assert_eq!(line, None, "it must not be ready");
        let status = self.child.wait().await.expect("it ran");
        let said = std::fs::read_to_string(&self.log).expect("a log");
        assert!(status.code().is_some(), "it ended by {status}: {said}");
        (status.code(), said)
    }

    /// Whether it is still waiting after so long: neither ready nor ended.
    pub async fn waits(&mut self, so_long: Duration) -> bool {
        tokio::time::timeout(so_long, self.lines.next_line())
            .await
            .is_err()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it ran");
    }
}

/// An address whose port nobody else is given: outside the range from which the kernel takes
/// ports for clients. For servers that come back at the same place, and so that a client which
/// tries a closed port does not connect to itself.
///
/// Each is given once in this process; and on an address of this process's own, out of the many
/// that loopback has, so that two runs of tests on one machine do not take each other's.
pub fn fixed_addr() -> String {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let host = loopback_of_this_process();
    let mut port = 20_000 + u16::try_from(crate::client::random() % 10_000).expect("small");
    loop {
        let addr = SocketAddr::from((host, port));
        if std::net::TcpListener::bind(addr).is_ok() && given.insert(port) {
            return addr.to_string();
        }
        port += 1;
    }
}

fn loopback_of_this_process() -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 77, high, low.max(1))
}

/// A temporary data directory.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The development token of a data directory.
pub fn dev_token(data: &Path) -> String {
    let token = std::fs::read_to_string(data.join("token")).expect("dev writes its token");
    token.trim().to_owned()
}

/// A command of the binary, ready for more arguments. The environment is clean of ours.
pub fn command(args: &[&str]) -> Command {
    let mut command = clean(everwire());
    command.args(args);
    command
}

/// A command of any program, in an environment that is clean of ours. Killed when dropped.
pub(crate) fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("EVERWIRE_") {
            command.env_remove(key);
        }
    }
    command.kill_on_drop(true);
    command
}

/// Runs a command against a server and waits for its end.
pub async fn run(addr: &str, token: &str, args: &[&str]) -> Output {
    run_with_input(addr, token, args, "").await
}

/// The same, with something on stdin.
pub async fn run_with_input(
    addr: &str,
    token: &str,
    args: &[&str],
    input: impl AsRef<[u8]>,
) -> Output {
    let mut child = command(args)
        .env("EVERWIRE_ADDR", addr)
        .env("EVERWIRE_TOKEN", token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.as_ref().to_vec();
    let writing = tokio::spawn(async move {
        // A command that has ended does not read its input; that is its right.
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(WITHIN, child.wait_with_output()).await;
    let output = output.expect("the command ends in time").expect("it ran");
    writing.await.expect("no panic");
    output
}

/// The JSON lines that a command printed.
pub fn json_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{line:?} is no JSON: {error}"))
        })
        .collect()
}
