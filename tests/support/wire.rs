//! WebSocket client at the level of raw frames.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Server, wait_for};

/// FIN and a text frame's opcode.
pub(crate) const TEXT: u8 = 0x81;

/// RSV1, which marks the first frame of a compressed message in `permessage-deflate`.
pub(crate) const RSV1: u8 = 0x40;

/// A byte stream, plain or over TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Duplex for T {}

/// A client that writes raw frames, also invalid ones, and sees the header bits of received frames.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Box<dyn Duplex>,
    read: Vec<u8>,
    /// The value of `Sec-WebSocket-Extensions` in the response.
    pub(crate) extensions: Option<String>,
}

/// Returns the upgrade request for `/` with additional header lines.
pub(crate) fn upgrade(host: impl std::fmt::Display, lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

/// A received frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireFrame {
    /// FIN, reserved bits and opcode.
    pub(crate) first: u8,
    /// The raw payload.
    pub(crate) payload: Vec<u8>,
}

impl Wire {
    /// Connects at `/`, with an extension offer if given, and reads the `welcome`.
    ///
    /// # Panics
    ///
    /// If it is refused.
    pub(crate) async fn connect(server: &Server, offer: Option<&str>) -> Self {
        let stream = wait_for("a connection", TcpStream::connect(server.clients)).await;
        let stream = stream.expect("the server accepts connections");
        let lines: Vec<_> =
            offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}")).into_iter().collect();
        let request = upgrade(server.clients, &lines);
        Self::over(Box::new(stream), &request).await.unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// Sends a request over an open connection and reads the `welcome`.
    ///
    /// # Errors
    ///
    /// The response if the request was refused, or the frame received instead of a `welcome`.
    pub(crate) async fn over(stream: Box<dyn Duplex>, request: &str) -> Result<Self, String> {
        let mut wire = Self { stream, read: Vec::new(), extensions: None };
        wire.write(request.as_bytes()).await;
        let head_len = loop {
            if let Some(at) = wire.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !wire.fill().await {
                return Err("the connection ended in the handshake".to_owned());
            }
        };
        let head = String::from_utf8_lossy(&wire.read[..head_len]).into_owned();
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(String::from_utf8_lossy(&wire.read).into_owned());
        }
        wire.read.drain(..head_len);
        wire.extensions = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("sec-websocket-extensions").then(|| value.to_owned())
        });
        match wire.receive().await {
            Some(welcome) if welcome.text().contains("\"welcome\"") => Ok(wire),
            other => Err(format!("no welcome but {other:?}")),
        }
    }

    /// Returns the stream and the bytes that were read but not consumed.
    #[allow(dead_code, reason = "only the adversary suite reads and writes at once")]
    pub(crate) fn into_parts(self) -> (Box<dyn Duplex>, Vec<u8>) {
        (self.stream, self.read)
    }

    /// Sends a masked frame. `first` is its first byte.
    pub(crate) async fn send(&mut self, first: u8, payload: &[u8]) {
        let frame = masked(first, payload);
        self.write(&frame).await;
    }

    /// Sends a compressed text message in one frame.
    pub(crate) async fn send_compressed(&mut self, text: &str) {
        self.send(TEXT | RSV1, &deflated(text.as_bytes())).await;
    }

    /// Writes raw bytes. Bytes that the server no longer reads are lost.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = wait_for("writing", self.stream.write_all(bytes)).await;
    }

    /// Receives the next frame except pings. `None`: the connection has ended.
    pub(crate) async fn receive(&mut self) -> Option<WireFrame> {
        loop {
            while let Some((frame, len)) = parse(&self.read) {
                self.read.drain(..len);
                if frame.first != 0x89 {
                    return Some(frame);
                }
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Receives the next message, decompressed if necessary. The flag tells if it was compressed.
    ///
    /// # Panics
    ///
    /// If the connection ends.
    pub(crate) async fn receive_text(&mut self) -> (String, bool) {
        let frame = self.receive().await.expect("a message comes");
        (frame.text(), frame.first & RSV1 != 0)
    }

    /// Reads to the end and returns the code and the reason of the close frame.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        while let Some(frame) = self.receive().await {
            if let (0x88, Some((code, reason))) = (frame.first, frame.payload.split_first_chunk()) {
                return (u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned());
            }
        }
        panic!("the connection ended without a close frame");
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let read = wait_for("bytes", self.stream.read(&mut buffer)).await.unwrap_or(0);
        self.read.extend_from_slice(&buffer[..read]);
        read > 0
    }
}

impl WireFrame {
    /// Returns the payload as text, decompressed if the frame is marked.
    ///
    /// # Panics
    ///
    /// If it cannot be decompressed or is not UTF-8.
    pub(crate) fn text(&self) -> String {
        let bytes = if self.first & RSV1 == 0 { self.payload.clone() } else { inflated(&self.payload) };
        String::from_utf8(bytes).expect("text is UTF-8")
    }
}

/// Returns a whole client frame.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65_536 => {
            frame.push(0xfe);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0xff);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let mask = [0x11, 0x22, 0x33, 0x44];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Compresses a message without context takeover.
pub(crate) fn deflated(payload: &[u8]) -> Vec<u8> {
    deflated_by(&mut Compress::new(Compression::default(), false), payload)
}

/// Compresses a message; the compressor may refer to earlier messages.
pub(crate) fn deflated_by(compress: &mut Compress, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + payload.len() / 8 + 64);
    compress.compress_vec(payload, &mut out, FlushCompress::Sync).expect("it compresses");
    out.truncate(out.len() - 4);
    out
}

/// Returns the decompressed payload of a message.
fn inflated(payload: &[u8]) -> Vec<u8> {
    let mut stream = Decompress::new(false);
    let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
    let mut out = Vec::with_capacity(4096);
    while stream.total_in() < whole.len() as u64 {
        out.reserve(out.len() + 4096);
        let rest = &whole[stream.total_in() as usize..];
        stream.decompress_vec(rest, &mut out, FlushDecompress::Sync).expect("it decompresses");
    }
    out
}

/// Parses the frame at the beginning of `bytes` and returns it with its length.
pub(crate) fn parse(bytes: &[u8]) -> Option<(WireFrame, usize)> {
    let (&[first, length], rest) = bytes.split_first_chunk()?;
    let (header, length) = match length {
        126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?),
        length => (2, usize::from(length)),
    };
    let payload = bytes.get(header..header + length)?.to_vec();
    Some((WireFrame { first, payload }, header + length))
}
