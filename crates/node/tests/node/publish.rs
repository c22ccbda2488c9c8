//! The publish stream, `Append` and `Post`.

use everwire_core::event::{Draft, Visibility};
use everwire_core::limits::{EVENT_BYTES_MAX, INPUT_BYTES_MAX, RUN_CREDIT_BYTES};
use everwire_core::{Code, ParticipantKind};
use everwire_proto::v1;
use v1::publish_stream_request::Message as In;
use v1::publish_stream_response::Message as Out;

use crate::support::{
    EVERYTHING, app, bare, batch, code, completed, delta, heavy, input, message_end, message_start,
    node, open, part_start, soon, token,
};

fn kinds(events: &[v1::Event]) -> Vec<(u64, Option<u64>)> {
    let seq = |event: &v1::Event| event.run.as_ref().and_then(|stamp| stamp.seq);
    events
        .iter()
        .map(|event| (event.offset, seq(event)))
        .collect()
}

#[tokio::test]
async fn a_stream_is_acked_and_a_reader_gets_every_delta() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut reader = agent.follow(follow("s")).await.unwrap();
    assert_eq!(reader.attached().await.from, 1);

    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[message_start(), part_start()]).await;
    let mut payload = 0;
    for seq in 0..200_u64 {
        let text = format!("word {seq} ");
        payload += u32::try_from(text.len()).unwrap();
        writer.batch(3 + seq, &[delta(&text)]).await;
    }
    writer.batch(203, &[message_end(), completed()]).await;
    let acks = writer.acked_through(204).await;
    assert_eq!(acks.credit_bytes, payload, "all credit comes back");
    assert_eq!(acks.through_offset, 205, "run.started stands before");
    let mut next = 1;
    for range in &acks.ranges {
        assert_eq!((range.first_seq, range.first_offset), (next, next + 1));
        assert!(!range.duplicate);
        next = range.last_seq + 1;
    }
    assert_eq!(next, 205);

    let events = reader.events(1, 205).await;
    assert_eq!(events.len(), 205);
    let text: String = events
        .iter()
        .filter_map(|event| match event.draft.as_ref()?.body.as_ref()? {
            v1::draft::Body::PartDelta(delta) => Some(delta.text.clone()),
            _ => None,
        })
        .collect();
    let expected: String = (0..200).map(|seq| format!("word {seq} ")).collect();
    assert_eq!(text, expected);
    let author = events[0].author.as_ref().unwrap();
    assert_eq!(author.participant, "agent", "stamped from the token");
    writer.close();
    assert_eq!(writer.next().await, Ok(None));
    node.stop().await;
}

fn follow(session: &str) -> v1::FollowRequest {
    v1::FollowRequest {
        session: session.to_owned(),
        ..v1::FollowRequest::default()
    }
}

#[tokio::test]
async fn a_closed_half_gets_all_its_acks_and_a_good_end() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    for seq in 1..=100 {
        writer.batch(seq, &[app("x")]).await;
    }
    writer.close();
    assert_eq!(writer.acked_through(100).await.through_offset, 101);
    assert_eq!(writer.next().await, Ok(None));
    node.stop().await;
}

#[tokio::test]
async fn a_dropped_stream_commits_what_came_and_nothing_else() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[app("one")]).await;
    writer.acked_through(1).await;
    writer.batch(2, &[app("two"), app("three")]).await;
    drop(writer);
    // The run is live and goes on where the log says; the disconnect left nothing in it.
    let info = agent.ask(v1::GetRequest {
        session: "s".to_owned(),
        run: "r".to_owned(),
    });
    let info = bare(agent.runs().get(info).await).unwrap();
    assert_eq!(info.state, "running");
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(2, &[app("two"), app("three")]).await;
    assert_eq!(writer.acked_through(3).await.through_offset, 4);
    let events = agent.read("s").await.unwrap().events.unwrap().events;
    let expected = [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(3))];
    assert_eq!(kinds(&events), expected);
    node.stop().await;
}

