//! Without a socket: event streams, publish, cancel, tickets, and what browsers ask first.

use std::time::Duration;

use everwire_core::event::{Body, Visibility};
use everwire_core::{Clock, Event, RunId};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::nodes::{Nodes, Written, app, session};
use crate::support::{Bed, SOON};

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sent {
    id: String,
    event: String,
    data: String,
    comment: String,
}

/// An event stream, read as a browser reads it.
struct Stream {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
    status: u16,
}

impl Stream {
    async fn open(bed: &Bed, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
        // HTTP/1.0: the body is not cut into chunks.
        let request = format!("GET {path} HTTP/1.0\r\nhost: e\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let head = lines.next_line().await.unwrap().unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut is_stream = false;
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.is_empty() {
                break;
            }
            is_stream |= line.contains("text/event-stream");
        }
        assert_eq!(is_stream, status == 200);
        Self { lines, status }
    }

    async fn with_token(bed: &Bed, path: &str, headers: &str) -> Self {
        let authorization = format!("authorization: Bearer {}\r\n{headers}", bed.token());
        Self::open(bed, path, &authorization).await
    }

    /// The next event or comment; `None` at the end.
    async fn next(&mut self) -> Option<Sent> {
        let mut sent = Sent::default();
        loop {
            let line = timeout(SOON, self.lines.next_line())
                .await
                .expect("a line soon");
            let line = line.unwrap()?;
            let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
            match field {
                "" if !line.is_empty() => value.clone_into(&mut sent.comment),
                "" if sent == Sent::default() => {},
                "" => return Some(sent),
                "id" => value.clone_into(&mut sent.id),
                "event" => value.clone_into(&mut sent.event),
                "data" => sent.data.push_str(value),
                "retry" => {},
                other => panic!("{other}"),
            }
        }
    }

