//! The closed sets of words and their numbers in `everwire.v1`: one table for wire and disk.
//!
//! Number 0 is "unspecified": it means the documented default, or MALFORMED where there is none.

use everwire_core::Refusal;
use everwire_core::event::{
    ApprovalOutcome, Codec, MessageStatus, PartKind, ParticipantKind, Role, StepStatus,
    SuspendReason, Verdict, Visibility,
};

use crate::field::malformed;
use crate::v1;

macro_rules! words {
    ($($to:ident $from:ident $type:ident { $($variant:ident)* } unspecified $default:expr;)*) => {$(
        pub(crate) fn $to(word: $type) -> v1::$type {
            match word { $($type::$variant => v1::$type::$variant,)* }
        }

        pub(crate) fn $from(field: &str, number: i32) -> Result<$type, Refusal> {
            let default: Option<$type> = $default;
            match v1::$type::try_from(number) {
                $(Ok(v1::$type::$variant) => Ok($type::$variant),)*
                Ok(v1::$type::Unspecified) => default.ok_or_else(|| malformed(field, "is missing")),
                Err(_unknown) => Err(malformed(field, "is not a word that is known here")),
            }
        }
    )*};
}

words! {
    participant_kind_to participant_kind_from ParticipantKind { User Agent Operator Edge Server }
        unspecified None;
    visibility_to visibility_from Visibility { All Operators } unspecified Some(Visibility::All);
    codec_to codec_from Codec { Plain Sealed Opaque } unspecified Some(Codec::Plain);
    role_to role_from Role { Assistant User Tool System } unspecified None;
    message_status_to message_status_from MessageStatus { Complete Cancelled Incomplete }
        unspecified Some(MessageStatus::Complete);
    step_status_to step_status_from StepStatus { Complete Failed }
        unspecified Some(StepStatus::Complete);
    suspend_reason_to suspend_reason_from SuspendReason { Approval Input Auth Paused }
        unspecified None;
    verdict_to verdict_from Verdict { Approve Deny } unspecified None;
    approval_outcome_to approval_outcome_from ApprovalOutcome { Approved Denied Expired Withdrawn }
        unspecified None;
    part_kind_to part_kind_from PartKind { Text Reasoning ToolCall ToolResult Data File }
        unspecified None;
}