#[tokio::test]
async fn a_repeated_batch_gets_its_first_place() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let target = ("s", "r", 1);
    let first = agent
        .append(target, 1, &[app("a"), app("b")])
        .await
        .unwrap();
    let again = agent
        .append(target, 1, &[app("a"), app("b"), app("c")])
        .await
        .unwrap();
    assert_eq!(first.through_offset, 3);
    assert_eq!((again.through_seq, again.through_offset), (3, 4));
    let range = |first_seq, last_seq, first_offset, duplicate| v1::AckRange {
        first_seq,
        last_seq,
        first_offset,
        duplicate,
    };
    assert_eq!(again.ranges, [range(1, 2, 2, true), range(3, 3, 4, false)]);
    // Also after the end, and on a stream.
    agent.append(target, 4, &[completed()]).await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(2, &[app("b")]).await;
    assert_eq!(writer.ack().await.ranges, [range(2, 2, 3, true)]);
    node.stop().await;
}

#[tokio::test]
async fn a_gap_ends_nothing_and_names_the_seq_to_go_back_to() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(3, &[app("three")]).await;
    let refusal = writer.refusal(3).await;
    assert_eq!(refusal.code, Code::SeqGap);
    assert_eq!(refusal.details.expected_seq.unwrap().0, 1);
    writer
        .batch(1, &[app("one"), app("two"), app("three")])
        .await;
    assert_eq!(writer.acked_through(3).await.through_offset, 4);
    node.stop().await;
}

#[tokio::test]
async fn a_batch_of_bad_shape_is_refused_in_its_turn() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[app("one")]).await;
    writer.acked_through(1).await;
    let bad: [(Vec<Draft>, Code); 5] = [
        (vec![heavy(EVENT_BYTES_MAX + 1)], Code::TooLarge),
        (vec![heavy(200 << 10), heavy(100 << 10)], Code::TooLarge),
        (vec![app("x"); 4097], Code::TooLarge),
        (vec![completed(), app("late")], Code::Malformed),
        (vec![input("i", "not here")], Code::Malformed),
    ];
    for (drafts, expected) in bad {
        writer.batch(2, &drafts).await;
        assert_eq!(writer.refusal(2).await.code, expected);
    }
    let mut nameless = batch(2, &[app("x")]);
    nameless.drafts[0].parent = "no spaces allowed".to_owned();
    for bad in [batch(2, &[]), batch(0, &[app("x")]), nameless] {
        let first_seq = bad.first_seq;
        writer.send(In::Batch(bad)).await;
        assert_eq!(writer.refusal(first_seq).await.code, Code::Malformed);
    }
    // What is in flight behind a refused batch is a gap; then the stream goes on.
    writer.batch(2, &[]).await;
    writer.batch(3, &[app("three")]).await;
    assert_eq!(writer.refusal(2).await.code, Code::Malformed);
    assert_eq!(writer.refusal(3).await.code, Code::SeqGap);
    writer.batch(2, &[app("two")]).await;
    assert_eq!(writer.acked_through(2).await.through_offset, 3);
    node.stop().await;
}

#[tokio::test]
async fn overdrawn_credit_ends_the_stream_and_loses_nothing() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    let bytes = usize::try_from(RUN_CREDIT_BYTES).unwrap();
    for seq in 1..=64 {
        writer.batch(seq, &[heavy(bytes)]).await;
    }
    let mut through = 0;
    let end = loop {
        match writer.next().await {
            Ok(Some(Out::Ack(ack))) => through = ack.through_seq,
            other => break other,
        }
    };
    assert_eq!(code(end), Code::Malformed);
    assert!(through >= 1, "one batch may overdraw");
    // What was acked is there, and the connection serves on.
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(through + 1, &[app("on")]).await;
    assert_eq!(
        writer.acked_through(through + 1).await.through_seq,
        through + 1
    );
    node.stop().await;
}

#[tokio::test]
async fn many_streams_share_a_connection_within_its_credit() {
    let node = node().await;
    let agent = node.agent().await;
    let mut writers = Vec::new();
    for number in 0..24 {
        let run = format!("r{number}");
        agent.start("s", &run).await.unwrap();
        writers.push(agent.open("s", &run, 1).await.unwrap());
    }
    // 24 times 250 KB are under way at once: more than the connection's 4 MiB.
    for writer in &mut writers {
        writer.batch(1, &[heavy(250_000)]).await;
    }
    for writer in &mut writers {
        assert_eq!(soon(writer.ack()).await.credit_bytes, 250_000);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_stream_must_be_opened_once() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.unopened().await.unwrap();
    writer.batch(1, &[app("x")]).await;
    assert_eq!(code(writer.next().await), Code::Malformed);
    let mut writer = agent.unopened().await.unwrap();
    writer.close();
    assert_eq!(code(writer.next().await), Code::Malformed);
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[app("x")]).await;
    writer.send(In::Open(open("s", "r", 1))).await;
    assert_eq!(
        writer.ack().await.through_seq,
        1,
        "acks come before the end"
    );
    assert_eq!(code(writer.next().await), Code::Malformed);
    node.stop().await;
}

