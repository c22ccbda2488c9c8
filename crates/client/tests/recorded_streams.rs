//! Every recorded stream goes through its adapter: chunks come out byte for byte and in order,
//! and the text is the provider's own.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing"
)]

use bytes::Bytes;
use everwire_client::adapter::{Adapter, End, Format};
use everwire_core::{Draft, MessageId};
use everwire_testkit::Recording;
use everwire_testkit::recording::assembled;

fn drafts(lines: &[Bytes]) -> (Vec<Draft>, End) {
    let format = Format::detect(&lines[0]).expect("a known format");
    let mut adapter = Adapter::new(format, MessageId::parse("m").unwrap());
    let mut drafts: Vec<Draft> = lines
        .iter()
        .flat_map(|line| adapter.chunk(line.clone()))
        .collect();
    let (closing, end) = adapter.finish();
    drafts.extend(closing);
    (drafts, end)
}

#[test]
fn chunks_survive_and_text_is_the_providers() {
    for recording in Recording::all() {
        let (drafts, end) = drafts(&recording.chunks);
        let raw: Vec<_> = drafts
            .iter()
            .filter_map(|draft| draft.raw.as_ref())
            .collect();
        let (name, chunks) = (&recording.name, &recording.chunks);
        assert_eq!(raw.len(), chunks.len(), "{name}: one raw for each chunk");
        let mut pairs = raw.iter().zip(chunks);
        assert!(pairs.all(|(raw, chunk)| raw.bytes == *chunk), "{name}");
        let text = assembled(drafts.iter().map(|draft| &draft.body));
        assert_eq!(text, recording.text, "{name}");
        assert_eq!(end, End::Complete, "{name}");
        for draft in &drafts {
            assert_eq!(draft.check_shape(), Ok(()), "{name}");
        }
    }
}

#[test]
fn a_stream_that_breaks_off_is_cut() {
    for recording in Recording::all() {
        let half = recording.chunks.len() / 2;
        let (_, end) = drafts(&recording.chunks[..half]);
        assert_eq!(end, End::Cut, "{}", recording.name);
    }
}

#[test]
fn what_is_no_json_travels_all_the_same() {
    let mut adapter = Adapter::new(Format::Anthropic, MessageId::parse("m").unwrap());
    let drafts = adapter.chunk(Bytes::from_static(b"\xff not json"));
    assert_eq!(drafts.len(), 1);
    assert_eq!(
        drafts[0].raw.as_ref().unwrap().bytes,
        b"\xff not json".as_slice()
    );
}
