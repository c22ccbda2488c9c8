//! Random sequences of what is wanted; [`crate::random`] decides what it means while it is played.

use proptest::prelude::*;

/// What a sequence wants at one place; numbers are picked from what is there then.
#[derive(Clone, Debug)]
pub(crate) enum Intent {
    Create(u8),
    Delete,
    Unfreeze,
    Start(Start),
    Claim {
        by: Option<u8>,
        run: u8,
        key: Option<u8>,
    },
    Publish(Publish),
    Input {
        by: u8,
        id: u8,
        key: Option<u8>,
    },
    App {
        by: u8,
        key: Option<u8>,
        hash: u8,
    },
    Cancel {
        by: u8,
        run: u8,
        key: u8,
    },
    Stop(Stop),
    Heartbeat(Beat),
    Epilogue {
        run: u8,
        seq: i8,
    },
    /// The leader says that a lease has ended; sometimes of what is long past.
    Expire {
        run: u8,
        late: bool,
    },
    /// The leader lets every deadline fire that has come.
    Fire,
    /// Sends a former command again, as it was.
    Again(u8),
    Advance(u64),
}

/// A start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    pub(crate) by: u8,
    pub(crate) run: u8,
    pub(crate) key: Option<u8>,
    pub(crate) parent: Option<u8>,
    pub(crate) input: Option<u8>,
}

/// A batch, off from where its writer stands by so much.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub(crate) by: Option<u8>,
    pub(crate) run: u8,
    pub(crate) epoch: i8,
    pub(crate) seq: i8,
    pub(crate) pieces: Vec<Piece>,
}

/// A sign of life, and how far behind the tail its writer says to be.
#[derive(Clone, Debug)]
pub(crate) struct Beat {
    pub(crate) by: Option<u8>,
    pub(crate) run: u8,
    pub(crate) epoch: i8,
    pub(crate) behind: Option<i8>,
}

/// A stop of any kind.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    pub(crate) by: u8,
    pub(crate) target: u8,
    pub(crate) run: u8,
    pub(crate) input: u8,
    pub(crate) key: u8,
    pub(crate) graceful: bool,
    pub(crate) expect: Option<u8>,
    pub(crate) as_of: Option<u8>,
}

/// A draft of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// Begins a step, mostly the one that is open, or none is.
    Step(u8),
    EndStep(u8),
    Message,
    UsedMessage(u8),
    EndMessage(u8),
    Part(u8),
    UsedPart(u8),
    EndPart(u8),
    Delta(u8, String),
    Astray,
    App,
    Complete,
    Fail,
    Illegal,
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        2 => any::<u8>().prop_map(Piece::Step),
        3 => any::<u8>().prop_map(Piece::EndStep),
        3 => Just(Piece::Message),
        1 => any::<u8>().prop_map(Piece::EndMessage),
        4 => any::<u8>().prop_map(Piece::Part),
        3 => any::<u8>().prop_map(Piece::EndPart),
        24 => (any::<u8>(), "[a-c\u{e9}\u{1f600}]{0,4}").prop_map(|(part, text)| Piece::Delta(part, text)),
        2 => Just(Piece::App),
    ]
}

/// What spoils a batch, or ends its run.
fn odd_piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        2 => any::<u8>().prop_map(Piece::UsedMessage),
        2 => any::<u8>().prop_map(Piece::UsedPart),
        2 => Just(Piece::Astray),
        1 => Just(Piece::Illegal),
        3 => Just(Piece::Complete),
        3 => Just(Piece::Fail),
    ]
}

fn maybe_key() -> impl Strategy<Value = Option<u8>> {
    prop::option::of(any::<u8>())
}