#[tokio::test]
async fn a_stream_on_nothing_is_refused() {
    let node = node().await;
    let agent = node.agent().await;
    assert_eq!(
        agent.open("none", "r", 1).await.err().unwrap().code,
        Code::UnknownSession
    );
    agent.create("s").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[app("x")]).await;
    assert_eq!(writer.refusal(1).await.code, Code::UnknownRun);
    for bad in [("s/s", "r", 1), ("s", "", 1), ("s", "r", 0)] {
        let refusal = agent.open(bad.0, bad.1, bad.2).await.err().unwrap();
        assert_eq!(refusal.code, Code::Malformed);
    }
    node.stop().await;
}

#[tokio::test]
async fn inputs_and_app_events_are_posted_once_per_key() {
    let node = node().await;
    let agent = node.agent().await;
    let ann = token(
        "ann",
        ParticipantKind::User,
        "*",
        "create,publish,subscribe",
    );
    let ann = agent.with_token(ann);
    let first = ann.post("s", input("i1", "hello"), "k1").await.unwrap();
    let again = ann.post("s", input("i1", "hello"), "k1").await.unwrap();
    assert_eq!((first.offset, first.duplicate), (1, false));
    assert_eq!((again.offset, again.duplicate), (1, true));
    assert_eq!(again.session_epoch, first.session_epoch);

    let other = ann.post("s", input("i2", "other"), "k1").await.unwrap_err();
    assert_eq!(other.code, Code::KeyReused);
    assert_eq!(other.details.offset.unwrap().get(), 1);
    assert_eq!(
        code(ann.post("s", input("i3", "x"), "").await),
        Code::Malformed
    );
    assert_eq!(code(ann.post("s", delta("x"), "k2").await), Code::Malformed);
    assert_eq!(
        code(ann.post("s", app("x"), "not a key").await),
        Code::Malformed
    );
    let large = input("i4", &"x".repeat(INPUT_BYTES_MAX + 1));
    assert_eq!(code(ann.post("s", large, "k3").await), Code::TooLarge);
    assert_eq!(ann.post("s", app("x"), "").await.unwrap().offset, 2);
    let request = ann.ask(v1::PostRequest {
        session: "s".to_owned(),
        ..v1::PostRequest::default()
    });
    assert_eq!(
        code(bare(ann.publish().post(request).await)),
        Code::Malformed
    );
    node.stop().await;
}

#[tokio::test]
async fn a_user_cannot_write_runs_and_sees_no_operators_events() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut secret = app("for operators");
    secret.visibility = Visibility::Operators;
    agent
        .append(("s", "r", 1), 1, &[app("a"), secret, app("b")])
        .await
        .unwrap();
    let words = EVERYTHING.replace(",run", "");
    let ann = agent.with_token(token("ann", ParticipantKind::User, "*", &words));
    assert_eq!(code(ann.start("s", "r2").await), Code::Denied);
    assert_eq!(
        code(ann.append(("s", "r", 1), 4, &[app("c")]).await),
        Code::Denied
    );
    let page = ann.read("s").await.unwrap().events.unwrap();
    assert_eq!(
        (page.from, page.to),
        (1, 4),
        "ranges cover what is not shown"
    );
    assert_eq!(kinds(&page.events), [(1, None), (2, Some(1)), (4, Some(3))]);
    let mut reader = ann.follow(follow("s")).await.unwrap();
    reader.attached().await;
    assert_eq!(reader.events(1, 4).await.len(), 3);
    let mut reader = agent.follow(follow("s")).await.unwrap();
    reader.attached().await;
    assert_eq!(reader.events(1, 4).await.len(), 4);
    node.stop().await;
}