    /// The rest of a stream that ends, or the body of an error.
    async fn body(mut self) -> String {
        let mut body = String::new();
        while let Some(line) = timeout(SOON, self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
        {
            body.push_str(&line);
        }
        body
    }
}

#[tokio::test]
async fn an_event_stream_begins_where_it_is_asked_and_goes_on_live() {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    bed.nodes.append_many("s", 4);
    let path = "/v1/sessions/s/events";
    for (path, headers, first) in [
        (path.to_owned(), String::new(), 1),
        (format!("{path}?from=2"), String::new(), 3),
        (format!("{path}?from={epoch}.3&form=raw"), String::new(), 4),
        (path.to_owned(), format!("last-event-id: {epoch}.1\r\n"), 2),
        (
            format!("{path}?from=4"),
            format!("last-event-id: {epoch}.2\r\n"),
            3,
        ),
    ] {
        let mut stream = Stream::with_token(&bed, &path, &headers).await;
        let tail = bed.nodes.tail("s");
        for at in first..=tail {
            let sent = stream.next().await.unwrap();
            assert_eq!(sent.id, format!("{epoch}.{at}"), "{path} {headers}");
            assert_eq!(sent.event, "app");
            let data: serde_json::Value = serde_json::from_str(&sent.data).unwrap();
            assert_eq!(data["offset"], at);
        }
        bed.nodes.append("s", [app("live")]);
        assert_eq!(
            stream.next().await.unwrap().id,
            format!("{epoch}.{}", tail + 1)
        );
    }
    assert_eq!(bed.metric("rooms"), 1, "the same room as sockets have");
}

#[tokio::test]
async fn an_event_stream_that_cannot_go_on_says_gone_and_ends() {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    bed.nodes.append_many("s", 4);
    let path = "/v1/sessions/s/events?from=9-9.2";
    let mut stream = Stream::with_token(&bed, path, "").await;
    let sent = stream.next().await.unwrap();
    assert_eq!(sent.event, "gone");
    let data: serde_json::Value = serde_json::from_str(&sent.data).unwrap();
    assert_eq!(data["answer"], "gone");
    assert_eq!(data["session_epoch"], epoch.to_string());
    assert_eq!((&data["from"], &data["tail"]), (&1.into(), &4.into()));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn an_event_stream_may_make_its_session_if_the_token_may() {
    let bed = Bed::new();
    let stream = Stream::with_token(&bed, "/v1/sessions/fresh/events?create=true", "").await;
    assert_eq!(stream.status, 200);
    assert_eq!(bed.nodes.written(), [Written::Create(session("fresh"))]);
    let stream = Stream::with_token(&bed, "/v1/sessions/no-right/events?create=true", "").await;
    assert_eq!(stream.status, 404);
}

#[tokio::test]
async fn event_streams_are_refused_with_a_status_and_a_code() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let path = "/v1/sessions/s/events";
    for (path, status, code) in [
        ("/v1/sessions/none/events", 404, "UNKNOWN_SESSION"),
        ("/v1/sessions/a%20b/events", 400, "MALFORMED"),
        ("/v1/sessions/s/events?from=x", 400, "MALFORMED"),
        ("/v1/sessions/s/events?form=assembled", 400, "MALFORMED"),
        ("/v1/sessions/s/events?ticket=x", 401, "UNAUTHENTICATED"),
        ("/v1/else", 404, "MALFORMED"),
        ("/v1/tickets", 405, "MALFORMED"),
    ] {
        let stream = Stream::with_token(&bed, path, "").await;
        assert_eq!(stream.status, status, "{path}");
        let body: serde_json::Value = serde_json::from_str(&stream.body().await).unwrap();
        assert_eq!(body["code"], code, "{path}");
        assert!(body["message"].is_string() && body["advice"].is_string());
    }
    let stream = Stream::open(&bed, path, "").await;
    assert_eq!(stream.status, 401);
    bed.until("streams", 0).await;
    bed.until("attachments", 0).await;
}

#[tokio::test]
async fn a_quiet_stream_shows_signs_of_life_and_ends_with_its_token() {
    let bed = Bed::timed(|timings| timings.heartbeat_every = Duration::from_millis(100));
    bed.nodes.make("s");
    let token = bed.token_until(bed.clock.now().plus(Duration::from_secs(2)));
    let headers = format!("authorization: Bearer {token}\r\n");
    let mut stream = Stream::open(&bed, "/v1/sessions/s/events", &headers).await;
    let mut comments = 0;
    let bye = loop {
        let sent = stream.next().await.unwrap();
        if sent.comment == "alive" {
            comments += 1;
        } else {
            break sent;
        }
    };
    assert!(comments > 3, "{comments}");
    assert_eq!(bye.event, "bye");
    assert!(bye.data.contains("TOKEN_EXPIRED"));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn hidden_events_move_the_cursor_of_a_stream() {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    let hidden = Event {
        visibility: Visibility::Operators,
        ..app("hidden")
    };
    bed.nodes.append("s", [app("seen"), hidden]);
    let mut stream = Stream::with_token(&bed, "/v1/sessions/s/events", "").await;
    assert_eq!(stream.next().await.unwrap().event, "app");
    let moved = Sent {
        id: format!("{epoch}.2"),
        ..Sent::default()
    };
    assert_eq!(stream.next().await, Some(moved));
}

#[tokio::test]
async fn a_ticket_opens_one_stream() {
    let bed = Bed::timed(|timings| timings.ticket_ttl = Duration::from_secs(2));
    bed.nodes.make("s");
    let (status, answer) = bed.post("/v1/tickets", "", "").await;
    assert_eq!((status, &answer["expires_in_ms"]), (200, &2_000.into()));
    let ticket = answer["ticket"].as_str().unwrap();
    let path = format!("/v1/sessions/s/events?ticket={ticket}");
    assert_eq!(Stream::open(&bed, &path, "").await.status, 200);
    assert_eq!(
        Stream::open(&bed, &path, "").await.status,
        401,
        "it is used"
    );
    let (_, answer) = bed.post("/v1/tickets", "", "").await;
    let ticket = answer["ticket"].as_str().unwrap();
    let path = format!("/v1/sessions/s/events?ticket={ticket}");
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    assert_eq!(
        Stream::open(&bed, &path, "").await.status,
        401,
        "it is too old"
    );
    for _ in 0..64 {
        assert_eq!(bed.post("/v1/tickets", "", "").await.0, 200);
    }
    let (status, answer) = bed.post("/v1/tickets", "", "").await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (429, Some("TOO_MANY_PENDING"))
    );
}

#[tokio::test]
async fn an_input_is_published_with_its_key() {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    let body = r#"{"kind":"input","body":{"input":"i1","text":"hello"}}"#;
    let path = "/v1/sessions/s/events";
    let (status, answer) = bed.post(path, "idempotency-key: k1\r\n", body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["session_epoch"], epoch.to_string());
    assert_eq!(
        (&answer["offset"], &answer["duplicate"]),
        (&1.into(), &false.into())
    );
    let [Written::Post(_, _, Some(key), draft)] = &bed.nodes.written()[..] else {
        panic!("{:?}", bed.nodes.written());
    };
    assert_eq!(key.as_str(), "k1");
    assert!(matches!(&draft.body, Body::Input { text, .. } if text == "hello"));
    for (headers, body, code) in [
        ("", body, "MALFORMED"),
        ("idempotency-key: a b\r\n", body, "MALFORMED"),
        ("idempotency-key: k\r\n", "{", "MALFORMED"),
        (
            "idempotency-key: k\r\n",
            r#"{"kind":"run.completed","body":{}}"#,
            "MALFORMED",
        ),
    ] {
        let (status, answer) = bed.post(path, headers, body).await;
        assert_eq!(
            (status, answer["code"].as_str()),
            (400, Some(code)),
            "{headers}{body}"
        );
    }
    let app = r#"{"kind":"app","body":{"name":"n","data":{"a":1}}}"#;
    assert_eq!(
        bed.post(path, "", app).await.0,
        200,
        "an app event needs no key"
    );
    let (status, answer) = bed.post("/v1/sessions/none/events", "", app).await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (404, Some("UNKNOWN_SESSION"))
    );
}

