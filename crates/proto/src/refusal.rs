//! Refusals on the wire: `everwire.v1.Error`, gRPC status, HTTP status.
//!
//! Comes in: a [`Refusal`], or whatever a peer or the transport answered. Goes out: the same in
//! the other form. Never: a decision whether to repeat a request; that is the advice's.

use bytes::Bytes;
use everwire_core::event::ApprovalOutcome;
use everwire_core::position::{Offset, RunEpoch, Seq};
use everwire_core::row::RunState;
use everwire_core::{Advice, Code, Details, ParticipantId, Refusal};
use prost::Message;

use crate::v1;

impl From<&Refusal> for v1::Error {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code.as_str().to_owned(),
            advice: refusal.advice().as_str().to_owned(),
            message: refusal.message.clone(),
            details: details_to(&refusal.details),
        }
    }
}

fn details_to(details: &Details) -> Option<v1::ErrorDetails> {
    if *details == Details::default() {
        return None;
    }
    Some(v1::ErrorDetails {
        cancel_offset: details.cancel_offset.map(Offset::get),
        next_epoch: details.next_epoch.map(|epoch| epoch.0),
        run_epoch: details.run_epoch.map(|epoch| epoch.0),
        expected_seq: details.expected_seq.map(|seq| seq.0),
        last_seq: details.last_seq.map(|seq| seq.0),
        last_offset: details.last_offset.map(Offset::get),
        state: details.state.map(str::to_owned),
        offset: details.offset.map(Offset::get),
        by: details.by.as_ref().map(ToString::to_string),
        earliest: details.earliest.map(Offset::get),
        tail: details.tail.map(Offset::get),
        session_epoch: details.session_epoch.map(|epoch| epoch.to_string()),
        limit: details.limit,
        leader: details.leader.clone(),
        term: details.term,
        map_version: details.map_version,
    })
}

/// A peer's error as a refusal. A code that is not known here becomes UNSUPPORTED_VERSION if
/// its advice is `stop`, else INTERNAL, so that it is repeated only when that may help. Details
/// that cannot be read are left out.
pub fn from_error(error: v1::Error) -> Refusal {
    let details = error.details.map(details_from).unwrap_or_default();
    match Code::parse(&error.code) {
        Some(code) => Refusal::with(code, error.message, details),
        None => {
            let code = if error.advice == Advice::Stop.as_str() {
                Code::UnsupportedVersion
            } else {
                Code::Internal
            };
            let message = format!("an unknown refusal: {}", error.message);
            Refusal::with(code, message, details)
        },
    }
}

fn details_from(details: v1::ErrorDetails) -> Details {
    let state = details.state.as_deref().and_then(state_word);
    let by = details.by.as_deref().map(ParticipantId::parse);
    let session_epoch = details.session_epoch.map(|text| text.parse());
    Details {
        cancel_offset: details.cancel_offset.and_then(Offset::new),
        next_epoch: details.next_epoch.map(RunEpoch),
        run_epoch: details.run_epoch.map(RunEpoch),
        expected_seq: details.expected_seq.map(Seq),
        last_seq: details.last_seq.map(Seq),
        last_offset: details.last_offset.and_then(Offset::new),
        state,
        offset: details.offset.and_then(Offset::new),
        by: by.and_then(Result::ok),
        earliest: details.earliest.and_then(Offset::new),
        tail: details.tail.and_then(Offset::new),
        session_epoch: session_epoch.and_then(Result::ok),
        limit: details.limit,
        leader: details.leader,
        term: details.term,
        map_version: details.map_version,
    }
}

/// The refusal as a gRPC status: an encoded `everwire.v1.Error` stands in the details.
pub fn to_status(refusal: &Refusal) -> tonic::Status {
    let details = Bytes::from(v1::Error::from(refusal).encode_to_vec());
    tonic::Status::with_details(grpc_code(refusal.code), refusal.message.clone(), details)
}

/// A gRPC status as a refusal.
///
/// Without our details it was made by the transport or by something in between, so the code is
/// the one whose advice fits: a connection that is refused, lost or cancelled says DRAINING
/// (try elsewhere), a deadline or exhaustion OVERLOADED (try again), a message above the
/// decoder's bound TOO_LARGE, a method that is not there UNSUPPORTED_VERSION.
pub fn from_status(status: &tonic::Status) -> Refusal {
    if !status.details().is_empty()
        && let Ok(error) = v1::Error::decode(status.details())
        && !error.code.is_empty()
    {
        return from_error(error);
    }
    let code = match status.code() {
        tonic::Code::Unavailable | tonic::Code::Cancelled => Code::Draining,
        tonic::Code::DeadlineExceeded | tonic::Code::ResourceExhausted => Code::Overloaded,
        tonic::Code::OutOfRange => Code::TooLarge,
        tonic::Code::InvalidArgument => Code::Malformed,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
        tonic::Code::PermissionDenied => Code::Denied,
        tonic::Code::Unimplemented => Code::UnsupportedVersion,
        tonic::Code::Ok
        | tonic::Code::Unknown
        | tonic::Code::NotFound
        | tonic::Code::AlreadyExists
        | tonic::Code::FailedPrecondition
        | tonic::Code::Aborted
        | tonic::Code::Internal
        | tonic::Code::DataLoss => Code::Internal,
    };
    Refusal::new(
        code,
        format!("the transport answered: {}", status.message()),
    )
}

