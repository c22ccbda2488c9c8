//! openraft's messages ⇄ `everwire.internal.v1`. Entries travel as the bytes that stand in the
//! log, so that no release decodes and re-encodes what another has written (RULES 2).

use std::io;

use everwire_core::{Code, Refusal};
use everwire_proto::internal_v1 as wire;
use everwire_proto::{refusal, storage_v1 as disk, v1};
use everwire_store::{LogPosition, VoteRecord};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};

use crate::raft::codec;
use crate::raft::types::{LogId, TypeConfig, Vote};

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(super) fn vote_to(vote: &Vote) -> disk::Vote {
    let record = codec::vote_record(vote);
    disk::Vote {
        term: record.term,
        node: record.node,
        committed: record.committed,
    }
}

pub(super) fn vote_from(vote: Option<disk::Vote>) -> Result<Vote, io::Error> {
    let vote = vote.ok_or_else(|| damaged("no vote"))?;
    Ok(codec::vote(VoteRecord {
        term: vote.term,
        node: vote.node,
        committed: vote.committed,
    }))
}

pub(super) fn position_to(id: &LogId) -> disk::LogPosition {
    let position = codec::position(id);
    disk::LogPosition {
        term: position.term,
        node: position.node,
        index: position.index,
    }
}

pub(super) fn position_from(position: disk::LogPosition) -> LogId {
    codec::log_id(LogPosition {
        term: position.term,
        node: position.node,
        index: position.index,
    })
}

pub(super) fn append_to(
    group: u32,
    request: &AppendEntriesRequest<TypeConfig>,
) -> wire::AppendRequest {
    let entries = request.entries.iter();
    wire::AppendRequest {
        group,
        vote: Some(vote_to(&request.vote)),
        previous: request.prev_log_id.as_ref().map(position_to),
        entries: entries.map(|entry| codec::record(entry).bytes).collect(),
        committed: request.leader_commit.as_ref().map(position_to),
    }
}

pub(super) fn append_from(
    request: wire::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, io::Error> {
    let entries = request.entries.iter();
    Ok(AppendEntriesRequest {
        vote: vote_from(request.vote)?,
        prev_log_id: request.previous.map(position_from),
        entries: entries.map(codec::entry_from).collect::<Result<_, _>>()?,
        leader_commit: request.committed.map(position_from),
    })
}

/// The answer of a group that is not here.
pub(super) fn absent() -> wire::AppendResponse {
    wire::AppendResponse {
        answer: Some(wire::append_response::Answer::Absent(wire::Absent {})),
    }
}

pub(super) fn appended_to(result: &StreamAppendResult<TypeConfig>) -> wire::AppendResponse {
    use wire::append_response::Answer;
    let answer = match result {
        Ok(matched) => Answer::Matched(wire::Matched {
            position: matched.as_ref().map(position_to),
        }),
        Err(StreamAppendError::Conflict(at)) => Answer::Conflict(position_to(at)),
        Err(StreamAppendError::HigherVote(vote)) => Answer::Higher(vote_to(vote)),
    };
    wire::AppendResponse {
        answer: Some(answer),
    }
}

/// `None`: the group is not there.
pub(super) fn appended_from(
    response: wire::AppendResponse,
) -> Result<Option<StreamAppendResult<TypeConfig>>, io::Error> {
    use wire::append_response::Answer;
    let answer = response.answer.ok_or_else(|| damaged("no answer"))?;
    Ok(match answer {
        Answer::Matched(matched) => Some(Ok(matched.position.map(position_from))),
        Answer::Conflict(at) => Some(Err(StreamAppendError::Conflict(position_from(at)))),
        Answer::Higher(vote) => Some(Err(StreamAppendError::HigherVote(vote_from(Some(vote))?))),
        Answer::Absent(wire::Absent {}) => None,
    })
}

/// A beat's answer as the stream form has it.
pub(super) fn beat_answer(
    response: AppendEntriesResponse<TypeConfig>,
    request: &AppendEntriesRequest<TypeConfig>,
) -> StreamAppendResult<TypeConfig> {
    let previous = request.prev_log_id;
    match response {
        AppendEntriesResponse::Success => Ok(previous),
        AppendEntriesResponse::PartialSuccess(matched) => Ok(matched),
        AppendEntriesResponse::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
        // Nothing precedes an empty log, so nothing can conflict with it.
        AppendEntriesResponse::Conflict => match previous {
            Some(previous) => Err(StreamAppendError::Conflict(previous)),
            None => Ok(None),
        },
    }
}

pub(super) fn vote_request_to(
    group: u32,
    request: &VoteRequest<TypeConfig>,
    pre_vote: bool,
) -> wire::VoteRequest {
    wire::VoteRequest {
        group,
        vote: Some(vote_to(&request.vote)),
        last: request.last_log_id.as_ref().map(position_to),
        transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(super) fn vote_request_from(
    request: &wire::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, io::Error> {
    let last = request.last.map(position_from);
    let mut asked = VoteRequest::new(vote_from(request.vote)?, last);
    asked.leadership_transfer = request.transfer;
    Ok(asked)
}

pub(super) fn vote_response_to(response: &VoteResponse<TypeConfig>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_to(&response.vote)),
        last: response.last_log_id.as_ref().map(position_to),
        granted: response.vote_granted,
        absent: false,
    }
}

pub(super) fn vote_response_from(
    response: &wire::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, io::Error> {
    let last = response.last.map(position_from);
    Ok(VoteResponse::new(
        vote_from(response.vote)?,
        last,
        response.granted,
    ))
}

pub(super) fn transfer_to(
    group: u32,
    request: &TransferLeaderRequest<TypeConfig>,
) -> wire::TransferRequest {
    wire::TransferRequest {
        group,
        vote: Some(vote_to(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(position_to),
    }
}

pub(super) fn transfer_from(
    request: &wire::TransferRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, io::Error> {
    let last = request.last.map(position_from);
    Ok(TransferLeaderRequest::new(
        vote_from(request.vote)?,
        request.to,
        last,
    ))
}

/// A refusal that a peer gave, if it gave one.
pub(crate) fn refusal_from(error: Option<v1::Error>) -> Result<(), Refusal> {
    match error {
        Some(error) => Err(refusal::from_error(error)),
        None => Ok(()),
    }
}

/// What a caller is told when a peer could not be reached, or did not take the call: that it is
/// somebody else by now, or not in the cluster yet, says nothing about what was asked for. A
/// refusal of that stands in the response.
pub(crate) fn change_refusal(status: &tonic::Status) -> Refusal {
    let told = refusal::from_status(status);
    tracing::debug!(refusal = %told, "a peer did not take a call");
    Refusal::new(Code::NotLeader, "the leader could not be reached")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_somebody_else_is_no_refusal_of_the_command() {
        for code in [Code::WrongState, Code::WrongCluster, Code::Draining] {
            let status = refusal::to_status(&Refusal::new(code, "not me"));
            assert_eq!(change_refusal(&status).code, Code::NotLeader);
        }
        let broken = tonic::Status::unavailable("broken pipe");
        assert_eq!(change_refusal(&broken).code, Code::NotLeader);
    }
}