#[tokio::test]
async fn a_body_above_the_bound_is_refused() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let body = "x".repeat((128 << 10) + 1);
    let (status, answer) = bed.post("/v1/sessions/s/events", "", &body).await;
    assert_eq!((status, answer["code"].as_str()), (413, Some("TOO_LARGE")));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let bed = Bed::timed(|timings| timings.request_within = Duration::from_millis(200));
    let request = format!(
        "POST /v1/sessions/s/events HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-length: 10\r\n\r\n{{",
        bed.token()
    );
    let (status, _, body) = bed.http(&request).await;
    assert_eq!(status, 400);
    assert!(body.contains("MALFORMED"));
}

#[tokio::test]
async fn a_run_is_cancelled_over_http() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let (status, answer) = bed.post("/v1/sessions/s/runs/r1/cancel", "", "").await;
    assert_eq!(
        (status, answer["outcome"].as_str()),
        (200, Some("unknown_run"))
    );
    let [Written::Cancel(_, about, run)] = &bed.nodes.written()[..] else {
        panic!("{:?}", bed.nodes.written());
    };
    assert_eq!((about, run), (&session("s"), &RunId::parse("r1").unwrap()));
}

#[tokio::test]
async fn browsers_learn_what_pages_may_do() {
    let bed = Bed::with(Nodes::new(), |config| config.allow_loopback_origins = true);
    let ask = |origin: &str| {
        format!(
            "OPTIONS /v1/sessions/s/events HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\
             origin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization\r\n\r\n"
        )
    };
    let (status, head, _) = bed.http(&ask("http://localhost:8080")).await;
    assert_eq!(status, 204);
    for line in [
        "access-control-allow-origin: http://localhost:8080",
        "access-control-allow-methods: GET, POST",
        "access-control-allow-headers: authorization, content-type, idempotency-key",
        "vary: origin",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    let (status, head, body) = bed.http(&ask("https://evil.example.com")).await;
    assert_eq!(status, 403);
    assert!(!head.contains("access-control-allow-origin"));
    assert!(body.contains("DENIED"));
}
