//! The scene: a cluster forms, an agent writes, a person reads along and stops a run, things
//! break as the seed plans, everything heals, and what everybody was told is held against what
//! the disks have.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::grant::Capability;
use everwire_core::{Event, Namespace, Offset, ParticipantKind, SessionName, ShardId, Slot};

use crate::agent::{self, AGENT, Told};
use crate::check;
use crate::cluster::{self, EDGE, NODES, NodeDisk, grpc_addr, token};
use crate::dice::Dice;
use crate::faults::{Blow, Victim, plan};
use crate::net::Net;
use crate::person::{self, PERSON, Seen};
use crate::sky::Sky;
use crate::world::World;

/// How long the bad time lasts, milliseconds.
const BAD_TIME: u64 = 12_000;
/// When drives that lie begin to, and when their machines lose power.
const LIE_FROM: u64 = 4_000;
const LIE_TO: u64 = 5_500;
const LIE_AFTER: u64 = 3_000;
/// How long anything may take when nothing is broken any more, milliseconds.
const PATIENCE: u64 = 90_000;
/// What must not change any more for so long has ended, milliseconds.
const STILL_FOR: u64 = 1_000;
/// The machine of whoever looks after the cluster.
const OPERATOR: &str = "operator";
/// A node that ended itself is started again after so long, milliseconds.
const RESTART_AFTER: u64 = 500;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides about everything that is not decided by the code.
    pub seed: u64,
    /// Nothing befalls the world but drives that lie about their syncs, and all lose power a
    /// moment later: what was acked meanwhile is lost, and the checks must find it.
    pub lie: bool,
}

/// Plays the scene. Answers what was violated.
pub fn play(options: Options, sky: &Sky) -> Vec<String> {
    let mut scene = Scene::new(options, sky);
    match scene.run() {
        Ok(()) => scene.check(),
        Err(late) => {
            let mut found = vec![late];
            found.extend(scene.check());
            found
        },
    }
}

struct Scene {
    options: Options,
    sky: Sky,
    world: World,
    disks: Vec<NodeDisk>,
    session: SessionName,
    /// How often each machine was started.
    lives: BTreeMap<String, u64>,
    /// When which machine is started again.
    starts: Vec<(u64, String)>,
    leader: Arc<Mutex<Option<String>>>,
    told: Arc<Mutex<Told>>,
    seen: Arc<Mutex<Seen>>,
    /// What must not happen and did, on the way.
    found: Vec<String>,
}

impl Scene {
    fn new(options: Options, sky: &Sky) -> Self {
        let disks = NODES
            .iter()
            .map(|node| NodeDisk::new(node, sky, options.seed));
        Self {
            options,
            sky: sky.clone(),
            world: World::new(sky.clone(), options.seed),
            disks: disks.collect(),
            session: SessionName::parse("talk").expect("a good name"),
            lives: BTreeMap::new(),
            starts: Vec::new(),
            leader: Arc::default(),
            told: Arc::default(),
            seen: Arc::default(),
            found: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<(), String> {
        let dice = Dice::new(self.options.seed, "scene");
        for machine in NODES.into_iter().chain([EDGE]) {
            self.starts.push((dice.pick(1..400), machine.to_owned()));
        }
        let (sky, net, seed) = (self.sky.clone(), self.world.net.clone(), self.options.seed);
        let watching = watch(&sky, &net, seed, &self.session, &self.leader);
        self.world.boot(OPERATOR, watching);
        self.until("somebody leads", |scene| scene.leader().is_some())?;
        let writing = agent::run(&sky, &net, seed, &self.session, &self.told);
        self.world.boot(AGENT, writing);
        let reading = person::run(&sky, &net, seed, &self.session, &self.seen);
        self.world.boot(PERSON, reading);
        self.until("the agent writes", |scene| scene.told(|told| told.begun))?;
        self.bad_time();
        if self.options.lie {
            // Nothing good can come any more: it is enough to look at what is left.
            (0..LIE_AFTER).for_each(|_| self.turn());
            return Ok(());
        }
        self.until("everything runs", |scene| scene.starts.is_empty())?;
        self.until("both runs have ended", |scene| {
            scene.told(|told| told.written.len() == 2)
        })?;
        self.until("everything was said", |scene| {
            let seen = scene.seen.lock().expect("nobody panics here");
            seen.stop.is_some() && seen.inputs.len() == 8
        })?;
        let end = self.settle()?;
        self.seen.lock().expect("nobody panics here").end = Some(end);
        self.until("the person has read it all", |scene| {
            scene.seen.lock().expect("nobody panics here").done
        })
    }

    fn told<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().expect("nobody panics here"))
    }

