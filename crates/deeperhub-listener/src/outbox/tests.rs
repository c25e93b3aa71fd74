use super::*;
use crate::arena::Multicast;
use deeperhub_protocol::frame;

fn text(payload: &str) -> Frame {
    Frame::text(payload)
}

fn pong(payload: &[u8]) -> Frame {
    let mut out = Vec::new();
    frame::write_pong(&mut out, payload);
    Frame::from_encoded(&out)
}

fn in_arena(bytes: &[u8]) -> Arena {
    let mut arena = Arena::default();
    arena.replies().extend_from_slice(bytes);
    arena
}

/// Writes the whole queue, `step` bytes at a time.
fn drain(outbox: &mut Outbox, arena: &[u8], step: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut gather = Vec::new();
    loop {
        let written = match outbox.next_write(arena, &mut gather) {
            NextWrite::Nothing => break,
            NextWrite::Slice(bytes) => {
                let written = bytes.len().min(step);
                out.extend_from_slice(&bytes[..written]);
                written
            }
            NextWrite::Slices(slices, count) => {
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                let written = all.len().min(step);
                out.extend_from_slice(&all[..written]);
                written
            }
        };
        outbox.advance(written);
    }
    assert_eq!(outbox.len(), 0);
    out
}

#[test]
fn pieces_are_written_in_order_whatever_the_length_of_the_writes() {
    let large = "x".repeat(9000);
    for step in [1, 3, 7, 4096, 1 << 20] {
        let mut outbox = Outbox::default();
        let arena = b"onetwo".to_vec();
        outbox.push(&text("a"));
        outbox.push_arena(&arena, 0..3);
        outbox.push_arena(&arena, 3..6);
        outbox.push(&text(&large));
        outbox.push(&text(&large));
        let mut expected = text("a").as_bytes().to_vec();
        expected.extend_from_slice(b"onetwo");
        expected.extend_from_slice(text(&large).as_bytes());
        expected.extend_from_slice(text(&large).as_bytes());
        assert_eq!(outbox.len(), expected.len());
        assert_eq!(drain(&mut outbox, &arena, step), expected);
    }
}

#[test]
fn detached_pieces_do_not_need_the_arena() {
    let mut outbox = Outbox::default();
    let arena = b"reply".to_vec();
    outbox.push_arena(&arena, 0..5);
    outbox.advance(2);
    outbox.detach(&in_arena(&arena));
    assert_eq!(drain(&mut outbox, &[], 10), b"ply");
}

#[test]
fn frames_of_a_fan_out_are_one_piece_until_detached_as_shared_frames() {
    let frames = ["one", "two", "three"].map(Frame::text);
    let expected: Vec<u8> = frames.iter().flat_map(|frame| frame.as_bytes().to_vec()).collect();
    for written in 0..expected.len() {
        let fan_out = frames.clone().map(Multicast::new);
        let mut arena = Arena::default();
        let mut outboxes: [Outbox; 10] = Default::default();
        for outbox in &mut outboxes {
            for multicast in &fan_out {
                let frame = multicast.frame();
                match arena.copy(frame, multicast.copy_slot(frame)) {
                    Some(start) => outbox.push_arena(arena.bytes(), start..start + frame.len()),
                    None => outbox.push(frame),
                }
            }
        }
        let last = &mut outboxes[9];
        assert!(matches!(last.pieces, Pieces::One(Piece::Arena { .. })));
        if written > 0 {
            last.advance(written);
        }
        last.detach(&arena);
        arena.clear();
        assert_eq!(last.len(), expected.len() - written);
        if let Pieces::Many(queue) = &last.pieces {
            let shares = |piece: &Piece| match piece {
                Piece::Shared(frame) => fan_out
                    .iter()
                    .any(|multicast| multicast.frame().as_bytes().as_ptr() == frame.as_bytes().as_ptr()),
                Piece::Arena { .. } => false,
            };
            assert!(queue.pieces.iter().all(shares));
        }
        last.push_pong(pong(b"p"));
        let rest = drain(last, &[], 3);
        assert_eq!(rest.len(), expected.len() - written + pong(b"p").len());
        assert!(rest.ends_with(fan_out[2].frame().as_bytes()) || written > expected.len() - 7);
    }
}

