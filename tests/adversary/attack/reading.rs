//! The reading of attackers, and its pace.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};

use super::{AttackCounters, AttackEnd, AttackResult, ConnectOptions};
use crate::wire::{Duplex, RSV1, TEXT, WireFrame, parse};

const CLOSE: u8 = 0x88;

/// Reading behavior of an attacker.
pub(super) enum Reading {
    /// Never reads.
    Never,
    /// Reads and discards everything.
    All,
    /// Compares replies with these texts, repeatedly in this order.
    Compare(Vec<String>),
}

impl Reading {
    pub(super) async fn read(&self, mut from: ReadHalf<Box<dyn Duplex>>, mut read: Vec<u8>) -> AttackResult {
        let mut buffer = vec![0; 64 * 1024];
        let mut expected = match self {
            Self::Never => return std::future::pending().await,
            Self::All => None,
            Self::Compare(texts) => Some(texts.iter().cycle()),
        };
        loop {
            if let Some(expected) = &mut expected {
                while let Some((frame, len)) = parse(&read) {
                    read.drain(..len);
                    compare(&frame, expected)?;
                }
            } else {
                // Keep the end: it has the close frame.
                read.drain(..read.len().saturating_sub(200));
            }
            let len = from.read(&mut buffer).await.map_err(|error| AttackEnd::Closed(error.to_string()))?;
            if len == 0 {
                return Ok(AttackEnd::Closed(readable_tail(&read)));
            }
            read.extend_from_slice(&buffer[..len]);
        }
    }
}

/// Returns the readable end of what was received.
pub(super) fn readable_tail(read: &[u8]) -> String {
    let tail = &read[read.len().saturating_sub(80)..];
    let text: String = String::from_utf8_lossy(tail).chars().filter(|c| c.is_ascii_graphic()).collect();
    format!("ended after {text:?}")
}

fn compare<'a>(frame: &WireFrame, expected: &mut impl Iterator<Item = &'a String>) -> Result<(), AttackEnd> {
    match frame.first & !RSV1 {
        TEXT => {
            let got = frame.text();
            if got.starts_with(r#"{"type":"goodbye""#) {
                return Ok(());
            }
            let expected = expected.next().map(String::as_str).unwrap_or_default();
            // A client without a token gets an error for each message.
            if got == expected || got.starts_with(r#"{"type":"error""#) {
                return Ok(());
            }
            Err(AttackEnd::WrongBytes(format!(
                "an attacker that sent {} bytes {:?} got {} bytes {:?}",
                expected.len(),
                ends(expected),
                got.len(),
                ends(&got)
            )))
        }
        CLOSE => Err(AttackEnd::Closed(close_reason(frame))),
        _ => Ok(()),
    }
}

/// Describes a close frame by code and reason.
pub(crate) fn close_reason(frame: &WireFrame) -> String {
    match frame.payload.split_first_chunk() {
        Some((code, reason)) => {
            format!("closed with {} {:?}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
        }
        None => "closed without a code".to_owned(),
    }
}

/// Shortens a text to its beginning and its end.
pub(crate) fn ends(text: &str) -> String {
    if text.len() <= 80 || !text.is_ascii() {
        return text.chars().take(80).collect();
    }
    format!("{}…{}", &text[..40], &text[text.len() - 30..])
}

/// Bytes per second of a slow reader.
const SLOW_READ_RATE: usize = 20_000;

pub(super) async fn read_slowly(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
    let wire = options.connect().await.map_err(AttackEnd::Closed)?;
    counters.connected();
    let (mut stream, _) = wire.into_parts();
    let data = "s".repeat(options.limits.message_bytes - 30);
    let echo = options.frame(&format!(r#"{{"type":"echo","data":"{data}"}}"#));
    stream.write_all(&echo.repeat(4)).await.map_err(|error| AttackEnd::Closed(error.to_string()))?;
    counters.sent(4);
    let mut buffer = vec![0; SLOW_READ_RATE / 10];
    let mut tail = Vec::new();
    loop {
        let len = stream.read(&mut buffer).await.map_err(|error| AttackEnd::Closed(error.to_string()))?;
        if len == 0 {
            return Ok(AttackEnd::Closed(readable_tail(&tail)));
        }
        tail.extend_from_slice(&buffer[..len]);
        tail.drain(..tail.len().saturating_sub(100));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