    fn leader(&self) -> Option<String> {
        self.leader.lock().expect("nobody panics here").clone()
    }

    /// A millisecond of the world, and of what is between machines.
    fn turn(&mut self) {
        let panicked = self.world.turn();
        let now = self.sky.now();
        for disk in &mut self.disks {
            disk.turn();
        }
        for (machine, reason) in panicked {
            self.bury(machine, &reason);
        }
        for number in 0..self.disks.len() {
            let disk = self.disks.get(number);
            let fatal = disk.and_then(|disk| Some((disk.machine.clone(), disk.take_fatal()?)));
            if let Some((machine, reason)) = fatal {
                self.bury(machine, &reason);
            }
        }
        let due: Vec<String> = {
            let due = self.starts.extract_if(.., |(at, _)| *at <= now);
            due.map(|(_, machine)| machine).collect()
        };
        for machine in due {
            self.start(&machine);
        }
    }

    /// A machine that has ended itself is dead, and is started again.
    fn bury(&mut self, machine: String, reason: &str) {
        self.sky
            .note(format_args!("{machine} ends itself: {reason}"));
        self.found.push(format!("{machine} ended itself: {reason}"));
        self.kill(&machine);
        if machine == EDGE || NODES.contains(&machine.as_str()) {
            self.starts.push((self.sky.now() + RESTART_AFTER, machine));
        }
    }

    fn start(&mut self, machine: &str) {
        if self.world.runs(machine) {
            return;
        }
        let life = self.lives.entry(machine.to_owned()).or_default();
        *life += 1;
        let (life, seed) = (*life, self.options.seed);
        if machine == EDGE {
            let edge = cluster::edge(&self.sky, &self.world.net, seed, life);
            self.world.boot(EDGE, edge);
            return;
        }
        let disk = self.disks.iter().find(|disk| disk.machine == machine);
        let disk = disk.expect("every node has a disk");
        let node = cluster::node(disk, &self.world.net, seed, life);
        self.world.boot(machine, node);
    }

    /// A machine loses power. It writes nothing any more from the first moment on.
    fn kill(&mut self, machine: &str) {
        let disk = self.disks.iter_mut().find(|disk| disk.machine == machine);
        if let Some(disk) = disk {
            disk.power_off(self.options.lie);
            self.world.kill(machine);
            // What its last breath said of a disk that is gone.
            disk.take_fatal();
            return;
        }
        self.world.kill(machine);
    }

    fn bad_time(&mut self) {
        let dice = Dice::new(self.options.seed, "faults");
        let begin = self.sky.now();
        let plan = match self.options.lie {
            true => vec![
                (LIE_FROM, Blow::Lie),
                (LIE_TO, Blow::Kill(Victim::Everybody, RESTART_AFTER)),
            ],
            false => plan(&dice, BAD_TIME),
        };
        for (at, blow) in plan {
            while self.sky.now() < begin + at {
                self.turn();
            }
            self.strike(&blow);
        }
    }

    fn strike(&mut self, blow: &Blow) {
        self.sky.note(format_args!("blow: {blow:?}"));
        let now = self.sky.now();
        match blow {
            Blow::Kill(victim, down) => {
                for machine in self.hit(victim) {
                    if self.world.runs(&machine) {
                        self.kill(&machine);
                        self.starts.push((now + down, machine));
                    }
                }
            },
            Blow::Cut(from, to) => self.world.net.cut(from, to),
            Blow::Sever(one, other) => {
                self.world.net.cut(one, other);
                self.world.net.cut(other, one);
            },
            Blow::Heal => self.world.net.heal(),
            Blow::Lie => self.disks.iter().for_each(|disk| disk.disk.lie()),
        }
    }

