//! Helpers for tests with real processes: servers, tokens, tabs, a network that can be cut.
//!
//! Everything binds port 0 on loopback, lives in a temporary folder, is ended when dropped, and
//! fails the test with a sentence.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests says what went wrong by failing the test"
)]

pub mod client;
pub mod cluster;
pub mod direct;
pub mod grpc;
pub mod http;
pub mod lines;
pub mod machine;
pub mod metrics;
pub mod network;
pub mod process;
pub mod proxy;
pub mod recording;
pub mod sse;
pub mod tab;
pub mod tokens;

pub use client::client;
pub use cluster::{Cluster, Plan};
pub use direct::Direct;
pub use http::Http;
pub use lines::Lines;
pub use machine::say;
pub use network::Network;
pub use process::{Server, run, run_with_input};
pub use proxy::Proxy;
pub use recording::Recording;
pub use sse::Sse;
pub use tab::Tab;

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("tests/testkit lies two below the root")
        .to_owned()
}

/// The `everwire` binary of this build: it lies beside the program that runs, or above it if that
/// is a test.
pub fn everwire() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let folder = program.parent().expect("…/debug or …/debug/deps");
    let folder = match folder.ends_with("deps") {
        true => folder.parent().expect("…/debug"),
        false => folder,
    };
    let binary = folder.join("everwire");
    assert!(
        binary.exists(),
        "{} is not there: run `make build` first",
        binary.display()
    );
    binary
}

/// Recorded streams of real models, with our own sample; says loudly if the others are not there.
pub fn recordings() -> Vec<PathBuf> {
    let mut found = vec![root().join("demo/sample.openai-chat.jsonl")];
    let shared = root().join("../shared/streams");
    match std::fs::read_dir(&shared) {
        Ok(entries) => found.extend(entries.map_while(Result::ok).map(|entry| entry.path())),
        Err(_) => skip_shared(&shared),
    }
    found.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    found.sort();
    found
}

fn skip_shared(folder: &Path) {
    say(&format!("SKIPPED: {} is not there", folder.display()));
}
