//! Encodes TLS messages into a growing buffer.

use rustls::unbuffered::{EncodeError, EncodeTlsData, InsufficientSizeError};

/// Maximum bytes queued during the handshake for the server's certificates and other messages.
const MAX_QUEUED_HANDSHAKE_BYTES: usize = 128 * 1024;

/// Encodes a TLS message into `out` and returns its length. Returns the required size if `out` is
/// too short.
pub(super) fn encode<Data>(
    data: &mut EncodeTlsData<'_, Data>,
    out: &mut [u8],
) -> Result<usize, InsufficientSizeError> {
    match data.encode(out) {
        Ok(len) => Ok(len),
        Err(EncodeError::InsufficientSize(size)) => Err(size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    }
}

/// Appends the output of `write` to `out`. Calls `write` again with more space if it needs more.
pub(super) fn append(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, InsufficientSizeError>,
) -> Result<(), BufferLimit> {
    let start = out.len();
    let mut space = 0;
    loop {
        out.resize(start + space, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(InsufficientSizeError { required_size }) if required_size > space => {
                if start + required_size > MAX_QUEUED_HANDSHAKE_BYTES {
                    out.truncate(start);
                    return Err(BufferLimit);
                }
                space = required_size;
            }
            Err(_) => {
                out.truncate(start);
                return Err(BufferLimit);
            }
        }
    }
}

/// Error of output that would exceed [`MAX_QUEUED_HANDSHAKE_BYTES`].
pub(super) struct BufferLimit;
