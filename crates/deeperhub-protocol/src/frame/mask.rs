//! Masking of payloads (RFC 6455 section 5.3).

use fearless_simd::{Level, dispatch};

/// Minimum payload length for detecting the widest vector instructions at run time. Wide
/// instructions halve the time at 16 KiB. Below 1 KiB, the detection costs a few nanoseconds more
/// than it saves.
const SIMD_MIN_BYTES: usize = 2048;

/// Applies `mask` to `payload`, starting with the mask's first byte.
#[inline]
pub(super) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if payload.len() < SIMD_MIN_BYTES { apply(payload, mask) } else { unmask_simd(payload, mask) }
}

fn unmask_simd(payload: &mut [u8], mask: [u8; 4]) {
    dispatch!(Level::new(), _simd => apply(payload, mask));
}

/// Unmasks eight bytes at a time in a branch-free loop, which the compiler vectorises with the
/// instructions enabled for the caller.
#[inline(always)]
fn apply(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_payload_byte_is_unmasked_with_the_right_mask_byte() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        for length in (0..100).chain(SIMD_MIN_BYTES - 9..SIMD_MIN_BYTES + 100) {
            let mut payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            unmask(&mut payload, mask);
            for (i, byte) in payload.iter().enumerate() {
                assert_eq!(*byte, i as u8 ^ mask[i % 4]);
            }
        }
    }
}
