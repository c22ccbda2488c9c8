//! The world: machines that take turns, a millisecond each, in one thread.
//!
//! A machine is a tokio runtime of one thread whose time is paused: it runs until nothing in it
//! can go on before its millisecond is over. Between turns only this module runs: it lands what
//! flies, lets disks sync, and lets machines die. Nothing crosses from one machine to another
//! within a turn, so their order in a millisecond does not matter; it is fixed all the same.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::net::Net;
use crate::sky::Sky;

/// How whoever has its turn panicked, if it did.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

static TURN_OF: Mutex<String> = Mutex::new(String::new());

/// One turn of a machine.
const TURN: Duration = Duration::from_millis(1);

/// Machines, and the network between them.
pub struct World {
    /// Time and log.
    pub sky: Sky,
    /// The network.
    pub net: Net,
    machines: BTreeMap<String, Runtime>,
}

impl World {
    /// A world without machines.
    pub fn new(sky: Sky, seed: u64) -> Self {
        Self {
            net: Net::new(sky.clone(), seed),
            sky,
            machines: BTreeMap::new(),
        }
    }

    /// Starts a machine that is not running: `main` is what it does. It stays when `main` ends.
    pub fn boot(&mut self, machine: &str, main: impl Future<Output = ()> + Send + 'static) {
        self.sky.note(format_args!("{machine} boots"));
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let runtime = runtime.expect("a runtime without threads and sockets can be made");
        runtime.spawn(main);
        let running = self.machines.insert(machine.to_owned(), runtime);
        assert!(running.is_none(), "{machine} runs already");
    }

    /// Whether a machine runs.
    pub fn runs(&self, machine: &str) -> bool {
        self.machines.contains_key(machine)
    }

    /// A machine dies between two instructions: nothing of it is told, flushed or handed over.
    /// What is on its disk is somebody else's business.
    pub fn kill(&mut self, machine: &str) {
        let Some(runtime) = self.machines.remove(machine) else {
            return;
        };
        self.sky.note(format_args!("{machine} dies"));
        self.net.kill(machine);
        // Drops its tasks; whatever they do in their destructors meets a dead network.
        drop(runtime);
    }

    /// A millisecond of everybody's time. Answers which machine panicked in it, and how.
    pub fn turn(&mut self) -> Vec<(String, String)> {
        self.sky.set(self.sky.now() + 1);
        self.net.tick();
        let mut panicked = Vec::new();
        for (machine, runtime) in &self.machines {
            machine.clone_into(&mut TURN_OF.lock().expect("nobody panics here"));
            runtime.block_on(async { tokio::time::sleep(TURN).await });
            let reason = PANIC.lock().expect("nobody panics here").take();
            if let Some(reason) = reason {
                panicked.push((machine.clone(), reason));
            }
        }
        TURN_OF.lock().expect("nobody panics here").clear();
        panicked
    }
}

/// Whose turn it is; nobody's between turns.
pub fn turn_of() -> String {
    TURN_OF.lock().expect("nobody panics here").clone()
}

/// Notes panics, so that a machine that met one can be ended, as its process would be. Those that
/// the rules catch are none.
pub fn note_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if everwire_node::catches_panics() {
            return;
        }
        let mut panicked = PANIC.lock().expect("nobody panics here");
        panicked.get_or_insert_with(|| info.to_string().replace('\n', " "));
        drop(panicked);
        report(info);
    }));
}
