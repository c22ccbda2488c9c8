//! The table of `docs/protocol/codes.md` is what the code says.
//! `EVERWIRE_REGENERATE=1 cargo test -p everwire-node --test node codes` writes it anew.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use everwire_core::Code;
use everwire_proto::refusal::grpc_code;

const BEGIN: &str = "<!-- begin: written by crates/node/tests/node/codes.rs -->\n";
const END: &str = "<!-- end -->\n";

fn table() -> String {
    let mut table = String::from(
        "| code | meaning | advice | gRPC | HTTP | close | exit |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for code in Code::ALL {
        let grpc = grpc_code(*code);
        writeln!(
            table,
            "| `{code}` | {} | `{}` | {grpc:?} ({}) | {} | {} | {} |",
            code.meaning(),
            code.advice().as_str(),
            grpc as i32,
            code.http_status(),
            code.close_code(),
            code.exit_code(),
        )
        .unwrap();
    }
    table
}

#[test]
fn the_page_holds_the_table_of_codes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol/codes.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the page has a begin mark");
    let (old, tail) = rest.split_once(END).expect("the page has an end mark");
    let new = table();
    if std::env::var_os("EVERWIRE_REGENERATE").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{new}{END}{tail}")).unwrap();
        return;
    }
    assert_eq!(old, new, "run with EVERWIRE_REGENERATE=1");
}
