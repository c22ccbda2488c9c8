//! The operating system's randomness and clocks, made up: hash seeds of the standard library,
//! the start branch of tokio's `select!`, openraft's election timeouts, the masks of WebSocket
//! frames, the `date` header of hyper. None of these take theirs as a value, so they are given
//! theirs here, at the two doors that all of them use: the C library's `getrandom` and
//! `clock_gettime`, which this program defines in its place.
//!
//! Only this program is touched; nothing of it is in a library.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use everwire_simulation::sky::{BEGINNING, PROCESS_MS};

static SEED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Numbers drawn on this thread: so threads do not disturb each other's.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// From now on the operating system is as random as this. Call it first.
pub(crate) fn seed(seed: u64) {
    SEED.store(seed, Ordering::SeqCst);
}

fn draw() -> u64 {
    let drawn = DRAWN.get() + 1;
    DRAWN.set(drawn);
    let state = SEED.load(Ordering::SeqCst) ^ drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The C library's `getrandom`.
#[expect(unsafe_code, reason = "a symbol of the C library is replaced")]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    let bytes = buffer.cast::<u8>();
    for at in 0..length {
        let byte = draw().to_le_bytes()[0];
        // SAFETY: the caller gives `length` bytes that may be written.
        unsafe { bytes.add(at).write(byte) };
    }
    length.cast_signed()
}

/// The C library's `struct timespec`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

/// The C library's `clock_gettime`: the same time for every clock.
#[expect(unsafe_code, reason = "a symbol of the C library is replaced")]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn clock_gettime(_clock: c_int, time: *mut Timespec) -> c_int {
    let now = BEGINNING.0 + PROCESS_MS.load(Ordering::Relaxed);
    let told = Timespec {
        seconds: (now / 1000).cast_signed(),
        nanoseconds: (now % 1000 * 1_000_000).cast_signed(),
    };
    // SAFETY: the caller gives a place for one time.
    unsafe { time.write(told) };
    0
}
