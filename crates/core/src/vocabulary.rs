//! The closed vocabularies of an event: each word of the wire and the variant that it names.

macro_rules! vocabulary {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// Every variant, in the order of the docs.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The variant with this word.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

vocabulary! {
    /// What kind of participant wrote something.
    ParticipantKind {
        /// A person.
        User "user",
        /// A program that does the work.
        Agent "agent",
        /// A person who runs the product.
        Operator "operator",
        /// An edge, for its shared subscriptions; never an author.
        Edge "edge",
        /// The server itself, for what nobody asked for; never in a token.
        Server "server",
    }
}

vocabulary! {
    /// Who may see an event; the widest audience first.
    #[derive(Default)]
    Visibility {
        /// Everybody who may subscribe.
        #[default]
        All "all",
        /// Everybody but users.
        Operators "operators",
    }
}

impl Visibility {
    /// Whether a participant of this kind sees events of this class.
    pub fn shown_to(self, kind: ParticipantKind) -> bool {
        match self {
            Self::All => true,
            Self::Operators => kind != ParticipantKind::User,
        }
    }
}

vocabulary! {
    /// How the payload of an event is to be read.
    #[derive(Default)]
    Codec {
        /// As it stands.
        #[default]
        Plain "plain",
        /// Encrypted with a key that the operator can destroy.
        Sealed "sealed",
        /// Encrypted end to end; the server never holds the key.
        Opaque "opaque",
    }
}

vocabulary! {
    /// Who speaks in a message.
    Role {
        /// The model.
        Assistant "assistant",
        /// A person, when an agent repeats what was said.
        User "user",
        /// A tool.
        Tool "tool",
        /// Instructions.
        System "system",
    }
}

vocabulary! {
    /// How a message ended.
    MessageStatus {
        /// Its writer ended it.
        Complete "complete",
        /// Its run was cancelled while it was open; sealed by the server.
        Cancelled "cancelled",
        /// Its run ended in another way while it was open; sealed by the server.
        Incomplete "incomplete",
    }
}

vocabulary! {
    /// How an attempt at a step ended.
    StepStatus {
        /// Well.
        Complete "complete",
        /// Badly: it may be tried again.
        Failed "failed",
    }
}

vocabulary! {
    /// Why a run waits.
    SuspendReason {
        /// For the answer to an approval that it has asked for.
        Approval "approval",
        /// For something that a person is to say.
        Input "input",
        /// For credentials.
        Auth "auth",
        /// Somebody paused it.
        Paused "paused",
    }
}

vocabulary! {
    /// An answer to a request for an approval.
    Verdict {
        /// It may be done.
        Approve "approve",
        /// It may not.
        Deny "deny",
    }
}

vocabulary! {
    /// What became of a request for an approval.
    ApprovalOutcome {
        /// Somebody said yes.
        Approved "approved",
        /// Somebody said no.
        Denied "denied",
        /// Nobody answered in time: never a person's denial.
        Expired "expired",
        /// Nobody asks any more: its run took it back, or has ended.
        Withdrawn "withdrawn",
    }
}

vocabulary! {
    /// What a part of a message is.
    PartKind {
        /// Text for a person.
        Text "text",
        /// The model's reasoning.
        Reasoning "reasoning",
        /// A call of a tool; its deltas are the arguments.
        ToolCall "tool_call",
        /// What a tool answered.
        ToolResult "tool_result",
        /// Structured data of the application.
        Data "data",
        /// A reference to a file: URL and hash.
        File "file",
    }
}

vocabulary! {
    /// The kind of an event: the word by which readers tell events apart.
    Kind {
        /// A run began to write.
        RunStarted "run.started",
        /// A writer took a run over under the next run_epoch.
        RunClaimed "run.claimed",
        /// A run's writer was silent for its whole lease.
        RunOrphaned "run.orphaned",
        /// A run waits, and holds no lease.
        RunSuspended "run.suspended",
        /// A run that waited goes on.
        RunResumed "run.resumed",
        /// A run ended well.
        RunCompleted "run.completed",
        /// A run ended badly.
        RunFailed "run.failed",
        /// A run was cancelled.
        RunCancelled "run.cancelled",
        /// What a run that was stopped gracefully still had to say.
        RunEpilogue "run.epilogue",
        /// An attempt at a step begins; it supersedes the one before.
        StepStart "step.start",
        /// An attempt at a step ended.
        StepEnd "step.end",
        /// A message begins.
        MessageStart "message.start",
        /// A message ended.
        MessageEnd "message.end",
        /// A part begins.
        PartStart "part.start",
        /// An increment of a part.
        PartDelta "part.delta",
        /// A part ended.
        PartEnd "part.end",
        /// A client's input.
        Input "input",
        /// A stop.
        SignalCancel "signal.cancel",
        /// Runs are to wait.
        SignalPause "signal.pause",
        /// Runs are to go on.
        SignalResume "signal.resume",
        /// The writer of a run has seen a signal.
        SignalObserved "signal.observed",
        /// A run asks for an approval.
        ApprovalRequested "approval.requested",
        /// What became of such a request.
        ApprovalResolved "approval.resolved",
        /// An application event.
        App "app",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_one_variant_each() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(*kind));
        }
        for part in PartKind::ALL {
            assert_eq!(PartKind::parse(part.as_str()), Some(*part));
        }
        assert_eq!(Kind::parse("run.unheard"), None);
    }

    #[test]
    fn users_see_no_operators_events() {
        assert!(!Visibility::Operators.shown_to(ParticipantKind::User));
        assert!(Visibility::Operators.shown_to(ParticipantKind::Agent));
        assert!(Visibility::All.shown_to(ParticipantKind::User));
    }
}
