//! The network: connections of bytes in order, as TCP gives them, with latencies that the seed
//! throws, cuts, and machines that vanish.
//!
//! A piece that is written lands at the other end after its latency, never before the piece in
//! front of it. Across a cut nothing lands; what was written waits, as what TCP sends again, and
//! lands when the cut is healed. A machine that dies takes its ends along: what it had written
//! lands or is lost as the seed says, then the others see a reset.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use futures_util::future::BoxFuture;
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::dice::Dice;
use crate::sky::{Sky, fnv};

/// What one direction of a connection holds before its writer waits.
const WINDOW_BYTES: usize = 256 << 10;
/// How often a first packet is sent again.
const KNOCK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// The network. Clones are the same one.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Fabric>>);

struct Fabric {
    sky: Sky,
    dice: Dice,
    /// Whose each address is.
    homes: BTreeMap<String, String>,
    plugs: BTreeMap<String, Plug>,
    cables: BTreeMap<u64, Cable>,
    last: u64,
    /// From whom to whom nothing lands.
    cuts: BTreeSet<(String, String)>,
}

#[derive(Default)]
struct Plug {
    waiting: VecDeque<End>,
    acceptor: Option<Waker>,
    /// Rises with each listener at this address.
    opened: u64,
}

/// A connection: who dialled, who accepted; and a way from each of them to the other.
struct Cable {
    machines: [String; 2],
    ways: [Way; 2],
    /// Ends that were dropped, or whose machine died.
    gone: [bool; 2],
}

#[derive(Default)]
struct Way {
    flying: VecDeque<(u64, Parcel)>,
    landed: VecDeque<Bytes>,
    /// Bytes that fly or have landed.
    held: usize,
    over: Option<Over>,
    /// The writer has said that it ends.
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Parcel {
    Bytes(Bytes),
    Over(Over),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    End,
    Reset,
}

/// Numbers of a cable's ends.
const SIDES: [usize; 2] = [0, 1];

impl Cable {
    fn way(&mut self, side: usize) -> &mut Way {
        self.ways.get_mut(side).expect("a cable has two ways")
    }

    fn machine(&self, side: usize) -> &str {
        self.machines.get(side).expect("a cable has two ends")
    }

    fn is_gone(&self, side: usize) -> bool {
        self.gone.get(side).copied().unwrap_or(true)
    }

    fn leave(&mut self, side: usize) -> bool {
        let gone = self.gone.get_mut(side).expect("a cable has two ends");
        !std::mem::replace(gone, true)
    }
}

impl Fabric {
    fn latency(&self) -> u64 {
        // Most are quick; a few are not.
        match self.dice.pick(0..100) {
            0..=89 => self.dice.pick(1..4),
            90..=98 => self.dice.pick(4..25),
            _ => self.dice.pick(25..120),
        }
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        let mut cuts = self.cuts.iter();
        cuts.any(|(cut_from, cut_to)| cut_from == from && cut_to == to)
    }

