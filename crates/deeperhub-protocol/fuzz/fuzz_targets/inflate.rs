//! Inflates arbitrary bytes as the compressed messages of one connection. Nothing panics, output
//! and memory stay within limits, and the output does not depend on the inflater's earlier use.
//! flate2 must agree on whole streams. The output is compressed again and must round-trip.

#![no_main]

use deeperhub_protocol::deflate::{Config, Deflater, History, Inflater, negotiate};
use deeperhub_protocol::frame::{Frame, FrameError, Incoming, MessageKind};
use flate2::{Decompress, FlushDecompress, Status};
use libfuzzer_sys::fuzz_target;

const WINDOW_BYTES: usize = 32 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[limit, takes_over, level], bytes)) = bytes.split_first_chunk() else { return };
    let limit = usize::from(limit) * 300;
    let (mut inflater, mut history) = (Inflater::new(), History::new());
    let mut config = Config::default();
    (config.level, config.threshold_bytes) = (level, 0);
    let mut deflater = Deflater::new(&config);
    // 0xee separates the messages.
    for payload in bytes.split(|&byte| byte == 0xee) {
        let before = (takes_over % 2 == 1).then(|| history.clone());
        let decoded = decode(&mut inflater, (takes_over % 2 == 1).then_some(&mut history), limit, payload);
        let again = decode(&mut Inflater::new(), before.clone().as_mut(), limit, payload);
        assert_eq!(decoded, again);
        assert!(history.heap_bytes() <= WINDOW_BYTES);
        match decoded {
            Ok(message) => {
                assert!(message.len() <= limit);
                check_round_trip(&mut deflater, &mut inflater, &message);
            }
            Err(FrameError::MessageTooBig { limit: named }) => assert_eq!(named, limit),
            Err(error) => assert_eq!(error, FrameError::MalformedDeflate),
        }
        if before.is_none()
            && let Some(expected) = reference_output(payload, limit)
        {
            assert_eq!(decode(&mut inflater, None, limit, payload), Ok(expected));
        }
    }
});

fn decode(
    inflater: &mut Inflater,
    history: Option<&mut History>,
    limit: usize,
    payload: &[u8],
) -> Result<Vec<u8>, FrameError> {
    match inflater.decode(history, limit, MessageKind::Binary, payload)? {
        Incoming::Binary(bytes) => Ok(bytes.to_vec()),
        other => panic!("{other:?}"),
    }
}

/// Returns flate2's output for a payload that is one stream without a final block, ends with a
/// block and fits the limit.
fn reference_output(payload: &[u8], limit: usize) -> Option<Vec<u8>> {
    const TAIL: [u8; 6] = [0, 0, 0xff, 0xff, 0x03, 0];
    let mut out = Vec::with_capacity(limit + 64);
    let mut stream = Decompress::new(false);
    let status = stream.decompress_vec(payload, &mut out, FlushDecompress::None).ok()?;
    if status == Status::StreamEnd || stream.total_in() != payload.len() as u64 || out.len() > limit {
        return None;
    }
    let len = out.len();
    let status = stream.decompress_vec(&TAIL, &mut out, FlushDecompress::None).ok()?;
    let is_whole = status == Status::StreamEnd && stream.total_in() == (payload.len() + TAIL.len()) as u64;
    (is_whole && out.len() == len).then_some(out)
}

fn check_round_trip(deflater: &mut Deflater, inflater: &mut Inflater, message: &[u8]) {
    let Ok(Some(params)) = negotiate(&Config::default(), [&b"permessage-deflate"[..]]) else { panic!() };
    let frame = Frame::binary(message);
    let sent = frame.for_receiver(deflater, params);
    // With a threshold of 0, every message is compressed, even if it grows: blocks are stored then.
    assert!(sent.len() <= frame.len() + 16 + message.len() / 512);
    let header = match sent.as_bytes()[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    match sent.as_bytes()[0] {
        0x82 => assert_eq!(sent.as_bytes(), frame.as_bytes()),
        first => {
            assert_eq!(first, 0xc2);
            let back = decode(inflater, None, message.len(), &sent.as_bytes()[header..]);
            assert_eq!(back.as_deref(), Ok(message));
        }
    }
}
