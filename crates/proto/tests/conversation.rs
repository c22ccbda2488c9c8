//! The conversation in `docs/protocol/edge.md` is what this crate reads and writes, field by
//! field and in that order. (A live edge is asked the same lines elsewhere.)
#![expect(clippy::unwrap_used, reason = "a helper's panic fails its test")]

use everwire_proto::frame::{
    Subprotocol, decode_client, decode_server, encode_client, encode_server,
};

const JSON: Subprotocol = Subprotocol::Json;

/// The lines of the page that begin with `mark`, without placeholders.
fn lines(mark: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/edge.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, block) = page.split_once("```conversation\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lines = block.lines().filter_map(|line| line.strip_prefix(mark));
    let time = "2023-11-14T22:13:20.042Z";
    lines
        .map(|line| {
            line.replace("$SESSION", "chat-1")
                .replace("\"time\":\"…\"", &format!("\"time\":\"{time}\""))
                .replace("_expires\":\"…\"", &format!("_expires\":\"{time}\""))
                .replace("_epoch\":\"…\"", "_epoch\":\"1-17\"")
        })
        .collect()
}

#[test]
fn the_clients_lines_are_read_in_both_subprotocols() {
    let lines = lines("> ");
    assert!(lines.len() >= 7, "{} lines", lines.len());
    for line in lines {
        let (id, frame) = decode_client(JSON, line.as_bytes()).unwrap();
        for subprotocol in Subprotocol::ALL {
            let bytes = encode_client(subprotocol, &id, &frame);
            let read = decode_client(subprotocol, &bytes);
            assert_eq!(read, Ok((id.clone(), frame.clone())), "{line}");
        }
    }
}

#[test]
fn the_edges_lines_are_written_as_they_stand() {
    let lines = lines("< ");
    assert!(lines.len() >= 8, "{} lines", lines.len());
    for line in lines {
        let (id, frame) = decode_server(JSON, line.as_bytes()).unwrap().unwrap();
        let written = encode_server(JSON, &id, &frame);
        assert_eq!(std::str::from_utf8(&written).unwrap(), line);
    }
}
