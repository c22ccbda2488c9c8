//! Reading: `Follow` from every kind of cursor, `Read`, and `Sessions`.

use everwire_core::{Code, ParticipantKind};
use everwire_proto::v1;
use v1::AttachAnswer as Answer;

use crate::support::{Somebody, app, bare, code, edge_token, heavy, input, node, token};

fn follow(session: &str, cursor: Option<(&str, u64)>) -> v1::FollowRequest {
    v1::FollowRequest {
        session: session.to_owned(),
        cursor: cursor.map(|(epoch, offset)| v1::Cursor {
            session_epoch: epoch.to_owned(),
            offset,
        }),
        ..v1::FollowRequest::default()
    }
}

async fn attached(reader: &Somebody, asked: v1::FollowRequest) -> v1::Attached {
    let mut follower = reader.follow(asked).await.unwrap();
    let attached = follower.attached().await;
    if attached.answer() != Answer::Resumed {
        assert_eq!(follower.next().await, None, "the stream ends well");
    }
    attached
}

async fn filled(agent: &Somebody, events: u64) -> String {
    let mut epoch = String::new();
    for number in 1..=events {
        let posted = agent
            .post("s", app(&format!("e{number}")), "")
            .await
            .unwrap();
        assert_eq!(posted.offset, number);
        epoch = posted.session_epoch;
    }
    epoch
}

