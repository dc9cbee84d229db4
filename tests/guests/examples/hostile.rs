//! Handler that does harm. The first word of the payload says which, or else the last segment of the topic:
//!
//! - `loop`: runs without end
//! - `alloc`: takes memory without end
//! - `trap`: reads outside its memory
//! - `unreachable`: executes `unreachable`, with no panic's message
//! - `panic`: panics, with the rest of the payload as message
//! - `recurse`: calls itself without end, on the machine's stack
//! - `recurse-memory`: calls itself without end, on the stack in its memory
//! - `big-return <bytes>`: fails with a message of that size; 100 MB if no size is given
//! - `flood-log`: logs without end
//! - `flood-state`: writes state without end
//! - `flood-emit`: emits without end
//! - `flood-resources`: takes host resources without end, and keeps them
//! - anything else: nothing, and succeeds

use std::hint::black_box;

use laneway_sdk::prelude::*;
use wasip2::clocks::monotonic_clock::subscribe_duration;

/// Size of `big-return` when the payload gives none, in bytes.
const BIG_RETURN_BYTES: usize = 100_000_000;
/// Size of one piece of what floods, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

fn handle(payload: String, cx: &Context) -> Result<(), Failure> {
    let (word, rest) = payload.split_once(' ').unwrap_or((&payload, ""));
    match word {
        "" => harm(cx.message().topic.rsplit('.').next().unwrap_or_default(), "", cx),
        word => harm(word, rest, cx),
    }
}

fn harm(word: &str, rest: &str, cx: &Context) -> Result<(), Failure> {
    match word {
        "loop" => loop {
            black_box(word);
        },
        "alloc" => take_memory(),
        "trap" => read_outside(),
        "unreachable" => unreachable_instruction(),
        "panic" => panic!("{rest}"),
        "recurse" => deeper(rest.len() as u64) as usize,
        "recurse-memory" => deeper_in_memory(rest.len()),
        "big-return" => return Err(Failure::retry("big", "x".repeat(rest.parse().unwrap_or(BIG_RETURN_BYTES)))),
        "flood-log" => loop {
            info!("{}", "x".repeat(1024));
        },
        "flood-state" => flood(|n, piece| cx.state().put(&format!("flood/{n}"), piece)),
        "flood-emit" => flood(|_, piece| drop(cx.emit(Outgoing::new("flood.emitted", piece)))),
        "flood-resources" => loop {
            std::mem::forget(subscribe_duration(u64::MAX));
        },
        _ => 0,
    };
    Ok(())
}

fn take_memory() -> ! {
    loop {
        // Written, so that it is not only reserved.
        black_box(vec![1_u8; 1024 * 1024].leak());
    }
}

fn read_outside() -> usize {
    // SAFETY: none. The last bytes of the address space are never the guest's, so the read traps, which is the
    // point; no other memory can be reached, because the sandbox has 4 GiB of addresses and checks them.
    usize::from(unsafe { black_box(usize::MAX as *const u8).read_volatile() })
}

#[cfg(target_family = "wasm")]
fn unreachable_instruction() -> ! {
    core::arch::wasm32::unreachable()
}

#[cfg(not(target_family = "wasm"))]
fn unreachable_instruction() -> ! {
    std::process::abort()
}

/// Has no memory in its frame, and cannot be turned into a loop.
#[inline(never)]
fn deeper(n: u64) -> u64 {
    if n == u64::MAX { n } else { deeper(n + 1).wrapping_mul(31) ^ n }
}

#[inline(never)]
fn deeper_in_memory(n: usize) -> usize {
    let frame = black_box([n; 64]);
    if n == usize::MAX { n } else { deeper_in_memory(n + 1) ^ frame[n % 64] }
}

fn flood(send: impl Fn(u64, &[u8])) -> usize {
    let piece = vec![b'x'; PIECE_BYTES];
    for n in 0_u64.. {
        send(n, &piece);
    }
    0
}

laneway_sdk::handler!(handle);