fn publish_intent() -> impl Strategy<Value = Intent> {
    let by = prop_oneof![12 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let epoch = prop_oneof![12 => Just(0i8), 1 => Just(-1), 1 => Just(1)];
    let seq = prop_oneof![10 => Just(0i8), 3 => -6i8..0, 1 => 1i8..3];
    let odd = prop::option::weighted(0.15, (odd_piece(), prop::bool::weighted(0.8)));
    let pieces = (prop::collection::vec(piece(), 1..6), odd).prop_map(|(mut pieces, odd)| {
        match odd {
            Some((odd, true)) => pieces.push(odd),
            Some((odd, false)) => pieces.insert(0, odd),
            None => {},
        }
        pieces
    });
    (by, any::<u8>(), epoch, seq, pieces).prop_map(|(by, run, epoch, seq, pieces)| {
        Intent::Publish(Publish {
            by,
            run,
            epoch,
            seq,
            pieces,
        })
    })
}

fn stop_intent() -> impl Strategy<Value = Intent> {
    let numbers = any::<[u8; 5]>();
    let expect = prop::option::weighted(0.15, any::<u8>());
    let as_of = prop::option::weighted(0.15, any::<u8>());
    (numbers, prop::bool::weighted(0.4), expect, as_of).prop_map(
        |([by, target, run, input, key], graceful, expect, as_of)| {
            Intent::Stop(Stop {
                by,
                target,
                run,
                input,
                key,
                graceful,
                expect,
                as_of,
            })
        },
    )
}

fn start_intent() -> impl Strategy<Value = Intent> {
    let parent = prop::option::weighted(0.4, any::<u8>());
    let input = prop::option::weighted(0.4, any::<u8>());
    (any::<u8>(), any::<u8>(), maybe_key(), parent, input).prop_map(
        |(by, run, key, parent, input)| {
            Intent::Start(Start {
                by,
                run,
                key,
                parent,
                input,
            })
        },
    )
}

fn heartbeat_intent() -> impl Strategy<Value = Intent> {
    let by = prop_oneof![12 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let epoch = prop_oneof![12 => Just(0i8), 1 => Just(-1), 1 => Just(1)];
    let behind = prop::option::of(-1i8..6);
    (by, any::<u8>(), epoch, behind).prop_map(|(by, run, epoch, behind)| {
        Intent::Heartbeat(Beat {
            by,
            run,
            epoch,
            behind,
        })
    })
}

fn intent() -> impl Strategy<Value = Intent> {
    let by = any::<u8>;
    prop_oneof![
        2 => by().prop_map(Intent::Create),
        2 => Just(Intent::Delete),
        1 => Just(Intent::Unfreeze),
        14 => start_intent(),
        4 => (prop::option::weighted(0.2, by()), by(), maybe_key())
            .prop_map(|(by, run, key)| Intent::Claim { by, run, key }),
        90 => publish_intent(),
        4 => (by(), by(), prop::option::weighted(0.9, by())).prop_map(|(by, id, key)| Intent::Input { by, id, key }),
        3 => (by(), maybe_key(), by()).prop_map(|(by, key, hash)| Intent::App { by, key, hash }),
        3 => (by(), by(), by()).prop_map(|(by, run, key)| Intent::Cancel { by, run, key }),
        4 => stop_intent(),
        10 => heartbeat_intent(),
        3 => (by(), -2i8..2).prop_map(|(run, seq)| Intent::Epilogue { run, seq }),
        4 => (by(), prop::bool::weighted(0.2)).prop_map(|(run, late)| Intent::Expire { run, late }),
        2 => Just(Intent::Fire),
        10 => by().prop_map(Intent::Again),
        4 => prop_oneof![
            4 => 0..5_000u64,
            2 => 500_000..700_000u64,
            1 => 80_000_000..90_000_000u64,
        ]
        .prop_map(Intent::Advance),
    ]
}

/// Intents, each with the session that it means. Mostly a run is there from the start.
pub(crate) fn sequences(length: usize) -> impl Strategy<Value = Vec<(Intent, u8)>> {
    let started = Intent::Start(Start::default());
    let any = prop::collection::vec((intent(), any::<u8>()), 1..length);
    (any, prop::bool::weighted(0.8)).prop_map(move |(mut sequence, begins)| {
        if begins {
            sequence.insert(0, (started.clone(), 0));
        }
        sequence
    })
}
