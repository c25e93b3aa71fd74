//! Memory of kept frames, measured with the allocator of the server.

use deeperhub_protocol::frame::{Frame, KeptFrame};
use deeperhub_protocol::message::StreamMessage;
use deeperhub_protocol::{ClientId, Epoch, RawJson};
use tikv_jemalloc_ctl::thread;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const FRAMES: usize = 100;

/// Bytes of a history's entry for a kept frame: the handle, and a number of eight bytes.
const SLOT_BYTES: usize = 16;

/// Returns the heap bytes of one kept frame, the allocator's rounding included.
fn heap_bytes(encode: impl Fn() -> Frame) -> usize {
    let allocated = thread::allocatedp::read().expect("the allocator has statistics");
    let freed = thread::deallocatedp::read().expect("the allocator has statistics");
    let mut kept: Vec<KeptFrame> = Vec::with_capacity(FRAMES);
    let in_use = || allocated.get().wrapping_sub(freed.get());
    let before = in_use();
    kept.extend((0..FRAMES).map(|_| encode().keep()));
    let bytes = in_use().wrapping_sub(before);
    assert_eq!(bytes % FRAMES as u64, 0, "all frames need the same memory");
    bytes as usize / FRAMES
}

#[test]
fn the_overhead_of_a_kept_frame_is_as_stated() {
    // With these lengths on the wire, the allocator does not round up.
    for wire_bytes in [256, 320, 1024, 4096, 40_960] {
        let frame = Frame::text(&"x".repeat(wire_bytes - 4));
        assert_eq!(frame.len(), wire_bytes);
        let expected = wire_bytes + KeptFrame::OVERHEAD_BYTES as usize;
        assert_eq!(heap_bytes(|| Frame::from_encoded(frame.as_bytes())), expected, "{wire_bytes} bytes");
    }
}

#[test]
fn a_message_in_a_history_needs_few_bytes_besides_its_frame() {
    let client_id = ClientId::parse("n1-0-4a-7f3b21").expect("it is an ID");
    for from in [None, Some(&client_id)] {
        let (mut overhead, mut messages) = (0, 0);
        for payload_bytes in 2..=400 {
            let payload = format!("\"{}\"", "x".repeat(payload_bytes - 2));
            let delivery = StreamMessage {
                topic: "sports.football.results",
                message: RawJson::parse(&payload).expect("it is JSON"),
                from,
                time: 1_796_000_000_123,
                traceparent: None,
                tracestate: None,
            };
            let encode = || delivery.encode().seal(Epoch::from_bits(1), 123_456, None);
            overhead += heap_bytes(encode) + SLOT_BYTES - encode().len();
            messages += 1;
        }
        let mean = overhead / messages;
        println!("Mean overhead: {mean} bytes (from: {})", from.is_some());
        assert!(mean <= 125, "{mean} bytes besides the frame");
    }
}
