//! The opening handshake (RFC 6455 section 4): request, acceptance, refusal.
//!
//! [`Request::parse`] parses a request head incrementally. [`Request::check_upgrade`] checks that
//! it is a WebSocket handshake. The caller checks path, origin and token; [`Refusal`] has
//! constructors for these cases. [`write_accept`] or [`Refusal::write`] writes the response.
//!
//! ```
//! use deeperhub_protocol::handshake::{Parsed, Request, write_accept};
//!
//! let read = b"GET /ws?token=abc HTTP/1.1\r\n\
//!     Host: example.com\r\n\
//!     Connection: keep-alive, Upgrade\r\n\
//!     Upgrade: websocket\r\n\
//!     Sec-WebSocket-Version: 13\r\n\
//!     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nfirst frame";
//! let mut answer = Vec::new();
//! if let Parsed::Complete { request, head_bytes } = Request::parse(read)? {
//!     assert_eq!(request.path(), "/ws");
//!     assert_eq!(request.query_value("token").as_deref(), Some("abc"));
//!     assert_eq!(&read[head_bytes..], b"first frame");
//!     write_accept(&mut answer, &request.check_upgrade()?, Some("deeperhub.v1.json"), None);
//! }
//! assert!(answer.starts_with(b"HTTP/1.1 101 Switching Protocols\r\n"));
//! # Ok::<(), deeperhub_protocol::handshake::Refusal>(())
//! ```

mod refusal;
mod request;
mod upgrade;

pub use refusal::Refusal;
pub use request::{HeadError, HeadLimit, HeadLimits, MAX_HEAD_BYTES, MAX_HEADERS, Parsed, Request};
pub use upgrade::{AcceptKey, write_accept};
