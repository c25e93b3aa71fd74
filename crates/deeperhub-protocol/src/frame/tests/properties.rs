//! Properties that hold for any messages in any fragments and any reads.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A message or control frame to send.
#[derive(Debug, Clone)]
struct Sent {
    item: Decoded,
    /// The positions at which a message is split into fragments.
    cuts: Vec<Index>,
    /// Control frames to send between the fragments.
    between: Vec<Decoded>,
}

fn control() -> impl Strategy<Value = Decoded> {
    prop_oneof![
        vec(any::<u8>(), 0..=125).prop_map(Decoded::Ping),
        vec(any::<u8>(), 0..=20).prop_map(Decoded::Pong),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let item = prop_oneof![
        4 => ".{0,60}".prop_map(Decoded::Text),
        1 => "[a-zäöü🦀]{100,400}".prop_map(Decoded::Text),
        2 => vec(any::<u8>(), 0..300).prop_map(Decoded::Binary),
        1 => control(),
    ];
    (item, vec(any::<Index>(), 0..4), vec(control(), 0..3)).prop_map(|(item, cuts, between)| Sent {
        item,
        cuts,
        between,
    })
}

/// Returns the bytes of a control frame.
fn control_frame(control: &Decoded) -> Vec<u8> {
    match control {
        Decoded::Ping(payload) => frame(FINAL | PING, payload),
        Decoded::Pong(payload) => frame(FINAL | PONG, payload),
        other => panic!("{other:?} is not a control frame"),
    }
}

/// Appends the frames of `sent` to `out`, and the items that a receiver must decode to `expected`.
fn encode(sent: &Sent, out: &mut Vec<u8>, expected: &mut Vec<Decoded>) {
    let (opcode, payload) = match &sent.item {
        Decoded::Text(text) => (TEXT, text.as_bytes()),
        Decoded::Binary(bytes) => (BINARY, &bytes[..]),
        control => {
            out.extend(control_frame(control));
            return expected.push(control.clone());
        }
    };
    let mut cuts: Vec<_> = sent.cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
    cuts.sort_unstable();
    let (mut start, mut opcode) = (0, opcode);
    let mut between = sent.between.iter();
    for cut in cuts {
        out.extend(frame(opcode, &payload[start..cut]));
        (start, opcode) = (cut, CONTINUATION);
        if let Some(control) = between.next() {
            out.extend(control_frame(control));
            expected.push(control.clone());
        }
    }
    out.extend(frame(FINAL | opcode, &payload[start..]));
    expected.push(sent.item.clone());
}

/// Splits `bytes` into reads at the positions in `cuts`.
pub(super) fn reads<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(bytes.len());
    let (mut reads, mut start) = (Vec::new(), 0);
    for end in ends {
        reads.push(&bytes[start..end]);
        start = end;
    }
    reads
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn messages_are_decoded_for_any_fragments_and_reads(
        messages in vec(sent(), 0..6),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        messages.iter().for_each(|sent| encode(sent, &mut bytes, &mut expected));
        // `decode` also checks that memory is bounded and released.
        let (decoded, result) = decode(&FrameLimits::new(2000), reads(&bytes, &cuts));
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(decoded, expected);
    }

    #[test]
    fn no_message_over_the_limit_is_decoded(
        limit in 0..400usize,
        messages in vec(sent(), 0..6),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        messages.iter().for_each(|sent| encode(sent, &mut bytes, &mut expected));
        let (decoded, result) = decode(&FrameLimits::new(limit), reads(&bytes, &cuts));
        let is_over = |decoded: &Decoded| match decoded {
            Decoded::Text(text) => text.len() > limit,
            Decoded::Binary(bytes) => bytes.len() > limit,
            _ => false,
        };
        prop_assert!(decoded.iter().all(|message| !is_over(message)));
        prop_assert!(expected.starts_with(&decoded));
        if expected.iter().any(is_over) {
            prop_assert_eq!(result, Err(FrameError::MessageTooBig { limit }));
        } else {
            prop_assert_eq!((decoded, result), (expected, Ok(())));
        }
    }

    #[test]
    fn any_bytes_give_the_same_result_for_any_reads(
        mut bytes in vec(any::<u8>(), 0..200),
        valid_starts in vec((any::<Index>(), prop_oneof![Just(0x81u8), Just(0x01), Just(0x80), Just(0x89), Just(0x88)]), 0..4),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        // Random bytes rarely contain a valid header, so insert the start of some headers.
        for (place, first) in valid_starts {
            let place = place.index(bytes.len() + 1);
            bytes.splice(place..place, [first, 0x85]);
        }
        let limits = FrameLimits::new(300);
        prop_assert_eq!(decode(&limits, reads(&bytes, &cuts)), decode(&limits, [&bytes[..]]));
    }

    #[test]
    fn encoded_frames_decode_to_the_same_payload(payload in vec(any::<u8>(), 0..70_000)) {
        let written = Frame::binary(&payload);
        let mut out = Vec::new();
        write_binary(&mut out, &payload);
        prop_assert_eq!(written.as_bytes(), &out[..]);
        let mut masked = frame(FINAL | BINARY, &payload);
        let limits = FrameLimits::new(usize::MAX);
        let incoming = FrameDecoder::new().next(&limits, &mut masked, &mut 0).unwrap().map(Decoded::from);
        prop_assert_eq!(incoming, Some(Decoded::Binary(payload)));
    }
}