/// Simulates rounds of replies and deliveries to a peer that reads slowly.
#[test]
fn pieces_of_many_rounds_are_written_in_order() {
    for step in [0, 1, 2, 5, 11, 40] {
        let mut outbox = Outbox::default();
        let (mut expected, mut written) = (Vec::new(), Vec::new());
        for round in 0..40 {
            let mut arena = Arena::default();
            for nth in 0..round % 5 {
                let frame = text(&format!("{round}.{nth}"));
                expected.extend_from_slice(frame.as_bytes());
                if (round + nth) % 3 == 0 {
                    outbox.push(&frame);
                } else {
                    let start = arena.len();
                    arena.replies().extend_from_slice(frame.as_bytes());
                    outbox.push_arena(arena.bytes(), start..arena.len());
                }
            }
            let mut gather = Vec::new();
            outbox.gather(arena.bytes(), &mut gather);
            assert_eq!(gather.len(), outbox.len());
            let step = step.min(gather.len());
            written.extend_from_slice(&gather[..step]);
            outbox.advance(step);
            outbox.detach(&arena);
            if let Pieces::Many(queue) = &outbox.pieces {
                assert_eq!(queue.detached, queue.pieces.len());
                assert!(!queue.pieces.iter().any(Piece::is_in_arena));
            }
        }
        written.extend(drain(&mut outbox, &[], 7));
        assert_eq!(written, expected, "{step} bytes a round");
    }
}

/// Checks that `detached` never counts a piece in the arena, whatever happens between two calls
/// of `detach`.
#[test]
fn detached_pieces_are_never_in_the_arena() {
    for (step, clears) in [(0, false), (1, false), (4, true), (9, false), (30, true)] {
        let mut outbox = Outbox::default();
        for round in 0..60_usize {
            let mut arena = Arena::default();
            if round % 4 == 0 {
                outbox.push_pong(pong(b"before"));
            }
            for nth in 0..round % 3 {
                let start = arena.len();
                arena.replies().extend_from_slice(text("reply").as_bytes());
                outbox.push_arena(arena.bytes(), start..arena.len());
                // Bytes of another connection, so that the next reply is not adjacent.
                arena.replies().extend_from_slice(text("of another").as_bytes());
                if nth == 1 {
                    outbox.push(&text("shared"));
                }
            }
            outbox.advance(step.min(outbox.len()));
            if round % 5 == 0 {
                outbox.push_pong(pong(b"between"));
            }
            if clears && round % 7 == 0 {
                outbox.clear();
            }
            if let Pieces::Many(queue) = &outbox.pieces {
                assert!(queue.detached <= queue.pieces.len());
                assert!(!queue.pieces.iter().take(queue.detached).any(Piece::is_in_arena));
            }
            outbox.detach(&arena);
            let mut bytes = Vec::new();
            outbox.gather(&[], &mut bytes);
            assert_eq!(bytes.len(), outbox.len(), "round {round}, {step} bytes a round");
        }
    }
}

#[test]
fn pongs_are_sent_before_queued_frames_but_not_within_one() {
    let mut outbox = Outbox::default();
    outbox.push(&text("first"));
    outbox.push(&text("second"));
    outbox.advance(3);
    outbox.push_pong(pong(b"1"));
    outbox.push_pong(pong(b"2"));
    let mut expected = text("first").as_bytes()[3..].to_vec();
    for frame in [pong(b"1"), pong(b"2"), text("second")] {
        expected.extend_from_slice(frame.as_bytes());
    }
    assert_eq!(drain(&mut outbox, &[], 2), expected);
}

#[test]
fn queued_pongs_are_bounded() {
    let mut outbox = Outbox::default();
    outbox.push(&text("data"));
    for n in 0..200_u8 {
        outbox.push_pong(pong(&[n]));
    }
    let all = drain(&mut outbox, &[], 5);
    assert_eq!(all.len(), MAX_PONGS * 3 + text("data").len());
    assert_eq!(all[MAX_PONGS * 3 - 1], 199);
}

#[test]
fn clear_keeps_the_rest_of_a_partly_written_frame() {
    let mut outbox = Outbox::default();
    outbox.push(&text("first"));
    outbox.push(&text("second"));
    outbox.advance(4);
    outbox.clear();
    assert_eq!(drain(&mut outbox, &[], 100), text("first").as_bytes()[4..]);
    outbox.push(&text("x"));
    outbox.clear();
    assert!(outbox.is_empty());
}
