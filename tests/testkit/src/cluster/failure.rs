//! What is kept of a cluster whose test failed.

use std::path::Path;

use super::Cluster;
use crate::say;

/// Lines of each log that are shown.
const SHOWN: usize = 25;

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Killed before the network and the data go on which they work.
            node.drop_process();
        }
        if !std::thread::panicking() {
            return;
        }
        self.folder.disable_cleanup(true);
        say(&format!(
            "logs are kept in {}",
            self.folder.path().display()
        ));
        for node in &self.nodes {
            show(&node.name, &node.logged());
        }
        let edge = self.path("edge").join("server.log");
        show("edges", &std::fs::read_to_string(edge).unwrap_or_default());
        for node in &self.nodes {
            remove_data(&node.data);
        }
    }
}

/// The last lines of a log that are worth it.
fn show(name: &str, log: &str) {
    let noise = [r#""level":"DEBUG""#, r#""target":"openraft"#];
    let worth = |line: &&str| !noise.iter().any(|noise| line.contains(noise));
    let lines: Vec<_> = log.lines().filter(worth).collect();
    let from = lines.len().saturating_sub(SHOWN);
    for line in lines.get(from..).unwrap_or_default() {
        say(&format!("{name}: {line}"));
    }
}

/// Logs are small and tell; data are large, and this may be somebody's `/tmp`.
fn remove_data(data: &Path) {
    if std::env::var_os("EVERWIRE_KEEP_DATA").is_none() {
        let _ = std::fs::remove_dir_all(data);
    }
}
