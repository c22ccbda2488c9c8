//! Writers that may not, or not any more: ended, cancelled and foreign runs, old epochs, gaps,
//! keys that stand for something else, payloads above their bounds.

use everwire_core::{Offset, Refusal, RunEpoch, Seq};
use everwire_proto::v1;
use everwire_testkit::{grpc, tokens as mint};
use tonic::Status;
use v1::publish_client::PublishClient;
use v1::runs_client::RunsClient;
use v1::sessions_client::SessionsClient;
use v1::signals_client::SignalsClient;

use crate::streams::{ready, start};
use crate::{House, app, draft, heavy, input};

async fn append(
    house: &House,
    token: &str,
    (run, run_epoch, first_seq): (&str, u32, u64),
    drafts: Vec<v1::Draft>,
) -> Result<v1::AppendResponse, Status> {
    let request = v1::AppendRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
        run_epoch,
        batch: Some(v1::PublishBatch { first_seq, drafts }),
        session_epoch: String::new(),
    };
    let mut publish = PublishClient::new(house.channel.clone());
    let answer = publish.append(grpc::with(token, request)).await?;
    Ok(answer.into_inner())
}

async fn cancel(
    house: &House,
    token: &str,
    run: &str,
    key: &str,
) -> Result<v1::CancelResponse, Status> {
    let request = v1::CancelRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
        key: key.to_owned(),
        ..v1::CancelRequest::default()
    };
    let mut signals = SignalsClient::new(house.channel.clone());
    Ok(signals
        .cancel(grpc::with(token, request))
        .await?
        .into_inner())
}

async fn claim(house: &House, token: &str, run: &str) {
    let request = v1::ClaimRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
        ..v1::ClaimRequest::default()
    };
    let mut runs = RunsClient::new(house.channel.clone());
    let granted = runs.claim(grpc::with(token, request)).await;
    assert_eq!(granted.expect("granted").into_inner().run_epoch, 2);
}

async fn tail(house: &House, token: &str) -> u64 {
    let request = v1::ShowRequest {
        session: "s".to_owned(),
    };
    let mut sessions = SessionsClient::new(house.channel.clone());
    let shown = sessions.show(grpc::with(token, request)).await;
    shown.expect("it is there").into_inner().tail
}

/// Five runs with one event each, four of which take no more of epoch 1; where one was stopped.
async fn runs_in_every_state(house: &House, bot: &str) -> u64 {
    for run in ["ended", "failed", "cancelled", "claimed", "live"] {
        start(house, bot, "s", run).await;
        append(house, bot, (run, 1, 1), vec![app("x")])
            .await
            .expect("committed");
    }
    let completed = draft(v1::draft::Body::RunCompleted(v1::RunCompleted {}));
    let failed = draft(v1::draft::Body::RunFailed(v1::RunFailed {
        reason: "tired".to_owned(),
    }));
    append(house, bot, ("ended", 1, 2), vec![completed])
        .await
        .expect("committed");
    append(house, bot, ("failed", 1, 2), vec![failed])
        .await
        .expect("committed");
    let stop = cancel(house, &house.all(), "cancelled", "stop")
        .await
        .expect("decided");
    let stop = stop.offset.expect("applied");
    claim(house, bot, "claimed").await;
    stop
}

/// What a writer is told so that it can go on, or knows that it cannot.
fn assert_facts(refusal: &Refusal, run: &str, stop: u64) {
    let facts = &refusal.details;
    match refusal.code.as_str() {
        "RUN_FENCED" => assert_eq!(facts.cancel_offset, Offset::new(stop)),
        "RUN_ENDED" => {
            let state = if run == "ended" { "completed" } else { run };
            assert_eq!(facts.state, Some(state));
        },
        "SEQ_GAP" => assert_eq!(facts.expected_seq, Some(Seq(2))),
        "STALE_EPOCH" if run == "claimed" => {
            let told = (facts.run_epoch, facts.last_seq);
            assert_eq!(told, (Some(RunEpoch(2)), Some(Seq(1))));
        },
        _ => {},
    }
}

#[tokio::test]
async fn who_may_not_write_is_told_why_and_writes_nothing() {
    let mut house = House::start().await;
    let bot = mint::agent(house.data(), "bot");
    let other = mint::agent(house.data(), "other");
    let stop = runs_in_every_state(&house, &bot).await;
    let before = tail(&house, &house.all()).await;

    let late = || vec![app("late")];
    for (who, place, code) in [
        (&bot, ("ended", 1, 3), "RUN_ENDED"),
        (&bot, ("failed", 1, 3), "RUN_ENDED"),
        (&bot, ("cancelled", 1, 2), "RUN_FENCED"),
        (&bot, ("claimed", 1, 2), "STALE_EPOCH"),
        (&bot, ("live", 7, 1), "STALE_EPOCH"),
        (&bot, ("live", 1, 3), "SEQ_GAP"),
        (&bot, ("unknown", 1, 1), "UNKNOWN_RUN"),
        (&other, ("live", 1, 2), "DENIED"),
        (&other, ("live", 2, 1), "DENIED"),
        (&other, ("ended", 1, 3), "DENIED"),
    ] {
        let unary = grpc::refusal(append(&house, who, place, late()).await);
        assert_eq!(unary.code.as_str(), code, "{place:?}");
        // On a stream it is the same refusal, fact by fact.
        let (run, run_epoch, first_seq) = place;
        let mut pipe = ready(&house, who, ("s", run, run_epoch)).await;
        pipe.batch(first_seq, late()).await;
        assert_eq!(pipe.refused().await, unary, "{place:?}");
        assert_facts(&unary, run, stop);
    }
    assert_eq!(
        tail(&house, &house.all()).await,
        before,
        "nothing was written"
    );
    // What was committed before the end keeps its place, whoever asks late.
    let again = append(&house, &bot, ("cancelled", 1, 1), vec![app("x")]).await;
    assert!(again.expect("a duplicate").ranges[0].duplicate);
    let taken = append(&house, &bot, ("live", 1, 2), vec![app("y")]).await;
    assert_eq!(taken.expect("the live one goes on").through_seq, 2);
    house.unharmed().await;
}

