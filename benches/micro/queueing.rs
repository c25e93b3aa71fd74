//! The send queue of a connection: push frames, gather them for a write, remove written bytes, keep
//! the rest if the socket is full.

use std::hint::black_box;

use deeperhub_protocol::frame::{self, Frame};
use divan::Bencher;

use crate::arena::{Arena, Multicast};
use crate::outbox::{NextWrite, Outbox};

fn frames(count: usize, bytes: usize) -> Vec<Frame> {
    (0..count).map(|_| Frame::text(&"x".repeat(bytes))).collect()
}

/// Writes all frames to a socket that accepts everything. Returns the number of writes.
fn write_all(outbox: &mut Outbox, arena: &Arena, gather: &mut Vec<u8>) -> usize {
    write_at_most(usize::MAX, outbox, arena, gather)
}

/// Writes all frames to a socket that accepts `max` bytes per write. Returns the number of writes.
fn write_at_most(max: usize, outbox: &mut Outbox, arena: &Arena, gather: &mut Vec<u8>) -> usize {
    let mut writes = 0;
    loop {
        let offered: usize = match outbox.next_write(arena.bytes(), gather) {
            NextWrite::Nothing => return writes,
            NextWrite::Slice(bytes) => black_box(bytes).len(),
            NextWrite::Slices(slices, count) => {
                slices[..count].iter().map(|slice| black_box(slice).len()).sum()
            }
        };
        outbox.advance(offered.min(max));
        writes += 1;
    }
}

/// Pushes `count` frames and writes them to a socket that accepts `max` bytes per write.
fn bench_frames(bencher: Bencher<'_, '_>, (count, bytes): (usize, usize), max: usize) {
    let (frames, arena, mut gather) = (frames(count, bytes), Arena::default(), Vec::new());
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        frames.iter().for_each(|frame| outbox.push(frame));
        write_at_most(max, &mut outbox, &arena, &mut gather)
    });
}

/// Writes shared frames of 128 bytes, which are gathered into one write.
#[divan::bench(args = [1, 8, 64])]
fn shared_frames(bencher: Bencher<'_, '_>, count: usize) {
    bench_frames(bencher, (count, 128), usize::MAX);
}

/// Writes frames of 4 KiB, which are sent with vectored writes.
#[divan::bench(args = [8, 100])]
fn long_frames(bencher: Bencher<'_, '_>, count: usize) {
    bench_frames(bencher, (count, 4096), usize::MAX);
}

/// Writes ten frames to a socket that accepts two and a half of them per write. Small frames are
/// gathered again for each write.
#[divan::bench(args = [128, 4096])]
fn partial_writes(bencher: Bencher<'_, '_>, bytes: usize) {
    bench_frames(bencher, (10, bytes), bytes * 5 / 2);
}

/// Writes pongs that overtake a frame. Above 32, later pongs replace earlier ones.
#[divan::bench(args = [1, 32, 200])]
fn pongs(bencher: Bencher<'_, '_>, count: usize) {
    let mut pong = Vec::new();
    frame::write_pong(&mut pong, b"12345678");
    let (data, pong) = (Frame::text("a delivery"), Frame::from_encoded(&pong));
    let (arena, mut gather) = (Arena::default(), Vec::new());
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        outbox.push(&data);
        (0..count).for_each(|_| outbox.push_pong(pong.clone()));
        write_all(&mut outbox, &arena, &mut gather)
    });
}

/// Writes the replies of one round to one connection. They are adjacent in the arena.
#[divan::bench(args = [1, 8, 64])]
fn replies(bencher: Bencher<'_, '_>, count: usize) {
    let (frame, mut gather) = (Frame::text(&"x".repeat(128)), Vec::new());
    let mut arena = Arena::default();
    bencher.bench_local(|| {
        let mut outbox = Outbox::default();
        for _ in 0..count {
            let start = arena.len();
            arena.replies().extend_from_slice(frame.as_bytes());
            outbox.push_arena(arena.bytes(), start..arena.len());
        }
        let writes = write_all(&mut outbox, &arena, &mut gather);
        arena.clear();
        writes
    });
}

/// Writes frames of a fan-out that the arena already contains for other receivers.
#[divan::bench(args = [1, 8, 64])]
fn frames_of_a_fan_out(bencher: Bencher<'_, '_>, count: usize) {
    let multicasts: Vec<_> = frames(count, 128).into_iter().map(Multicast::new).collect();
    let (mut arena, mut gather) = (Arena::default(), Vec::new());
    let send = |outbox: &mut Outbox, arena: &mut Arena| {
        for multicast in &multicasts {
            let frame = multicast.frame();
            match arena.copy(frame, multicast.copy_slot(frame)) {
                Some(start) => outbox.push_arena(arena.bytes(), start..start + frame.len()),
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

/// Pushes a reply to a peer that does not read. `make_queue` returns the queue before the reply.
fn bench_reply_kept(bencher: Bencher<'_, '_>, make_queue: impl Fn(&Arena) -> Outbox) {
    let (frame, mut arena) = (Frame::text(&"x".repeat(128)), Arena::default());
    arena.replies().extend_from_slice(frame.as_bytes());
    bencher.with_inputs(|| make_queue(&arena)).bench_local_values(|mut outbox| {
        outbox.push_arena(arena.bytes(), 0..frame.len());
        outbox.detach(&arena);
        outbox
    });
}

fn queue_of(waiting: usize) -> Outbox {
    let mut outbox = Outbox::default();
    frames(1, 128).iter().cycle().take(waiting).for_each(|frame| outbox.push(frame));
    outbox.advance(waiting.min(1));
    outbox
}

/// Pushes a reply behind frames of earlier rounds. Each of these rounds ended with a detach.
#[divan::bench(args = [0, 100, 10_000])]
fn reply_behind_earlier_rounds(bencher: Bencher<'_, '_>, waiting: usize) {
    bench_reply_kept(bencher, |arena| {
        let mut outbox = queue_of(waiting);
        outbox.detach(arena);
        outbox
    });
}

/// Pushes a reply behind frames of the same round.
#[divan::bench(args = [100, 10_000])]
fn reply_behind_a_burst(bencher: Bencher<'_, '_>, waiting: usize) {
    bench_reply_kept(bencher, |_| queue_of(waiting));
}
