//! What the house tests share: where the workspace is and how to walk its files.
//!
//! House rules are ordinary tests: a rule that nothing checks is a wish.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("tests/house lies two below the root")
        .to_owned()
}

/// A file of the workspace.
pub struct SourceFile {
    /// Its path from the root, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// All files below `folder` whose name ends in `.ending`, generated code and installed
/// packages left out, in the order of their paths.
pub fn files(folder: &str, ending: &str) -> Vec<SourceFile> {
    let mut found = Vec::new();
    walk(&root().join(folder), ending, &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| SourceFile {
            text: fs::read_to_string(&path).expect("source files are UTF-8"),
            path: path
                .strip_prefix(root())
                .expect("found below the root")
                .to_string_lossy()
                .into_owned(),
        })
        .collect()
}

fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.map_while(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "gen" | "node_modules" | "dist" | "target") {
                walk(&path, ending, found);
            }
        } else if name.ends_with(&format!(".{ending}")) {
            found.push(path);
        }
    }
}
