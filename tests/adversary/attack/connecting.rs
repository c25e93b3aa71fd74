//! Attacks on handshakes, and clients that reconnect.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::reading::readable_tail;
use super::{AttackCounters, AttackEnd, AttackResult, ConnectOptions};
use crate::wire::Duplex;

/// Longest wait of an attacker for a reply or a close.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn shake_hands(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
    loop {
        // The next attempt follows a refusal at once.
        match options.connect().await {
            Ok(_) => counters.connected(),
            Err(refusal) => counters.ended(first_line(&refusal)),
        }
        counters.sent(1);
        tokio::task::yield_now().await;
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

pub(super) async fn send_head_in_crumbs(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
    let mut stream = options.open().await.map_err(|error| AttackEnd::Closed(error.to_string()))?;
    counters.connected();
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(options.limits.handshake_bytes));
    let mut buffer = [0; 1024];
    for crumb in head.as_bytes()[..options.limits.handshake_bytes - 4].chunks(64) {
        stream.write_all(crumb).await.map_err(|error| AttackEnd::Closed(error.to_string()))?;
        let pause = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut buffer)).await;
        if let Ok(Ok(0) | Err(_)) = pause {
            return Ok(AttackEnd::Closed("the head took too long".to_owned()));
        }
    }
    until_closed(stream).await
}

pub(super) async fn open_half(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
    let stream = TcpStream::connect(options.address).await;
    let mut stream = stream.map_err(|error| AttackEnd::Closed(error.to_string()))?;
    counters.connected();
    let begun: &[u8] = match options.tls {
        // The beginning of a ClientHello.
        Some(_) => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        None => b"GET / HTTP/1.1\r\nHost: ",
    };
    stream.write_all(begun).await.map_err(|error| AttackEnd::Closed(error.to_string()))?;
    until_closed(Box::new(stream)).await
}

async fn until_closed(mut stream: Box<dyn Duplex>) -> AttackResult {
    let mut all = Vec::new();
    let ended = tokio::time::timeout(ANSWER_TIMEOUT, stream.read_to_end(&mut all)).await;
    Ok(AttackEnd::Closed(match ended {
        Ok(_) => format!("answered {:?}", first_line(&String::from_utf8_lossy(&all))),
        Err(_) => format!("not ended in {ANSWER_TIMEOUT:?}"),
    }))
}

pub(super) async fn send_burst_and_leave(
    options: &ConnectOptions,
    counters: &AttackCounters,
) -> AttackResult {
    let burst = options.frame(r#"{"type":"ping"}"#).repeat(options.limits.burst as usize - 1);
    let last = options.frame(r#"{"type":"echo","data":"that was all"}"#);
    loop {
        let wire = match options.connect().await {
            Ok(wire) => wire,
            Err(refusal) => {
                counters.ended(first_line(&refusal));
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        counters.connected();
        let (mut stream, mut read) = wire.into_parts();
        let written = stream.write_all(&[&burst[..], &last].concat()).await;
        written.map_err(|error| AttackEnd::Closed(error.to_string()))?;
        counters.sent(options.limits.burst as u64);
        let mut buffer = vec![0; 16 * 1024];
        // Until the reply to the last message, or the first `rate_limited`.
        while !read.windows(12).any(|window| window == b"that was all")
            && !read.windows(12).any(|window| window == b"rate_limited")
        {
            read.drain(..read.len().saturating_sub(16));
            let came = tokio::time::timeout(ANSWER_TIMEOUT, stream.read(&mut buffer)).await;
            match came {
                Ok(Ok(len @ 1..)) => read.extend_from_slice(&buffer[..len]),
                Ok(_) => return Ok(AttackEnd::Closed(readable_tail(&read))),
                Err(_) => return Ok(AttackEnd::Closed(format!("no response in {ANSWER_TIMEOUT:?}"))),
            }
        }
    }
}
