//! Puts the commit into the binary: `--version` says what exactly is running.

use std::process::Command;

fn main() {
    // A path that is not there would make cargo run this at every build; in a work tree they lie
    // elsewhere.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rerun-if-env-changed=EVERWIRE_COMMIT");
    let commit = std::env::var("EVERWIRE_COMMIT")
        .ok()
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    println!(
        "cargo:rustc-env=EVERWIRE_COMMIT={}",
        commit.unwrap_or_else(|| "unknown".to_owned())
    );
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !said.is_empty()).then_some(said)
}