/// Where a run, or a request for an approval, stands, if it is a word that is known here.
fn state_word(word: &str) -> Option<&'static str> {
    let run = RunState::parse(word).map(RunState::as_str);
    run.or_else(|| ApprovalOutcome::parse(word).map(ApprovalOutcome::as_str))
}

/// The gRPC status code of a code; printed in `docs/protocol/codes.md`.
pub fn grpc_code(code: Code) -> tonic::Code {
    use tonic::Code as Grpc;
    match code {
        Code::Unauthenticated | Code::TokenExpired | Code::TokenRevoked => Grpc::Unauthenticated,
        Code::Denied => Grpc::PermissionDenied,
        Code::UnknownSession | Code::UnknownRun | Code::UnknownApproval => Grpc::NotFound,
        Code::RunFenced
        | Code::RunEnded
        | Code::StaleEpoch
        | Code::AlreadyClaimed
        | Code::ParentFenced
        | Code::FloorHeld
        | Code::WrongState
        | Code::AlreadyResolved
        | Code::Expired
        | Code::WrongCluster
        | Code::Frozen => Grpc::FailedPrecondition,
        Code::SeqGap => Grpc::Aborted,
        Code::KeyReused => Grpc::AlreadyExists,
        Code::Gone => Grpc::OutOfRange,
        Code::TooLarge | Code::Malformed => Grpc::InvalidArgument,
        Code::UnsupportedVersion => Grpc::Unimplemented,
        Code::TooManyPending | Code::Quota | Code::DiskFull => Grpc::ResourceExhausted,
        Code::Overloaded
        | Code::NotLeader
        | Code::NoQuorum
        | Code::Stale
        | Code::Draining
        | Code::SlowReader => Grpc::Unavailable,
        Code::Internal => Grpc::Internal,
    }
}

/// The HTTP status of a code: [`Code::http_status`].
pub fn http_status(code: Code) -> u16 {
    code.http_status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_grpc_status() {
        for code in Code::ALL {
            let details = Details {
                offset: Offset::new(7),
                state: Some("failed"),
                ..Details::default()
            };
            let refusal = Refusal::with(*code, "it did not work", details);
            let status = to_status(&refusal);
            assert_ne!(status.code(), tonic::Code::Ok);
            assert_eq!(from_status(&status), refusal);
        }
    }

    #[test]
    fn every_error_is_an_http_error() {
        for code in Code::ALL {
            assert!((400..600).contains(&http_status(*code)), "{code}");
        }
    }

    #[test]
    fn a_status_without_our_details_gets_fitting_advice() {
        let advice = |status: tonic::Status| from_status(&status).advice();
        assert_eq!(
            advice(tonic::Status::unavailable("connection refused")),
            Advice::RetryElsewhere
        );
        assert_eq!(advice(tonic::Status::deadline_exceeded("")), Advice::Retry);
        assert_eq!(advice(tonic::Status::unimplemented("")), Advice::Stop);
        let junk = Bytes::from_static(&[0xff; 9]);
        let status = tonic::Status::with_details(tonic::Code::Internal, "", junk);
        assert_eq!(from_status(&status).code, Code::Internal);
    }

    #[test]
    fn an_unknown_code_keeps_the_meaning_of_its_advice() {
        let error = |advice: &str| v1::Error {
            code: "NEWER_CODE".to_owned(),
            advice: advice.to_owned(),
            ..v1::Error::default()
        };
        assert_eq!(from_error(error("stop")).advice(), Advice::Stop);
        assert_eq!(from_error(error("retry")).advice(), Advice::Retry);
    }

    #[test]
    fn details_that_cannot_be_read_are_left_out() {
        let error = v1::Error {
            code: "GONE".to_owned(),
            details: Some(v1::ErrorDetails {
                session_epoch: Some("x".to_owned()),
                by: Some("not a name".to_owned()),
                state: Some("dreaming".to_owned()),
                tail: Some(u64::MAX),
                ..v1::ErrorDetails::default()
            }),
            ..v1::Error::default()
        };
        assert_eq!(*from_error(error).details, Details::default());
    }
}
