//! Nine crates on six floors: a crate imports lower floors only, along the allowed stairs, and
//! each heavy dependency has one door. Read from `cargo metadata`, so nothing can be forgotten.

#![expect(
    clippy::indexing_slicing,
    reason = "a field that cargo does not write fails the test"
)]

use std::collections::BTreeMap;
use std::process::Command;

use everwire_house::root;
use serde_json::Value;

/// Crate → the crates of ours that it may import (docs/ARCHITECTURE.md draws it).
const STAIRS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("proto", &["core"]),
    ("rules", &["core"]),
    ("store", &["core", "proto"]),
    ("client", &["core", "proto"]),
    ("shard", &["core", "proto", "rules", "store"]),
    ("node", &["core", "proto", "shard"]),
    ("edge", &["core", "proto", "client"]),
    ("everwire", &["core", "proto", "client", "node", "edge"]),
];

/// Heavy dependency → the crates that may name it.
const DOORS: &[(&str, &[&str])] = &[
    ("rocksdb", &["store"]),
    ("openraft", &["shard"]),
    ("prost", &["proto"]),
    ("tonic", &["proto", "client", "shard", "node"]),
    ("axum", &["edge", "everwire"]),
    ("clap", &["everwire"]),
    ("tracing-subscriber", &["everwire"]),
    ("jsonwebtoken", &["proto"]),
];

struct Crate {
    floor: u64,
    /// Normal dependencies, by package name.
    imports: Vec<String>,
}

fn short(package: &str) -> &str {
    package.strip_prefix("everwire-").unwrap_or(package)
}

fn crates() -> BTreeMap<String, Crate> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let crates_folder = root().join("crates").to_string_lossy().into_owned();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    packages
        .filter(|package| {
            package["manifest_path"]
                .as_str()
                .expect("a path")
                .starts_with(&crates_folder)
        })
        .map(|package| {
            let name = short(package["name"].as_str().expect("a name")).to_owned();
            let floor = package["metadata"]["house"]["floor"].as_u64();
            let floor = floor.unwrap_or_else(|| panic!("{name} names no floor"));
            let dependencies = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter();
            let imports = dependencies
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| dependency["name"].as_str().expect("a name").to_owned())
                .collect();
            (name, Crate { floor, imports })
        })
        .collect()
}

#[test]
fn there_are_nine_crates() {
    let names: Vec<_> = crates().into_keys().collect();
    let mut expected: Vec<_> = STAIRS.iter().map(|(name, _)| (*name).to_owned()).collect();
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn crates_import_lower_floors_along_the_stairs() {
    let crates = crates();
    for (name, stairs) in STAIRS {
        let this = &crates[*name];
        let ours = this.imports.iter().map(|import| short(import));
        for import in ours.filter(|import| crates.contains_key(*import)) {
            assert!(stairs.contains(&import), "{name} must not import {import}");
            assert!(
                crates[import].floor < this.floor,
                "{name} imports {import}: not below it"
            );
        }
    }
}

#[test]
fn heavy_dependencies_come_in_by_their_door() {
    for (name, this) in crates() {
        for (dependency, doors) in DOORS {
            let comes_in = this.imports.iter().any(|import| import == dependency);
            assert!(
                !comes_in || doors.contains(&name.as_str()),
                "{name} names {dependency}"
            );
        }
    }
}

#[test]
fn the_rules_know_nothing_but_the_words() {
    let crates = crates();
    assert_eq!(crates["rules"].imports, ["everwire-core"]);
    for import in &crates["core"].imports {
        let small = ["bytes", "thiserror", "xxhash-rust"].contains(&import.as_str());
        assert!(small, "core imports {import}");
    }
}

#[test]
fn no_dependency_comes_from_git() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("the lock file");
    assert!(!lock.contains("\"git+"), "Cargo.lock names a git source");
}
