//! A poison command in a real process: its session is frozen, across kill -9 too; the process
//! and all other sessions go on; an operator unfreezes it. Needs a binary that can be poisoned.

use everwire_core::{Body, Code, Draft, Key, SessionName};
use everwire_testkit::process::{dev_token, folder, json_lines};
use everwire_testkit::{Server, client, run, tokens};

fn app(name: &str) -> Draft {
    Draft::new(Body::App {
        name: name.to_owned(),
        data: None,
    })
}

fn key(text: &str) -> Option<Key> {
    Key::parse(text).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_command_freezes_one_session_and_ends_no_process() {
    let data = folder();
    let mut server = Server::dev(data.path()).await;
    let ann = || tokens::user(data.path(), "ann");
    let frozen = SessionName::parse("frozen").expect("a name");
    let other = SessionName::parse("other").expect("a name");
    {
        let ann = client(&server.grpc, &ann());
        ann.post(&frozen, app("before"), key("k1"))
            .await
            .expect("taken");
        let refused = ann.post(&frozen, app("everwire.test.poison"), key("k2"));
        assert_eq!(refused.await.expect_err("poison").code, Code::Frozen);
    }
    // The log is replayed, poison and all; the state is the same again.
    for _ in 0..2 {
        let ann = client(&server.grpc, &ann());
        let again = ann.post(&frozen, app("before"), key("k1")).await;
        assert_eq!(again.expect_err("frozen").code, Code::Frozen);
        let info = ann.show_session(&frozen).await.expect("readers go on");
        assert_eq!(info.tail.get(), 1);
        assert_eq!(info.frozen.expect("it is frozen").command, "post");
        ann.post(&other, app("x"), None).await.expect("taken");
        server.kill().await;
        server = Server::dev(data.path()).await;
    }
    let logged = server.logged();
    let told = logged.matches("a session was frozen").count();
    assert!(told >= 1, "nobody was told:\n{logged}");

    let unfreeze = ["session", "unfreeze", "frozen", "--json"];
    let denied = run(&server.grpc, &ann(), &unfreeze).await;
    assert_eq!(denied.status.code(), Some(4), "ann is no operator");
    let operator = dev_token(data.path());
    for unfrozen in [true, false] {
        let done = run(&server.grpc, &operator, &unfreeze).await;
        assert!(done.status.success(), "{done:?}");
        let said = json_lines(&done);
        assert_eq!(said[0]["unfrozen"], unfrozen, "{said:?}");
    }
    let ann = client(&server.grpc, &ann());
    let posted = ann.post(&frozen, app("after"), key("k2")).await;
    assert_eq!(posted.expect("it goes on").offset.get(), 2);
}
