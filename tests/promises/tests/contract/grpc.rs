//! gRPC: the services by name, health, reflection, the token, details of errors.

use everwire_core::{Advice, Offset};
use everwire_proto::v1;
use everwire_testkit::grpc::{channel, code, refusal, with};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};
use v1::publish_client::PublishClient;
use v1::runs_client::RunsClient;
use v1::sessions_client::SessionsClient;

use crate::{Dev, page};

/// The services that the page lists.
fn services() -> Vec<String> {
    let page = page();
    let line = page
        .lines()
        .find(|line| line.starts_with("Package `everwire.v1`"));
    let line = line.expect("the page lists the services");
    let names: Vec<_> = line.split('`').skip(1).step_by(2).collect();
    let (package, names) = names.split_first().expect("a package");
    let full = names.iter().map(|name| match name.contains('.') {
        true => (*name).to_owned(),
        false => format!("{package}.{name}"),
    });
    full.collect()
}

async fn reflect(channel: Channel, ask: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(ask),
    };
    let requests = tokio_stream(request);
    let mut client = ServerReflectionClient::new(channel);
    let answer = client.server_reflection_info(requests).await;
    let mut answers = answer.expect("reflection needs no token").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    answer.message_response.expect("it says something")
}

fn tokio_stream<T: Send + 'static>(item: T) -> impl futures_util::Stream<Item = T> + Send {
    futures_util::stream::once(std::future::ready(item))
}

#[tokio::test]
async fn the_services_of_the_page_are_listed_and_healthy() {
    let dev = Dev::start().await;
    let channel = channel(&dev.server.grpc).await;
    let services = services();
    assert_eq!(services.len(), 7, "{services:?}");
    let listed = reflect(channel.clone(), MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("{listed:?}");
    };
    let listed: Vec<_> = listed
        .service
        .into_iter()
        .map(|ServiceResponse { name }| name)
        .collect();
    for service in &services {
        assert!(listed.contains(service), "{service} is not in {listed:?}");
        let ask = MessageRequest::FileContainingSymbol(service.clone());
        let file = reflect(channel.clone(), ask).await;
        assert!(
            matches!(file, MessageResponse::FileDescriptorResponse(_)),
            "{file:?}"
        );
    }
    let mut health = HealthClient::new(channel);
    let ours = services
        .into_iter()
        .filter(|service| service.starts_with("everwire."));
    for service in ours.chain([String::new()]) {
        let answer = health.check(HealthCheckRequest { service }).await;
        let answer = answer.expect("health needs no token").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let unknown = HealthCheckRequest {
        service: "everwire.v1.Nothing".to_owned(),
    };
    let status = health.check(unknown).await.expect_err("there is none");
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn a_token_is_a_bearer_and_nothing_else() {
    let dev = Dev::start().await;
    let mut sessions = SessionsClient::new(channel(&dev.server.grpc).await);
    let create = || v1::CreateRequest {
        session: "s".to_owned(),
    };
    let made = sessions.create(with(&dev.token, create())).await;
    assert!(made.expect("allowed").into_inner().created);
    assert_eq!(code(sessions.create(create()).await), "UNAUTHENTICATED");
    for header in [
        String::new(),
        dev.token.clone(),
        format!("Basic {}", dev.token),
        "Bearer".to_owned(),
    ] {
        let mut request = tonic::Request::new(create());
        let value = header.parse().expect("ASCII");
        request.metadata_mut().insert("authorization", value);
        assert_eq!(code(sessions.create(request).await), "UNAUTHENTICATED");
    }
    let mut request = tonic::Request::new(create());
    let value = format!("bearer {}", dev.token).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
    let made = sessions
        .create(request)
        .await
        .expect("schemes have no case");
    assert!(!made.into_inner().created);
}

#[tokio::test]
async fn errors_carry_code_advice_and_facts() {
    let dev = Dev::start().await;
    let channel = channel(&dev.server.grpc).await;
    let start = v1::StartRequest {
        session: "s".to_owned(),
        run: "r1".to_owned(),
        ..v1::StartRequest::default()
    };
    let granted = RunsClient::new(channel.clone())
        .start(with(&dev.token, start))
        .await;
    assert_eq!(granted.expect("granted").into_inner().run_epoch, 1);
    let body = v1::draft::Body::App(v1::App {
        name: "x".to_owned(),
        data: None,
    });
    let draft = v1::Draft {
        body: Some(body),
        ..v1::Draft::default()
    };
    let append = |first_seq| v1::AppendRequest {
        session: "s".to_owned(),
        run: "r1".to_owned(),
        run_epoch: 1,
        batch: Some(v1::PublishBatch {
            first_seq,
            drafts: vec![draft.clone()],
        }),
        session_epoch: String::new(),
    };
    let mut publish = PublishClient::new(channel);
    let answer = publish.append(with(&dev.token, append(1))).await;
    assert_eq!(answer.expect("committed").into_inner().through_offset, 2);
    let status = publish.append(with(&dev.token, append(7))).await;
    assert_eq!(
        status.as_ref().expect_err("a gap").code(),
        tonic::Code::Aborted
    );
    let gap = refusal(status);
    assert_eq!(
        (gap.code.as_str(), gap.advice()),
        ("SEQ_GAP", Advice::Retry)
    );
    assert_eq!(gap.details.expected_seq, Some(everwire_core::Seq(2)));
    dev.done(&["cancel", "s", "--run", "r1"]).await;
    let fenced = refusal(publish.append(with(&dev.token, append(2))).await);
    assert_eq!(fenced.code.as_str(), "RUN_FENCED");
    assert_eq!(fenced.details.cancel_offset, Offset::new(3));
    assert!(!fenced.message.is_empty());
}
