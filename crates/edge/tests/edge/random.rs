//! Random readers of a random session: whatever happens, ranges are dense and bytes are right.

use everwire_proto::frame::Subprotocol;
use proptest::prelude::*;
use tokio::runtime::Builder;

use crate::nodes::app;
use crate::support::{Bed, Client, Reader};

/// What happens next.
#[derive(Clone, Debug)]
enum Happens {
    /// So many events of so many KiB each.
    Append(usize, usize),
    /// A reader joins from somewhere, or from the beginning.
    Join(Option<prop::sample::Index>, bool),
    /// A reader reads some.
    Read(prop::sample::Index),
    /// A reader loses its socket and comes back with its cursor.
    Return(prop::sample::Index),
    /// The nodes go away and come back.
    Outage,
}

fn happens() -> impl Strategy<Value = Happens> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (1_usize..20, 0_usize..4).prop_map(|(count, size)| Happens::Append(count, size)),
        2 => (3_usize..12, 60_usize..200).prop_map(|(count, size)| Happens::Append(count, size)),
        2 => (proptest::option::of(index()), any::<bool>())
            .prop_map(|(from, json)| Happens::Join(from, json)),
        3 => index().prop_map(Happens::Read),
        2 => index().prop_map(Happens::Return),
        1 => Just(Happens::Outage),
    ]
}

async fn client(bed: &Bed, json: bool) -> Client {
    let which = usize::from(!json);
    bed.join(Subprotocol::ALL[which]).await
}

async fn run(all: Vec<Happens>) {
    let bed = Bed::new();
    let epoch = bed.nodes.make("s");
    let mut readers: Vec<(Client, Reader)> = Vec::new();
    let mut made = 0;
    for one in all {
        match one {
            Happens::Append(count, kib) => {
                let text = |number| format!("{number}:{}", "x".repeat(kib << 10));
                bed.nodes
                    .append("s", (made..made + count).map(|number| app(&text(number))));
                made += count;
            },
            Happens::Join(from, json) if readers.len() < 6 => {
                let mut client = client(&bed, json).await;
                let cursor = from.map(|from| format!("{epoch}.{}", from.index(made + 1)));
                let reader = client.resume("s", cursor.as_deref()).await;
                readers.push((client, reader));
            },
            Happens::Read(which) if !readers.is_empty() => {
                let (client, reader) = which.get_mut(&mut readers);
                if reader.next <= made as u64 {
                    let (_, frame) = client.frame().await;
                    reader.take(&frame);
                }
            },
            Happens::Return(which) if !readers.is_empty() => {
                let (old, reader) = which.get_mut(&mut readers);
                let mut client = client(&bed, old.subprotocol == Subprotocol::Proto).await;
                let cursor = format!("{epoch}.{}", reader.next - 1);
                let resumed = client.resume("s", Some(&cursor)).await;
                assert_eq!(resumed.next, reader.next);
                *old = client;
            },
            Happens::Outage => {
                bed.nodes.set_down(true);
                tokio::task::yield_now().await;
                bed.nodes.set_down(false);
            },
            Happens::Join(..) | Happens::Read(_) | Happens::Return(_) => {},
        }
    }
    for (client, reader) in &mut readers {
        client.read_to(reader, made as u64).await;
        for (at, text) in &reader.texts {
            let number = text.trim_start_matches('"').split(':').next().unwrap();
            assert_eq!(number, (at - 1).to_string(), "at {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn readers_get_exactly_the_suffix(all in prop::collection::vec(happens(), 1..40)) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(all));
    }
}
