//! Tokens of sockets: which open them, how they are renewed, how they end.

use std::collections::BTreeSet;
use std::time::Duration;

use everwire_core::event::ParticipantKind;
use everwire_core::grant::{Claims, Pattern};
use everwire_core::{Clock, Code};
use everwire_proto::frame::{ClientFrame, ServerFrame, Subprotocol};
use everwire_proto::token::{Bearer, Signer};

use crate::nodes::session;
use crate::support::{ALL, Bed, Client, READ};

async fn refused_with(bed: &Bed, token: &str) -> (&'static str, u16) {
    let mut client = Client::connect(bed, Subprotocol::Json).await;
    let token = Bearer::new(token);
    client.say("", &ClientFrame::Auth { token }).await;
    client.bye().await
}

async fn refresh(client: &mut Client, token: &str) -> ServerFrame {
    let token = Bearer::new(token);
    client.say("r", &ClientFrame::Refresh { token }).await;
    loop {
        let (id, frame) = client.frame().await;
        if id == "r" {
            return frame;
        }
    }
}

#[tokio::test]
async fn only_a_good_token_of_a_participant_opens_a_socket() {
    let bed = Bed::new();
    let past = bed.token_until(bed.clock.now());
    assert_eq!(refused_with(&bed, &past).await, ("TOKEN_EXPIRED", 4002));
    let other = Signer::new(b"another secret of thirty-two bytes!!").unwrap();
    let forged = other.mint(&bed.claims("ann"), bed.clock.now()).unwrap();
    assert_eq!(refused_with(&bed, &forged).await, ("UNAUTHENTICATED", 4001));
    // {"alg":"none"} and the claims of a good token.
    let good = bed.token();
    let claims = good.split('.').nth(1).unwrap();
    let none = format!("eyJhbGciOiJub25lIn0.{claims}.");
    assert_eq!(refused_with(&bed, &none).await, ("UNAUTHENTICATED", 4001));
    assert_eq!(refused_with(&bed, "").await.0, "UNAUTHENTICATED");
    let edge = Claims {
        namespace: None,
        kind: ParticipantKind::Edge,
        ..bed.claims("edge")
    };
    assert_eq!(refused_with(&bed, &bed.mint(&edge)).await, ("DENIED", 4004));
}

#[tokio::test]
async fn reading_needs_subscribe_on_that_session() {
    let bed = Bed::new();
    bed.nodes.make("mine");
    bed.nodes.make("yours");
    let claims = Claims {
        allow: vec![(Pattern::parse("mine").unwrap(), BTreeSet::from(READ))],
        ..bed.claims("ann")
    };
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.auth(&bed.mint(&claims)).await;
    client.resume("mine", None).await;
    let ServerFrame::Error {
        session: about,
        refusal,
    } = client.attach("yours", None).await
    else {
        panic!("not refused");
    };
    assert_eq!(refusal.code, Code::Denied);
    assert_eq!(about, Some(session("yours")));
}

#[tokio::test]
async fn a_socket_is_told_that_its_token_ends_and_ends_with_it() {
    let bed = Bed::new();
    let expires = bed.clock.now().plus(Duration::from_secs(5));
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.auth(&bed.token_until(expires)).await;
    let (_, frame) = client.frame().await;
    let ServerFrame::Expiring { token_expires } = frame else {
        panic!("{frame:?}");
    };
    assert!(token_expires <= expires);
    assert!(bed.clock.now() < token_expires, "there is time to act");
    assert_eq!(client.bye().await, ("TOKEN_EXPIRED", 4002));
    assert!(bed.clock.now() >= token_expires);
}

#[tokio::test]
async fn a_refresh_keeps_the_socket_and_its_sessions() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let expires = bed.clock.now().plus(Duration::from_secs(4));
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.auth(&bed.token_until(expires)).await;
    let mut reader = client.resume("s", None).await;
    let welcome = refresh(&mut client, &bed.token()).await;
    assert!(matches!(welcome, ServerFrame::Welcome { token_expires, .. }
        if token_expires > expires));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bed.nodes.append_many("s", 1);
    client.read_to(&mut reader, 1).await;
}

#[tokio::test]
async fn a_refresh_changes_nobody_into_somebody_else() {
    let bed = Bed::new();
    let ann = bed.claims("ann");
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.auth(&bed.mint(&ann)).await;
    for other in [
        bed.claims("bob"),
        Claims {
            namespace: Some("other".parse().unwrap()),
            ..ann.clone()
        },
        Claims {
            kind: ParticipantKind::Operator,
            ..ann.clone()
        },
    ] {
        let ServerFrame::Error { refusal, .. } = refresh(&mut client, &bed.mint(&other)).await
        else {
            panic!("not refused");
        };
        assert_eq!(refusal.code, Code::Denied);
    }
    let ServerFrame::Error { refusal, .. } = refresh(&mut client, "nonsense").await else {
        panic!("not refused");
    };
    assert_eq!(refusal.code, Code::Unauthenticated);
    assert!(matches!(
        refresh(&mut client, &bed.mint(&ann)).await,
        ServerFrame::Welcome { .. }
    ));
}

#[tokio::test]
async fn a_narrower_token_detaches_what_it_does_not_allow() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    for name in ["kept", "lost"] {
        bed.nodes.make(name);
        client.resume(name, None).await;
    }
    let narrower = Claims {
        allow: vec![(Pattern::parse("kept").unwrap(), BTreeSet::from(ALL))],
        ..bed.claims("ann")
    };
    refresh(&mut client, &bed.mint(&narrower)).await;
    let (id, frame) = client.frame().await;
    assert_eq!(id, "");
    let ServerFrame::Error {
        session: about,
        refusal,
    } = frame
    else {
        panic!("{frame:?}");
    };
    assert_eq!((about, refusal.code), (Some(session("lost")), Code::Denied));
    bed.until("attachments", 1).await;
    bed.nodes.append_many("lost", 1);
    bed.nodes.append_many("kept", 1);
    let (_, frame) = client.frame().await;
    assert!(matches!(frame, ServerFrame::Events { session: about, .. }
        if about == session("kept")));
}

#[tokio::test]
async fn a_second_auth_is_refused() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    let token = Bearer::new(bed.token());
    client.say("1", &ClientFrame::Auth { token }).await;
    let (id, frame) = client.frame().await;
    assert_eq!(id, "1");
    assert!(matches!(frame, ServerFrame::Error { refusal, .. }
        if refusal.code == Code::Malformed));
}