    /// Sends a parcel on its way from `side`.
    fn send(&mut self, cable: u64, side: usize, parcel: Parcel) {
        let due = self.sky.now() + self.latency();
        let Some(cable) = self.cables.get_mut(&cable) else {
            return;
        };
        let way = cable.way(side);
        let last = way.flying.back().map_or(0, |(due, _)| *due);
        way.flying.push_back((due.max(last), parcel));
    }
}

impl Net {
    /// A network without machines.
    pub fn new(sky: Sky, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Fabric {
            sky,
            dice: Dice::new(seed, "net"),
            homes: BTreeMap::new(),
            plugs: BTreeMap::new(),
            cables: BTreeMap::new(),
            last: 0,
            cuts: BTreeSet::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Fabric> {
        self.0.lock().expect("nobody panics with the network")
    }

    /// Listens at an address, in the place of whoever did before.
    pub fn listen(&self, machine: &str, addr: &str) -> Accepting {
        let mut fabric = self.lock();
        fabric.homes.insert(addr.to_owned(), machine.to_owned());
        let plug = fabric.plugs.entry(addr.to_owned()).or_default();
        let never_taken = std::mem::take(&mut plug.waiting);
        plug.opened += 1;
        let opened = plug.opened;
        drop(fabric);
        // Ends come for the lock when they are dropped.
        drop(never_taken);
        Accepting {
            net: self.clone(),
            addr: addr.to_owned(),
            opened,
        }
    }

    /// A machine's way into the network.
    pub fn card(&self, machine: &str) -> Card {
        Card {
            net: self.clone(),
            machine: machine.to_owned(),
        }
    }

    /// From now on nothing lands that one machine sends to the other; connections stay.
    pub fn cut(&self, from: &str, to: &str) {
        let mut fabric = self.lock();
        fabric.cuts.insert((from.to_owned(), to.to_owned()));
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.lock().cuts.clear();
    }

    /// A machine dies: its listeners are gone, its connections are reset.
    pub fn kill(&self, machine: &str) {
        let mut fabric = self.lock();
        let Fabric { homes, plugs, .. } = &mut *fabric;
        let here: Vec<String> = {
            let homes = homes.iter().filter(|(_, home)| *home == machine);
            homes.map(|(addr, _)| addr.clone()).collect()
        };
        let unplugged: Vec<Plug> = here.iter().filter_map(|addr| plugs.remove(addr)).collect();
        let all: Vec<u64> = fabric.cables.keys().copied().collect();
        for id in all {
            for side in SIDES {
                let lost = fabric.dice.chance(50);
                let Some(cable) = fabric.cables.get_mut(&id) else {
                    continue;
                };
                if cable.machine(side) != machine || !cable.leave(side) {
                    continue;
                }
                let way = cable.way(side);
                if lost {
                    way.flying.clear();
                }
                fabric.send(id, side, Parcel::Over(Over::Reset));
            }
        }
        drop(fabric);
        // What waits to be accepted comes for the lock when it is dropped.
        drop(unplugged);
    }

    /// Lands what is due.
    pub fn tick(&self) {
        let mut wakers = Vec::new();
        let mut fabric = self.lock();
        let now = fabric.sky.now();
        let all: Vec<u64> = fabric.cables.keys().copied().collect();
        for id in all {
            for side in SIDES {
                fabric.land(id, side, now, &mut wakers);
            }
        }
        // Both ends left: nothing of it is anybody's any more.
        fabric.cables.retain(|_, cable| {
            let flying = cable.ways.iter().any(|way| !way.flying.is_empty());
            flying || cable.gone.contains(&false)
        });
        drop(fabric);
        // Whoever is woken may come right back for the lock.
        for waker in wakers {
            waker.wake();
        }
    }

    async fn connect(self, machine: String, addr: String) -> io::Result<End> {
        let latency = self.lock().latency();
        tokio::time::sleep(Duration::from_millis(latency)).await;
        loop {
            if let Some(opened) = self.knock(&machine, &addr) {
                return opened;
            }
            tokio::time::sleep(KNOCK_AGAIN_AFTER).await;
        }
    }

    /// Opens a connection, if the first packet and its answer come through.
    fn knock(&self, machine: &str, addr: &str) -> Option<io::Result<End>> {
        let mut fabric = self.lock();
        let Some(home) = fabric.homes.get(addr).cloned() else {
            return Some(Err(io::ErrorKind::HostUnreachable.into()));
        };
        if fabric.is_cut(machine, &home) || fabric.is_cut(&home, machine) {
            return None;
        }
        if !fabric.plugs.contains_key(addr) {
            return Some(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        fabric.last += 1;
        let id = fabric.last;
        fabric
            .sky
            .hum(format_args!("wire {id} {machine}>{addr} opens"));
        let cable = Cable {
            machines: [machine.to_owned(), home],
            ways: [Way::default(), Way::default()],
            gone: [false, false],
        };
        fabric.cables.insert(id, cable);
        let end = |side| End {
            net: self.clone(),
            cable: id,
            side,
        };
        let plug = fabric.plugs.get_mut(addr)?;
        plug.waiting.push_back(end(1));
        let waker = plug.acceptor.take();
        drop(fabric);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(Ok(end(0)))
    }
}

impl Fabric {
    fn land(&mut self, id: u64, side: usize, now: u64, wakers: &mut Vec<Waker>) {
        let Some(cable) = self.cables.get(&id) else {
            return;
        };
        let flying = cable.ways.get(side).and_then(|way| way.flying.front());
        if flying.is_none_or(|(due, _)| *due > now) {
            return;
        }
        let (from, to) = (cable.machine(side), cable.machine(1 - side));
        if self.is_cut(from, to) {
            return;
        }
        let label = format!("wire {id} {from}>{to}");
        let Some(cable) = self.cables.get_mut(&id) else {
            return;
        };
        let nobody = cable.is_gone(1 - side);
        let way = cable.way(side);
        let (mut bytes, mut digest, mut over) = (0, 0xcbf2_9ce4_8422_2325, None);
        while way.flying.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, parcel)) = way.flying.pop_front() else {
                break;
            };
            match parcel {
                Parcel::Bytes(piece) => {
                    bytes += piece.len();
                    digest = fnv(digest, &piece);
                    if nobody {
                        way.held = way.held.saturating_sub(piece.len());
                    } else {
                        way.landed.push_back(piece);
                    }
                },
                Parcel::Over(how) => {
                    way.over = Some(how);
                    over = Some(how);
                },
            }
        }
        if bytes == 0 && over.is_none() {
            return;
        }
        wakers.extend(way.reader.take());
        if over == Some(Over::Reset) {
            // Nothing that is sent to a dead machine is taken, nor what is sent from it read.
            way.landed.clear();
            wakers.extend(cable.way(1 - side).writer.take());
        }
        match over {
            Some(over) => self
                .sky
                .hum(format_args!("{label} {bytes} {digest:016x} {over:?}")),
            None => self.sky.hum(format_args!("{label} {bytes} {digest:016x}")),
        }
        if nobody && bytes > 0 {
            self.send(id, 1 - side, Parcel::Over(Over::Reset));
        }
    }
}

/// What a listener accepts.
pub struct Accepting {
    net: Net,
    addr: String,
    opened: u64,
}

impl Accepting {
    /// The next connection.
    fn poll_accept(&self, task: &Context<'_>) -> Poll<Option<End>> {
        let mut fabric = self.net.lock();
        let plug = fabric.plugs.get_mut(&self.addr);
        let Some(plug) = plug.filter(|plug| plug.opened == self.opened) else {
            return Poll::Ready(None);
        };
        match plug.waiting.pop_front() {
            Some(end) => Poll::Ready(Some(end)),
            None => {
                plug.acceptor = Some(task.waker().clone());
                Poll::Pending
            },
        }
    }

