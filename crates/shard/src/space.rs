//! What a full disk refuses (RULES 35): agents first, then people, deletes never.

use everwire_core::command::{Command, Lane, Op};
use everwire_core::{Code, Refusal};
use everwire_store::SpaceLevel;

/// A level as a report carries it.
pub(crate) fn number(level: SpaceLevel) -> u32 {
    match level {
        SpaceLevel::Plenty => 0,
        SpaceLevel::AgentsRefused => 1,
        SpaceLevel::PeopleRefused => 2,
    }
}

/// Whether a disk at this level has no room for a command.
pub(crate) fn refuses(level: u32, command: &Command) -> bool {
    // What makes room is never refused for want of it.
    if matches!(command.op, Op::DeleteSession) {
        return false;
    }
    let needed = match command.op.lane() {
        Lane::Agents => SpaceLevel::AgentsRefused,
        Lane::People => SpaceLevel::PeopleRefused,
    };
    level >= number(needed)
}

/// What the caller is told.
pub(crate) fn full() -> Refusal {
    let message = "the disk is nearly full: delete sessions, or give it more room";
    Refusal::new(Code::DiskFull, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::command::StartRun;
    use everwire_core::{
        Author, Cancel, Key, Namespace, ParticipantId, ParticipantKind, RunId, SessionName,
    };

    fn command(op: Op) -> Command {
        Command {
            namespace: Namespace::parse("acme").unwrap(),
            session: SessionName::parse("s").unwrap(),
            actor: Author {
                participant: ParticipantId::parse("ann").unwrap(),
                kind: ParticipantKind::User,
            },
            may_create: true,
            session_epoch: None,
            op,
        }
    }

    #[test]
    fn agents_are_refused_before_people_and_deletes_never() {
        let stop = command(Op::Cancel {
            cancel: Cancel::run(RunId::parse("r").unwrap()),
            key: Key::parse("k").unwrap(),
            body_hash: 1,
        });
        let start = command(Op::StartRun(StartRun::new(RunId::parse("r").unwrap())));
        let delete = command(Op::DeleteSession);
        let refused = |level| [&start, &stop, &delete].map(|command| refuses(level, command));
        assert_eq!(refused(number(SpaceLevel::Plenty)), [false, false, false]);
        assert_eq!(
            refused(number(SpaceLevel::AgentsRefused)),
            [true, false, false]
        );
        assert_eq!(
            refused(number(SpaceLevel::PeopleRefused)),
            [true, true, false]
        );
    }
}
