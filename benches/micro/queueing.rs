//! What waits for a connection: queued, put together for a write, taken off, and kept where the socket is full.

use std::hint::black_box;

use deeperhub_protocol::frame::Frame;
use divan::Bencher;

use crate::arena::{Arena, Multicast};
use crate::outbox::{NextWrite, Outbox};

fn frames(count: usize, bytes: usize) -> Vec<Frame> {
    (0..count).map(|_| Frame::text(&"x".repeat(bytes))).collect()
}

/// Writes all, as far as a socket would take it at once, and answers how many writes that were.
fn write_all(outbox: &mut Outbox, arena: &Arena, gather: &mut Vec<u8>) -> usize {
    let mut writes = 0;
    loop {
        let taken = match outbox.next_write(arena.bytes(), gather) {
            NextWrite::Nothing => return writes,
            NextWrite::Slice(bytes) => black_box(bytes).len(),
            NextWrite::Slices(slices, count) => {
                slices[..count].iter().map(|slice| black_box(slice).len()).sum()
            }
        };
        outbox.advance(taken);
        writes += 1;
    }
}

/// References to shared frames of 128 bytes, gathered into one write.
#[divan::bench(args = [1, 8, 64])]
fn shared_frames(bencher: Bencher<'_, '_>, count: usize) {
    let (frames, arena, mut gather) = (frames(count, 128), Arena::default(), Vec::new());
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        frames.iter().for_each(|frame| outbox.push(frame));
        write_all(&mut outbox, &arena, &mut gather)
    });
}

/// Frames of 4 KiB, which leave by vectored writes.
#[divan::bench(args = [8, 100])]
fn long_frames(bencher: Bencher<'_, '_>, count: usize) {
    let (frames, arena, mut gather) = (frames(count, 4096), Arena::default(), Vec::new());
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        frames.iter().for_each(|frame| outbox.push(frame));
        write_all(&mut outbox, &arena, &mut gather)
    });
}

/// A connection's own replies of a round, which stand side by side.
#[divan::bench(args = [1, 8, 64])]
fn replies(bencher: Bencher<'_, '_>, count: usize) {
    let (frame, mut gather) = (Frame::text(&"x".repeat(128)), Vec::new());
    let mut arena = Arena::default();
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        for _ in 0..count {
            let start = arena.len();
            arena.replies().extend_from_slice(frame.as_bytes());
            outbox.push_arena(start, arena.len());
        }
        let writes = write_all(&mut outbox, &arena, &mut gather);
        arena.clear();
        writes
    });
}

/// Frames that went to many others before, and stand in the arena for all of them.
#[divan::bench(args = [1, 8, 64])]
fn frames_of_a_fan_out(bencher: Bencher<'_, '_>, count: usize) {
    let multicasts: Vec<_> = frames(count, 128).into_iter().map(Multicast::new).collect();
    let (mut arena, mut gather) = (Arena::default(), Vec::new());
    let send = |outbox: &mut Outbox, arena: &mut Arena| {
        for multicast in &multicasts {
            let frame = multicast.frame();
            match arena.copy(frame, multicast.copy_of(frame)) {
                Some(start) => outbox.push_arena(start, start + frame.len()),
                None => outbox.push(frame),
            }
        }
    };
    for _ in 0..20 {
        send(&mut Outbox::default(), &mut arena);
    }
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        send(&mut outbox, &mut arena);
        write_all(&mut outbox, &arena, &mut gather)
    });
}

/// A round's reply to a peer for whom so many frames wait.
#[divan::bench(args = [0, 100, 10_000])]
fn reply_behind_what_waits(bencher: Bencher<'_, '_>, waiting: usize) {
    let (frame, mut arena) = (Frame::text(&"x".repeat(128)), Arena::default());
    arena.replies().extend_from_slice(frame.as_bytes());
    bencher
        .with_inputs(|| {
            let mut outbox = Outbox::default();
            frames(1, 128).iter().cycle().take(waiting).for_each(|frame| outbox.push(frame));
            outbox.advance(waiting.min(1));
            outbox
        })
        .bench_local_values(|mut outbox| {
            outbox.push_arena(0, frame.len());
            outbox.detach(&arena);
            outbox
        });
}