    /// As the node and its peers take it.
    pub fn for_node(self) -> everwire_node::Incoming {
        Box::pin(Connections(self, |end| {
            Ok(Box::new(end) as Box<dyn everwire_node::Io>)
        }))
    }

    /// As the edge takes it.
    pub fn for_edge(self) -> everwire_edge::Incoming {
        Box::pin(Connections(self, |end| {
            Ok(Box::new(end) as Box<dyn everwire_client::Io>)
        }))
    }
}

/// Connections in the shape that a server wants.
struct Connections<T: ?Sized>(Accepting, fn(End) -> io::Result<Box<T>>);

impl<T: ?Sized> Stream for Connections<T> {
    type Item = io::Result<Box<T>>;

    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let shape = self.1;
        self.0.poll_accept(task).map(|end| end.map(shape))
    }
}

/// A machine's way into the network.
#[derive(Clone)]
pub struct Card {
    net: Net,
    machine: String,
}

impl Card {
    /// Opens a connection.
    pub async fn connect(&self, addr: &str) -> io::Result<End> {
        let connecting = self
            .net
            .clone()
            .connect(self.machine.clone(), addr.to_owned());
        connecting.await
    }
}

impl everwire_node::Dial for Card {
    fn dial(&self, addr: String) -> BoxFuture<'static, io::Result<Box<dyn everwire_node::Io>>> {
        let connecting = self.net.clone().connect(self.machine.clone(), addr);
        Box::pin(async move {
            let end = connecting.await?;
            Ok(Box::new(end) as Box<dyn everwire_node::Io>)
        })
    }
}

impl everwire_client::Connector for Card {
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn everwire_client::Io>>> {
        let addr = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connecting = self.net.clone().connect(self.machine.clone(), addr);
        Box::pin(async move {
            let end = connecting.await?;
            Ok(Box::new(end) as Box<dyn everwire_client::Io>)
        })
    }
}

/// One end of a connection. Dropping it ends both of its ways.
pub struct End {
    net: Net,
    cable: u64,
    side: usize,
}

impl Drop for End {
    fn drop(&mut self) {
        let mut fabric = self.net.lock();
        let Some(cable) = fabric.cables.get_mut(&self.cable) else {
            return;
        };
        if !cable.leave(self.side) {
            return;
        }
        let ended = std::mem::replace(&mut cable.way(self.side).ended, true);
        let writer = cable.way(1 - self.side).writer.take();
        if !ended {
            fabric.send(self.cable, self.side, Parcel::Over(Over::End));
        }
        drop(fabric);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut fabric = self.net.lock();
        let Some(cable) = fabric.cables.get_mut(&self.cable) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let way = cable.way(1 - self.side);
        if way.over == Some(Over::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut taken = 0;
        while let Some(piece) = way.landed.front_mut() {
            let fits = piece.len().min(buffer.remaining());
            buffer.put_slice(piece.get(..fits).unwrap_or_default());
            piece.advance(fits);
            taken += fits;
            if !piece.is_empty() {
                break;
            }
            way.landed.pop_front();
        }
        way.held = way.held.saturating_sub(taken);
        if taken == 0 && way.over.is_none() {
            way.reader = Some(task.waker().clone());
            return Poll::Pending;
        }
        let writer = way.writer.take();
        drop(fabric);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut fabric = self.net.lock();
        let Some(cable) = fabric.cables.get_mut(&self.cable) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        // A reset came the other way.
        let reset = cable.way(1 - self.side).over == Some(Over::Reset);
        let way = cable.way(self.side);
        if reset || way.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let fits = bytes.len().min(WINDOW_BYTES.saturating_sub(way.held));
        if fits == 0 && !bytes.is_empty() {
            way.writer = Some(task.waker().clone());
            return Poll::Pending;
        }
        way.held += fits;
        let piece = Bytes::copy_from_slice(bytes.get(..fits).unwrap_or_default());
        fabric.send(self.cable, self.side, Parcel::Bytes(piece));
        Poll::Ready(Ok(fits))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut fabric = self.net.lock();
        if let Some(cable) = fabric.cables.get_mut(&self.cable)
            && !std::mem::replace(&mut cable.way(self.side).ended, true)
        {
            fabric.send(self.cable, self.side, Parcel::Over(Over::End));
        }
        Poll::Ready(Ok(()))
    }
}