#[tokio::test]
async fn every_cursor_gets_the_answer_of_the_table() {
    let node = node().await;
    let agent = node.agent().await;
    assert_eq!(
        attached(&agent, follow("none", None)).await.answer(),
        Answer::NotFound
    );
    let epoch = filled(&agent, 5).await;
    let at = |offset| follow("s", Some((&epoch, offset)));

    let answer = attached(&agent, follow("s", None)).await;
    assert_eq!(
        (answer.answer(), answer.from, answer.tail),
        (Answer::Resumed, 1, 5)
    );
    assert_eq!(answer.session_epoch, epoch);
    for offset in 0..=5 {
        let answer = attached(&agent, at(offset)).await;
        assert_eq!(
            (answer.answer(), answer.from),
            (Answer::Resumed, offset + 1)
        );
    }
    let ahead = attached(&agent, at(6)).await;
    assert_eq!(
        (ahead.answer(), ahead.from, ahead.tail),
        (Answer::Gone, 1, 5)
    );
    let other = attached(&agent, follow("s", Some(("9-99", 3)))).await;
    assert_eq!((other.answer(), other.from), (Answer::Gone, 1));
    assert_eq!(other.session_epoch, epoch, "where to start anew");
    let bare_offset = attached(&agent, follow("s", Some(("", 3)))).await;
    assert_eq!(
        (bare_offset.answer(), bare_offset.from),
        (Answer::Resumed, 4)
    );
    for bad in [("1", 1), ("x-y", 1), (epoch.as_str(), 1 << 53)] {
        let refusal = agent.follow(follow("s", Some(bad))).await.err().unwrap();
        assert_eq!(refusal.code, Code::Malformed);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_reader_comes_back_to_exactly_what_it_missed() {
    let node = node().await;
    let agent = node.agent().await;
    let epoch = filled(&agent, 3).await;
    let mut reader = agent.follow(follow("s", None)).await.unwrap();
    reader.attached().await;
    assert_eq!(reader.events(1, 3).await.len(), 3);
    drop(reader);
    for number in 4..=40 {
        agent
            .post("s", app(&format!("e{number}")), "")
            .await
            .unwrap();
    }
    let mut reader = agent.follow(follow("s", Some((&epoch, 3)))).await.unwrap();
    assert_eq!(reader.attached().await.from, 4);
    let missed = reader.events(4, 40).await;
    let offsets: Vec<_> = missed.iter().map(|event| event.offset).collect();
    assert_eq!(offsets, (4..=40).collect::<Vec<_>>());
    // And goes on live, in the order of the log.
    agent.post("s", app("live"), "").await.unwrap();
    assert_eq!(reader.events(41, 41).await.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn large_events_come_through_in_bounded_messages() {
    let node = node().await;
    let agent = node.agent().await;
    for _ in 0..6 {
        agent.post("s", heavy(200 << 10), "").await.unwrap();
    }
    agent.post("s", heavy(256 << 10), "").await.unwrap();
    let mut reader = agent.follow(follow("s", None)).await.unwrap();
    reader.attached().await;
    assert_eq!(reader.events(1, 7).await.len(), 7);
    let page = agent.read("s").await.unwrap().events.unwrap();
    assert_eq!((page.from, page.to, page.tail), (1, 1, 7));
    node.stop().await;
}

#[tokio::test]
async fn pages_follow_each_other_without_a_hole() {
    let node = node().await;
    let agent = node.agent().await;
    let epoch = filled(&agent, 10).await;
    let read = |from, limit, session_epoch: &str| {
        let request = agent.ask(v1::ReadRequest {
            session: "s".to_owned(),
            from,
            limit,
            session_epoch: session_epoch.to_owned(),
            ..v1::ReadRequest::default()
        });
        let mut client = agent.attach();
        async move { bare(client.read(request).await) }
    };
    let (mut next, mut seen) = (0, Vec::new());
    loop {
        let page = read(next, 4, &epoch).await.unwrap().events.unwrap();
        if page.events.is_empty() {
            assert_eq!((page.from, page.to, page.tail), (11, 10, 10));
            break;
        }
        next = page.to + 1;
        seen.extend(page.events.iter().map(|event| event.offset));
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    assert_eq!(code(read(1, 0, "9-99").await), Code::Gone);
    assert_eq!(code(read(1, 0, "what").await), Code::Malformed);
    assert_eq!(code(agent.read("none").await), Code::UnknownSession);
    node.stop().await;
}

#[tokio::test]
async fn a_follow_makes_the_session_if_asked_and_allowed() {
    let node = node().await;
    let agent = node.agent().await;
    let reader = |words| agent.with_token(token("ann", ParticipantKind::User, "*", words));
    let create = |session: &str| v1::FollowRequest {
        create: true,
        ..follow(session, None)
    };
    let may_not = reader("subscribe");
    assert_eq!(
        attached(&may_not, create("new")).await.answer(),
        Answer::NotFound
    );
    let may = reader("subscribe,create");
    let mut follower = may.follow(create("new")).await.unwrap();
    let answer = follower.attached().await;
    assert_eq!(
        (answer.answer(), answer.from, answer.tail),
        (Answer::Resumed, 1, 0)
    );
    agent.post("new", input("i", "first"), "k").await.unwrap();
    assert_eq!(follower.events(1, 1).await[0].offset, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_deleted_session_ends_its_readers_and_is_another_when_made_anew() {
    let node = node().await;
    let agent = node.agent().await;
    let epoch = filled(&agent, 2).await;
    let mut reader = agent.follow(follow("s", None)).await.unwrap();
    reader.attached().await;
    reader.events(1, 2).await;
    let delete = || {
        agent.ask(v1::DeleteRequest {
            session: "s".to_owned(),
        })
    };
    assert!(
        bare(agent.sessions().delete(delete()).await)
            .unwrap()
            .existed
    );
    assert!(
        !bare(agent.sessions().delete(delete()).await)
            .unwrap()
            .existed
    );
    assert_eq!(reader.ended().await.code, Code::Gone);
    agent.create("s").await.unwrap();
    let answer = attached(&agent, follow("s", Some((&epoch, 2)))).await;
    assert_eq!(
        (answer.answer(), answer.from, answer.tail),
        (Answer::Gone, 1, 0)
    );
    assert_ne!(answer.session_epoch, epoch);
    node.stop().await;
}

#[tokio::test]
async fn an_edge_names_the_namespace_that_it_reads_for() {
    let node = node().await;
    let agent = node.agent().await;
    filled(&agent, 2).await;
    let edge = agent.with_token(edge_token());
    let asked = |namespace: &str| v1::FollowRequest {
        namespace: namespace.to_owned(),
        ..follow("s", None)
    };
    let answer = attached(&edge, asked("acme")).await;
    assert_eq!((answer.answer(), answer.tail), (Answer::Resumed, 2));
    let other = attached(&edge, asked("other")).await;
    assert_eq!(other.answer(), Answer::NotFound, "names are per namespace");
    let none = edge.follow(asked("")).await.err().unwrap();
    assert_eq!(none.code, Code::Malformed);
    let foreign = agent.follow(asked("other")).await.err().unwrap();
    assert_eq!(foreign.code, Code::Denied);
    assert_eq!(
        attached(&agent, asked("acme")).await.answer(),
        Answer::Resumed
    );
    assert_eq!(code(edge.post("s", app("x"), "").await), Code::Denied);
    assert_eq!(edge.cancel("s", "r", "k").await.unwrap().outcome, "denied");
    node.stop().await;
}

#[tokio::test]
async fn a_list_shows_the_names_that_the_token_may_read() {
    let node = node().await;
    let agent = node.agent().await;
    for number in 0..30 {
        agent.create(&format!("chat-{number}")).await.unwrap();
        agent.create(&format!("other-{number}")).await.unwrap();
    }
    let ann = agent.with_token(token("ann", ParticipantKind::User, "chat-*", "subscribe"));
    let list = async |caller: &Somebody, prefix: &str| {
        let (mut names, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = caller.ask(v1::ListRequest {
                prefix: prefix.to_owned(),
                limit: 7,
                page_token,
            });
            let page = bare(caller.sessions().list(request).await).unwrap();
            assert!(page.sessions.len() <= 7);
            names.extend(page.sessions.into_iter().map(|listed| listed.session));
            if page.next_page_token.is_empty() {
                names.sort();
                return names;
            }
            page_token = page.next_page_token;
        }
    };
    let chats = list(&ann, "").await;
    assert_eq!(chats.len(), 30);
    assert!(chats.iter().all(|name| name.starts_with("chat-")));
    assert_eq!(list(&agent, "").await.len(), 60);
    assert_eq!(list(&agent, "other-1").await.len(), 11);
    let request = agent.ask(v1::ListRequest {
        page_token: "nonsense".to_owned(),
        ..v1::ListRequest::default()
    });
    assert_eq!(
        code(bare(agent.sessions().list(request).await)),
        Code::Malformed
    );
    node.stop().await;
}

#[tokio::test]
async fn a_session_is_shown_as_it_stands() {
    let node = node().await;
    let agent = node.agent().await;
    let made = agent.create("s").await.unwrap();
    assert!(made.created && !agent.create("s").await.unwrap().created);
    agent.start("s", "r").await.unwrap();
    let mut reader = agent.follow(follow("s", None)).await.unwrap();
    reader.attached().await;
    let show = |session: &str| {
        let session = session.to_owned();
        agent.ask(v1::ShowRequest { session })
    };
    let shown = bare(agent.sessions().show(show("s")).await).unwrap();
    assert_eq!(shown.session_epoch, made.session_epoch);
    assert_eq!((shown.tail, shown.trimmed), (1, 0));
    assert_eq!(shown.open_runs, ["r"]);
    assert_eq!(shown.attachments, 1);
    assert_eq!(shown.leader, node.addr.to_string());
    let none = agent.sessions().show(show("none")).await;
    assert_eq!(code(bare(none)), Code::UnknownSession);
    node.stop().await;
}
