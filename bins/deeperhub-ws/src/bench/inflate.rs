//! Messages that the server compressed (RFC 7692).

use flate2::{Decompress, FlushDecompress, Status};

use super::handshake::Deflate;

/// What a compressor takes off the end of each message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// No hub's message is longer; what is, is not to fill our memory.
const MAX_MESSAGE: usize = 1 << 28;

/// The reading half of a connection's compression.
#[derive(Debug)]
pub(super) struct Inflate {
    inner: Decompress,
    forgets: bool,
}

impl Inflate {
    pub(super) fn new(agreed: Deflate) -> Self {
        Self { inner: Decompress::new(false), forgets: agreed.forgets }
    }

    /// Writes the message that `compressed` stands for into `message`, over what was there.
    pub(super) fn inflate(&mut self, compressed: &[u8], message: &mut Vec<u8>) -> Result<(), &'static str> {
        message.clear();
        for mut part in [compressed, &TAIL[..]] {
            loop {
                if message.len() == message.capacity() {
                    message.reserve(message.len().max(4096));
                }
                let before = self.inner.total_in();
                let status = self
                    .inner
                    .decompress_vec(part, message, FlushDecompress::Sync)
                    .map_err(|_| "a message that cannot be decompressed")?;
                let read = usize::try_from(self.inner.total_in() - before).unwrap_or(usize::MAX);
                part = part.get(read..).unwrap_or_default();
                if message.len() > MAX_MESSAGE {
                    return Err("a message of more than 256 MiB");
                }
                // Room that is left means that there is nothing more to write.
                if status == Status::StreamEnd || (part.is_empty() && message.len() < message.capacity()) {
                    break;
                }
                if read == 0 && message.len() < message.capacity() {
                    return Err("a message that cannot be decompressed");
                }
            }
        }
        if self.forgets {
            self.inner.reset(false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn compress(compress: &mut Compress, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(message.len() + 1024);
        compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_come_out_as_they_went_in(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 1..5),
            forgets: bool,
        ) {
            let mut inflate = Inflate::new(Deflate { forgets });
            let (mut server, mut out) = (Compress::new(Compression::fast(), false), Vec::new());
            for message in messages {
                inflate.inflate(&compress(&mut server, &message), &mut out).unwrap();
                prop_assert_eq!(&out, &message);
                if forgets {
                    server.reset();
                }
            }
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Inflate::new(Deflate { forgets: false }).inflate(&bytes, &mut Vec::new());
        }
    }
}
