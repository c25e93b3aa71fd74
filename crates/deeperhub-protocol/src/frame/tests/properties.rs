//! What holds for any messages in any fragments and any reads.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A message or control frame, and where a message is cut into fragments.
#[derive(Debug, Clone)]
struct Sent {
    what: Decoded,
    cuts: Vec<Index>,
    /// Control frames between the fragments, as far as there are any.
    between: Vec<Decoded>,
}

fn control() -> impl Strategy<Value = Decoded> {
    prop_oneof![
        vec(any::<u8>(), 0..=125).prop_map(Decoded::Ping),
        vec(any::<u8>(), 0..=20).prop_map(Decoded::Pong),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let what = prop_oneof![
        4 => ".{0,60}".prop_map(Decoded::Text),
        1 => "[a-zäöü🦀]{100,400}".prop_map(Decoded::Text),
        2 => vec(any::<u8>(), 0..300).prop_map(Decoded::Binary),
        1 => control(),
    ];
    (what, vec(any::<Index>(), 0..4), vec(control(), 0..3)).prop_map(|(what, cuts, between)| Sent {
        what,
        cuts,
        between,
    })
}

/// A control frame's bytes.
fn control_frame(control: &Decoded) -> Vec<u8> {
    match control {
        Decoded::Ping(payload) => frame(FINAL | PING, payload),
        Decoded::Pong(payload) => frame(FINAL | PONG, payload),
        other => panic!("{other:?} is no control frame"),
    }
}

/// Encodes `sent`, and notes in `expected` what a receiver must get.
fn encode(sent: &Sent, out: &mut Vec<u8>, expected: &mut Vec<Decoded>) {
    let (opcode, payload) = match &sent.what {
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
    expected.push(sent.what.clone());
}

/// `bytes` in the pieces that `cuts` make.
pub(super) fn reads<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    places.push(bytes.len());
    let mut start = 0;
    places.iter().map(|&place| &bytes[std::mem::replace(&mut start, place)..place]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_same_messages_come_out_however_they_are_cut(
        messages in vec(sent(), 0..6),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        messages.iter().for_each(|sent| encode(sent, &mut bytes, &mut expected));
        // `decode` also checks that memory is bounded and given back.
        let (decoded, result) = decode(&FrameLimits::new(2000), reads(&bytes, &cuts));
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(decoded, expected);
    }

    #[test]
    fn no_message_over_the_limit_comes_out(
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
    fn any_bytes_say_the_same_however_they_are_cut(
        mut bytes in vec(any::<u8>(), 0..200),
        valid_starts in vec((any::<Index>(), prop_oneof![Just(0x81u8), Just(0x01), Just(0x80), Just(0x89), Just(0x88)]), 0..4),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        // Plain random bytes hardly ever get past the first header.
        for (place, first) in valid_starts {
            let place = place.index(bytes.len() + 1);
            bytes.splice(place..place, [first, 0x85]);
        }
        let limits = FrameLimits::new(300);
        prop_assert_eq!(decode(&limits, reads(&bytes, &cuts)), decode(&limits, [&bytes[..]]));
    }

    #[test]
    fn what_the_server_writes_is_what_a_client_sends_less_the_mask(payload in vec(any::<u8>(), 0..70_000)) {
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
