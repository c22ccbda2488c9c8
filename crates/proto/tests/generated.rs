//! The committed code in `src/gen` is what `proto/` says. No protoc: protox compiles the files.
//! `EVERWIRE_REGENERATE=1 cargo test -p everwire-proto --test generated` writes it anew.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;

const FILES: &[&str] = &[
    "everwire/v1/event.proto",
    "everwire/v1/error.proto",
    "everwire/v1/publish.proto",
    "everwire/v1/attach.proto",
    "everwire/v1/session.proto",
    "everwire/v1/run.proto",
    "everwire/v1/cluster.proto",
    "everwire/edge/v1/frame.proto",
    "everwire/storage/v1/log.proto",
    "everwire/storage/v1/row.proto",
    "everwire/storage/v1/topology.proto",
    "everwire/internal/v1/peer.proto",
    "everwire/internal/v1/read.proto",
];

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let descriptors = protox::compile(FILES, [&root]).expect("the proto files compile");
    let public = protox::compile(
        FILES.iter().filter(|file| file.starts_with("everwire/v1/")),
        [&root],
    )
    .expect("the public files compile alone");
    fs::write(out.join("everwire.v1.bin"), public.encode_to_vec()).expect("writable");
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .build_transport(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("code is generated");
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the folder exists")
        .map(|entry| entry.expect("readable").path())
        .map(|path| {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read(&path).expect("readable"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn committed_code_is_fresh() {
    let committed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    if std::env::var_os("EVERWIRE_REGENERATE").is_some() {
        generate(&committed);
        return;
    }
    let fresh = tempfile::tempdir().expect("a temporary folder");
    generate(fresh.path());
    let names = |files: &[(String, Vec<u8>)]| {
        files
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    let (left, right) = (files(&committed), files(fresh.path()));
    assert_eq!(names(&left), names(&right));
    for ((name, old), (_, new)) in left.iter().zip(&right) {
        assert!(
            old == new,
            "{name} is out of date: run with EVERWIRE_REGENERATE=1"
        );
    }
}
