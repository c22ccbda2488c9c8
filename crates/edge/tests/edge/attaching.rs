//! Where a reader starts, and what becomes of it when its session or its nodes change.

use std::sync::atomic::Ordering;
use std::time::Duration;

use everwire_core::{Code, Refusal};
use everwire_proto::frame::{AttachAnswer, ClientFrame, ServerFrame, Subprotocol};
use everwire_proto::token::Bearer;

use crate::nodes::{Nodes, Written, app, offset, session};
use crate::support::{Bed, Client, SOON};

fn answer_of(frame: ServerFrame) -> AttachAnswer {
    match frame {
        ServerFrame::Attached { answer, .. } => answer,
        other => panic!("not an answer: {other:?}"),
    }
}

async fn refused(client: &mut Client) -> Refusal {
    match client.frame().await {
        (_, ServerFrame::Error { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_table_holds_from_memory_and_from_the_nodes() {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    bed.nodes.append_many("s", 20);
    bed.nodes.trim("s", 5);
    let mut client = bed.json().await;
    let gone = AttachAnswer::Gone {
        session_epoch: epoch,
        from: offset(6),
        tail: offset(20),
    };
    let resumed = |from| AttachAnswer::Resumed {
        session_epoch: epoch,
        from: offset(from),
        tail: offset(20),
    };
    // Twice: the first time nobody is in the room, the second time its memory may answer.
    for _ in 0..2 {
        for (cursor, expected) in [
            (None, resumed(6)),
            (Some("5".to_owned()), resumed(6)),
            (Some(format!("{epoch}.12")), resumed(13)),
            (Some(format!("{epoch}.20")), resumed(21)),
            (Some(format!("{epoch}.21")), gone),
            (Some(format!("{epoch}.4")), gone),
            (Some("9-9.12".to_owned()), gone),
        ] {
            let answer = answer_of(client.attach("s", cursor.as_deref()).await);
            assert_eq!(answer, expected, "{cursor:?}");
        }
    }
    let answer = answer_of(client.attach("none", None).await);
    assert_eq!(answer, AttachAnswer::NotFound);
    let answer = answer_of(client.attach("none", Some("1-1.3")).await);
    assert_eq!(answer, AttachAnswer::NotFound);
}

#[tokio::test]
async fn create_makes_a_session_once_if_it_is_allowed() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    let ask = |name: &str| ClientFrame::Attach {
        session: session(name),
        cursor: None,
        create: true,
    };
    for _ in 0..2 {
        client.say("1", &ask("fresh")).await;
        let (_, frame) = client.frame().await;
        assert!(matches!(
            answer_of(frame),
            AttachAnswer::Resumed { from, tail, .. } if from.get() == 1 && tail.get() == 0
        ));
    }
    assert_eq!(bed.nodes.written(), [Written::Create(session("fresh"))]);
    client.say("2", &ask("no-right")).await;
    let (_, frame) = client.frame().await;
    assert_eq!(answer_of(frame), AttachAnswer::NotFound);
}

#[tokio::test]
async fn a_long_history_is_read_in_pages_until_it_meets_the_room() {
    let bed = Bed::new();
    bed.nodes.make("s");
    bed.nodes.append_many("s", 5_000);
    let mut client = bed.json().await;
    let mut reader = client.resume("s", None).await;
    assert_eq!(reader.next, 1);
    client.read_to(&mut reader, 5_000).await;
    assert!(bed.metric("catch_ups") >= 1);
    assert_eq!(reader.texts.len(), 5_000);
    let before = bed.metric("catch_ups");
    bed.nodes.append_many("s", 3);
    client.read_to(&mut reader, 5_003).await;
    assert_eq!(bed.metric("catch_ups"), before, "live again, from memory");
}

#[tokio::test]
async fn coming_back_soon_asks_the_nodes_for_nothing() {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    bed.nodes.append_many("s", 50);
    let mut stays = bed.json().await;
    let mut reader = stays.resume("s", None).await;
    stays.read_to(&mut reader, 50).await;
    let reads = bed.nodes.reads.load(Ordering::SeqCst);
    let subscribed = bed.nodes.subscribed.load(Ordering::SeqCst);
    for seen in [0, 10, 49, 50] {
        let mut client = bed.json().await;
        let cursor = format!("{epoch}.{seen}");
        let mut reader = client.resume("s", Some(&cursor)).await;
        assert_eq!(reader.next, seen + 1);
        client.read_to(&mut reader, 50).await;
    }
    assert_eq!(bed.nodes.reads.load(Ordering::SeqCst), reads);
    assert_eq!(bed.nodes.subscribed.load(Ordering::SeqCst), subscribed);
}

#[tokio::test]
async fn a_deleted_session_tells_its_readers_and_leaves_no_memory() {
    let bed = Bed::new();
    bed.nodes.make("s");
    bed.nodes.append_many("s", 5);
    let mut client = bed.json().await;
    let mut reader = client.resume("s", None).await;
    client.read_to(&mut reader, 5).await;
    bed.nodes.delete("s");
    assert_eq!(refused(&mut client).await.code, Code::Gone);
    bed.until("rooms", 0).await;
    assert_eq!(
        answer_of(client.attach("s", None).await),
        AttachAnswer::NotFound
    );
    let epoch = bed.nodes.make("s");
    bed.nodes.append("s", [app("another history")]);
    let old = answer_of(client.attach("s", Some("1-1.5")).await);
    assert!(matches!(old, AttachAnswer::Gone { session_epoch, .. } if session_epoch == epoch));
    let mut reader = client.resume("s", None).await;
    client.read_to(&mut reader, 1).await;
    assert_eq!(reader.texts, [(1, "\"another history\"".to_owned())]);
}

#[tokio::test]
async fn a_session_replaced_behind_the_rooms_back_is_noticed_by_the_next_attach() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let mut client = bed.json().await;
    client.resume("s", None).await;
    bed.nodes.set_down(true);
    bed.nodes.delete("s");
    let epoch = bed.nodes.make("s");
    bed.nodes.append_many("s", 3);
    bed.nodes.set_down(false);
    let refusal = refused(&mut client).await;
    assert_eq!(refusal.code, Code::Gone);
    assert_eq!(refusal.details.session_epoch, Some(epoch));
    assert_eq!(refusal.details.earliest, Some(offset(1)));
}

#[tokio::test]
async fn readers_outlive_the_loss_of_the_nodes() {
    let bed = Bed::new();
    bed.nodes.make("s");
    bed.nodes.append_many("s", 5);
    let mut client = bed.json().await;
    let mut reader = client.resume("s", None).await;
    client.read_to(&mut reader, 5).await;
    bed.nodes.set_down(true);
    bed.nodes.append_many("s", 5);
    client.say("p", &ClientFrame::Ping).await;
    assert_eq!(client.frame().await.0, "p");
    bed.nodes.set_down(false);
    client.read_to(&mut reader, 10).await;
}

#[tokio::test]
async fn a_room_without_nodes_answers_nothing_from_memory() {
    let bed = Bed::timed(|timings| timings.memory_valid = Duration::from_millis(100));
    let epoch = bed.nodes.make("s");
    bed.nodes.append_many("s", 5);
    let mut stays = bed.json().await;
    let mut reader = stays.resume("s", None).await;
    stays.read_to(&mut reader, 5).await;
    bed.nodes.set_down(true);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut client = bed.json().await;
    let cursor = format!("{epoch}.2");
    client.ask_attach("a", "s", Some(&cursor)).await;
    client.say("p", &ClientFrame::Ping).await;
    assert_eq!(
        client.frame().await.0,
        "p",
        "the attach waits for the nodes"
    );
    bed.nodes.set_down(false);
    let (id, frame) = client.frame().await;
    assert_eq!(id, "a");
    assert!(matches!(answer_of(frame), AttachAnswer::Resumed { from, .. } if from.get() == 3));
}

#[tokio::test]
async fn readers_are_sent_elsewhere_when_the_nodes_stay_away() {
    let bed = Bed::timed(|timings| timings.upstream_lost_after = Duration::from_millis(200));
    bed.nodes.make("s");
    let mut client = bed.json().await;
    client.resume("s", None).await;
    bed.nodes.set_down(true);
    let refusal = refused(&mut client).await;
    assert_eq!(refusal.code, Code::Stale);
    bed.until("rooms", 0).await;
    client.say("p", &ClientFrame::Ping).await;
    assert_eq!(client.frame().await.0, "p", "the socket lives");
}

#[tokio::test]
async fn nodes_that_are_away_are_told_of_and_not_waited_for_for_ever() {
    let bed = Bed::timed(|timings| timings.request_within = Duration::from_millis(200));
    bed.nodes.make("s");
    bed.nodes.set_down(true);
    let mut client = bed.json().await;
    client.ask_attach("a", "s", None).await;
    assert_eq!(refused(&mut client).await.code, Code::Overloaded);
}

#[tokio::test]
async fn an_empty_room_closes_and_lets_its_subscription_go() {
    let bed = Bed::timed(|timings| timings.room_idle = Duration::from_millis(200));
    bed.nodes.make("s");
    let mut client = bed.json().await;
    client.resume("s", None).await;
    assert_eq!(bed.nodes.live.load(Ordering::SeqCst), 1);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(bed.metric("rooms"), 1, "somebody is in it");
    drop(client);
    bed.until("rooms", 0).await;
    let gone = async {
        while bed.nodes.live.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
    let mut client = bed.json().await;
    client.resume("s", None).await;
    assert_eq!(bed.metric("rooms"), 1);
}

#[tokio::test]
async fn a_detach_before_the_answer_is_told_so() {
    let bed = Bed::with(Nodes::new(), |_| {});
    bed.nodes.make("s");
    bed.nodes.set_down(true);
    let mut stays = bed.json().await;
    stays.ask_attach("a", "other", None).await;
    let mut client = bed.json().await;
    bed.nodes.set_down(false);
    client.resume("s", None).await;
    bed.nodes.set_down(true);
    client.ask_attach("late", "s", Some("9-9.1")).await;
    let detach = ClientFrame::Detach {
        session: session("s"),
    };
    client.say("", &detach).await;
    let (id, frame) = client.frame().await;
    assert_eq!(id, "late");
    assert!(matches!(frame, ServerFrame::Error { refusal, .. }
        if refusal.code == Code::WrongState));
    bed.nodes.set_down(false);
    client.resume("s", None).await;
}

#[tokio::test]
async fn an_edge_without_nodes_is_not_ready_and_in_the_end_takes_nobody() {
    let bed = Bed::timed(|timings| {
        timings.ready_within = Duration::from_millis(100);
        timings.unheard_max = Duration::from_millis(300);
    });
    bed.nodes.make("s");
    let mut stays = bed.json().await;
    let mut reader = stays.resume("s", None).await;
    assert!(bed.edge.ready());
    bed.nodes.set_down(true);
    let unready = async {
        while bed.edge.ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, unready).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut late = Client::connect(&bed, Subprotocol::Json).await;
    let token = Bearer::new(bed.token());
    late.say("1", &ClientFrame::Auth { token }).await;
    assert_eq!(late.bye().await, ("STALE", 4029));
    let request = format!(
        "GET /v1/sessions/s/events HTTP/1.1\r\nhost: e\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        bed.token()
    );
    assert_eq!(bed.http(&request).await.0, 503);
    // Whoever is there stays, and goes on when a node is back.
    bed.nodes.set_down(false);
    bed.nodes.append_many("s", 1);
    stays.read_to(&mut reader, 1).await;
    assert!(bed.edge.ready());
    assert_eq!(bed.metric("upstream_reconnects"), 1);
    bed.json().await;
}
