//! Masking of payloads (RFC 6455 section 5.3).

/// Applies `mask` to `payload`, whose first byte meets the first byte of the mask.
///
/// Eight bytes at a time in a loop without branches, which the compiler turns into vector instructions.
#[inline]
pub(super) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
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
    fn every_byte_meets_its_byte_of_the_mask() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        for length in 0..100 {
            let mut payload: Vec<u8> = (0..length).collect();
            unmask(&mut payload, mask);
            for (i, byte) in payload.iter().enumerate() {
                assert_eq!(*byte, i as u8 ^ mask[i % 4]);
            }
        }
    }
}
