//! Agents as processes of their own: `everwire` commands that run beside the test.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use everwire_testkit::process::command;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// Longest wait for a command to end.
const WITHIN: Duration = Duration::from_secs(60);

/// A command that runs.
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a command against a server.
    pub fn start(addr: &str, token: &str, args: &[&str]) -> Self {
        let mut child = command(args)
            .env("EVERWIRE_ADDR", addr)
            .env("EVERWIRE_TOKEN", token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    /// Its stdout, line by line, while it runs.
    pub fn lines(&mut self) -> Lines<BufReader<ChildStdout>> {
        let stdout = self.child.stdout.take();
        BufReader::new(stdout.expect("not taken yet")).lines()
    }

    /// Writes to its stdin; `false` when it does not read any more.
    pub async fn write(&mut self, text: &str) -> bool {
        let stdin = self.stdin.as_mut().expect("not closed yet");
        let written = stdin.write_all(text.as_bytes()).await;
        written.is_ok() && stdin.flush().await.is_ok()
    }

    /// Closes its stdin, if that is open, and waits for its end.
    pub async fn end(mut self) -> Output {
        drop(self.stdin.take());
        let output = tokio::time::timeout(WITHIN, self.child.wait_with_output()).await;
        output.expect("the command ends in time").expect("it ran")
    }

    /// Waits for an end that is not ours: stdin stays open.
    pub async fn ends_by_itself(mut self) -> Output {
        let stdin = self.stdin.take();
        let output = tokio::time::timeout(WITHIN, self.child.wait_with_output()).await;
        drop(stdin);
        output.expect("the command ends by itself").expect("it ran")
    }
}

/// Exit code and stderr of a command.
pub fn said(output: &Output) -> (Option<i32>, String) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), stderr)
}

/// A recording of our own in `folder`, in OpenAI's chat format: so many words, one a chunk.
pub fn recording(folder: &Path, words: usize) -> PathBuf {
    let mut lines = String::new();
    for number in 0..words {
        let word = crate::agent::word(number);
        let chunk = serde_json::json!({
            "id": "c1", "object": "chat.completion.chunk", "model": "test",
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": null}],
        });
        let _infallible = writeln!(lines, "{chunk}");
    }
    let last = serde_json::json!({
        "id": "c1", "object": "chat.completion.chunk", "model": "test",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    });
    let _infallible = writeln!(lines, "{last}");
    let path = folder.join("words.openai-chat.jsonl");
    std::fs::write(&path, lines).expect("a writable folder");
    path
}