    fn hit(&self, victim: &Victim) -> Vec<String> {
        match victim {
            Victim::Machine(machine) => vec![(*machine).to_owned()],
            Victim::Leader => self.leader().into_iter().collect(),
            Victim::Everybody => NODES.iter().map(|node| (*node).to_owned()).collect(),
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let limit = self.sky.now() + PATIENCE;
        while !done(self) {
            if self.sky.now() >= limit {
                self.sky.note(format_args!("not in time: {what}"));
                return Err(format!("not in time: {what}"));
            }
            self.turn();
        }
        Ok(())
    }

    /// The session's log on every disk, or why there is none.
    fn logs(&self) -> impl Iterator<Item = Result<(String, Vec<Event>), String>> {
        self.disks.iter().map(|disk| {
            let machine = &disk.machine;
            let store = disk.store();
            let store = store.ok_or_else(|| format!("{machine} has no store"))?;
            let log = check::log_of(&store, &self.session);
            let log = log.map_err(|error| format!("{machine}: {error}"))?;
            Ok((machine.clone(), log))
        })
    }

    /// Waits until all disks have the same number of events, and no more come. Answers the end.
    fn settle(&mut self) -> Result<Offset, String> {
        let limit = self.sky.now() + PATIENCE;
        let (mut since, mut before) = (self.sky.now(), Vec::new());
        while self.sky.now() < limit {
            for _ in 0..100 {
                self.turn();
            }
            let logs: Vec<_> = self.logs().flatten().collect();
            let lengths: Vec<usize> = logs.iter().map(|(_, log)| log.len()).collect();
            let level = lengths.windows(2).all(|pair| pair.first() == pair.last());
            if lengths.len() != NODES.len() || !level || lengths != before {
                since = self.sky.now();
                before = lengths;
            } else if self.sky.now() - since >= STILL_FOR {
                let last = logs.first().and_then(|(_, log)| log.last());
                return Ok(last.map_or(Offset::ZERO, |event| event.offset));
            }
        }
        Err(format!(
            "not in time: all disks have the same, they have {before:?}"
        ))
    }

    fn check(&mut self) -> Vec<String> {
        let mut found = std::mem::take(&mut self.found);
        let (logs, missing): (Vec<_>, Vec<_>) = self.logs().partition(Result::is_ok);
        let logs: Vec<_> = logs.into_iter().flatten().collect();
        found.extend(missing.into_iter().filter_map(Result::err));
        let seen = self.seen.lock().expect("nobody panics here");
        found.extend(self.told(|told| check::violations(&logs, &told.written, &seen)));
        for (machine, log) in &logs {
            self.sky
                .note(format_args!("{machine} has {} events", log.len()));
        }
        for one in &found {
            self.sky.note(format_args!("violated: {one}"));
        }
        found
    }
}

/// Looks again and again who leads the session's shard.
fn watch(
    sky: &Sky,
    net: &Net,
    seed: u64,
    session: &SessionName,
    leader: &Arc<Mutex<Option<String>>>,
) -> impl Future<Output = ()> + Send + use<> {
    let rights = [Capability::Operate];
    let token = token(OPERATOR, ParticipantKind::Operator, &rights);
    let namespace = Namespace::parse("dev").expect("a good name");
    let slot = Slot::of(&namespace, session);
    let (sky, net, leader) = (sky.clone(), net.clone(), Arc::clone(leader));
    async move {
        let client = cluster::client(&sky, &net, seed, OPERATOR, token);
        let client = client.with_deadline(Duration::from_millis(500));
        loop {
            if let Ok(status) = client.cluster_status().await {
                let shards = u32::try_from(status.shards.len()).unwrap_or(1);
                let shard = ShardId::holding(slot, shards.max(1));
                let ours = status.shards.iter().find(|one| one.id == shard);
                let led_by = ours.and_then(|shard| shard.leader);
                let node = status.nodes.iter().find(|node| Some(node.id) == led_by);
                let addr = node.map(|node| node.addr.as_str());
                let machine = NODES.iter().find(|node| addr == Some(&grpc_addr(node)));
                if let Some(machine) = machine {
                    let mut leader = leader.lock().expect("nobody panics here");
                    if leader.as_deref() != Some(machine) {
                        sky.note(format_args!("{machine} leads {shard}"));
                        *leader = Some((*machine).to_owned());
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