#[tokio::test]
async fn starting_and_claiming_what_is_somebody_elses_or_over_is_refused() {
    let mut house = House::start().await;
    let bot = mint::agent(house.data(), "bot");
    let other = mint::agent(house.data(), "other");
    for run in ["live", "cancelled"] {
        start(&house, &bot, "s", run).await;
    }
    cancel(&house, &house.all(), "cancelled", "stop")
        .await
        .expect("decided");
    let mut runs = RunsClient::new(house.channel.clone());
    for (who, run, code) in [
        (&other, "live", "ALREADY_CLAIMED"),
        (&bot, "live", "ALREADY_CLAIMED"),
        (&bot, "cancelled", "RUN_FENCED"),
        (&other, "cancelled", "RUN_FENCED"),
    ] {
        let request = v1::StartRequest {
            session: "s".to_owned(),
            run: run.to_owned(),
            ..v1::StartRequest::default()
        };
        let refused = grpc::refusal(runs.start(grpc::with(who, request)).await);
        assert_eq!(refused.code.as_str(), code, "start {run}");
        if code == "ALREADY_CLAIMED" {
            assert_eq!(refused.details.by.expect("by whom").as_str(), "bot");
        }
    }
    for (who, run, code) in [
        (&other, "live", "ALREADY_CLAIMED"),
        (&bot, "cancelled", "RUN_FENCED"),
        (&bot, "unknown", "UNKNOWN_RUN"),
    ] {
        let request = v1::ClaimRequest {
            session: "s".to_owned(),
            run: run.to_owned(),
            ..v1::ClaimRequest::default()
        };
        let refused = runs.claim(grpc::with(who, request)).await;
        assert_eq!(grpc::code(refused), code, "claim {run}");
    }
    house.unharmed().await;
}

#[tokio::test]
async fn a_key_stands_for_one_body() {
    let mut house = House::start().await;
    let ann = mint::without(house.data(), "ann", &[]);
    let post = async |draft: v1::Draft, key: &str| {
        let request = v1::PostRequest {
            session: "s".to_owned(),
            draft: Some(draft),
            key: key.to_owned(),
        };
        let mut publish = PublishClient::new(house.channel.clone());
        let answer = publish.post(grpc::with(&ann, request)).await?;
        Ok::<_, Status>(answer.into_inner())
    };
    let first = post(input("i1", "hello"), "k1").await.expect("taken");
    assert_eq!((first.offset, first.duplicate), (1, false));
    let again = post(input("i1", "hello"), "k1").await.expect("the same");
    assert_eq!((again.offset, again.duplicate), (1, true));
    for (draft, key) in [
        (input("i1", "other"), "k1"),
        (input("i2", "hello"), "k1"),
        (app("x"), "k1"),
        // The id of an input is used up as well.
        (input("i1", "other"), "k2"),
    ] {
        let refusal = grpc::refusal(post(draft, key).await);
        assert_eq!(refusal.code.as_str(), "KEY_REUSED", "{key}");
        assert_eq!(refusal.details.offset, Offset::new(1));
    }
    start(&house, &ann, "s", "r1").await;
    start(&house, &ann, "s", "r2").await;
    assert_eq!(
        cancel(&house, &ann, "r1", "stop")
            .await
            .expect("decided")
            .outcome,
        "applied"
    );
    let reused = cancel(&house, &ann, "r2", "stop").await;
    assert_eq!(grpc::code(reused), "KEY_REUSED");
    assert_eq!(
        grpc::code(cancel(&house, &ann, "r2", "").await),
        "MALFORMED"
    );
    // Keys are one's own: somebody else's are not in the way.
    let bob = mint::without(house.data(), "bob", &[]);
    assert_eq!(
        cancel(&house, &bob, "r2", "stop")
            .await
            .expect("decided")
            .outcome,
        "applied"
    );
    house.unharmed().await;
}

#[tokio::test]
async fn payloads_and_batches_above_their_bounds_are_too_large() {
    let mut house = House::start().await;
    let token = house.all();
    start(&house, &token, "s", "r").await;
    for (drafts, code) in [
        (vec![heavy((256 << 10) + 1)], "TOO_LARGE"),
        (vec![heavy(200 << 10), heavy(100 << 10)], "TOO_LARGE"),
        (vec![app("x"); 4097], "TOO_LARGE"),
        (vec![heavy(600 << 10)], "TOO_LARGE"),
        (vec![], "MALFORMED"),
    ] {
        let refused = append(&house, &token, ("r", 1, 1), drafts).await;
        assert_eq!(grpc::code(refused), code);
    }
    let post = async |draft: v1::Draft| {
        let request = v1::PostRequest {
            session: "s".to_owned(),
            draft: Some(draft),
            key: "k".to_owned(),
        };
        let mut publish = PublishClient::new(house.channel.clone());
        publish.post(grpc::with(&token, request)).await
    };
    let long = input("i", &"x".repeat((64 << 10) + 1));
    assert_eq!(grpc::code(post(long).await), "TOO_LARGE");
    assert_eq!(grpc::code(post(heavy((256 << 10) + 1)).await), "TOO_LARGE");
    let fits = post(input("i", &"x".repeat(64 << 10))).await;
    assert_eq!(fits.expect("just within").into_inner().offset, 2);
    house.unharmed().await;
}
