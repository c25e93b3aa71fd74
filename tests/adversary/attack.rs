//! Attacks that stay within every limit: for each limit, one attack at exactly that limit.
//!
//! The worst-case table of `benches/` runs the same attacks, so nothing here depends on how tests
//! start a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::wire::{Duplex, RSV1, TEXT, Wire, WireFrame, deflated, masked, parse, upgrade};

const BINARY: u8 = 0x82;
const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;

/// Offer of compression with a window of 256 bytes. zlib has no such window, so the server sends
/// its replies uncompressed: a bomb of a few bytes comes back in full length.
pub(crate) const COMPRESSED: &str = "permessage-deflate; server_max_window_bits=8";

/// Empty final blocks in a message; the server accepts 256.
const FINAL_BLOCKS: usize = 250;

/// Longest wait of an attacker for a reply or a close.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Delay before an attacker reconnects.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// Function that wraps a TCP connection in TLS.
pub(crate) type Tls =
    Arc<dyn Fn(TcpStream) -> BoxFuture<'static, std::io::Result<Box<dyn Duplex>>> + Send + Sync>;

/// Server limits that attackers stay within.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) message_bytes: usize,
    pub(crate) fragments: usize,
    pub(crate) json_depth: usize,
    pub(crate) subscriptions: usize,
    /// Messages per second.
    pub(crate) rate: f64,
    pub(crate) burst: f64,
    /// Pings per second; the burst is twice as many.
    pub(crate) control_rate: f64,
    pub(crate) handshake_bytes: usize,
}

impl Default for Limits {
    /// The server's defaults.
    fn default() -> Self {
        Self {
            message_bytes: 65_536,
            fragments: 65_536,
            json_depth: 127,
            subscriptions: 128,
            rate: 100.0,
            burst: 200.0,
            control_rate: 50.0,
            handshake_bytes: 32_768,
        }
    }
}

/// Connection options of a client.
#[derive(Clone)]
pub(crate) struct ConnectOptions {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Tls>,
    /// Value of `Sec-WebSocket-Extensions`; with an offer, the client compresses every message.
    pub(crate) offer: Option<&'static str>,
    pub(crate) token: Option<String>,
    pub(crate) limits: Limits,
}

impl ConnectOptions {
    /// Connects over TCP, without compression and without a token.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, offer: None, token: None, limits: Limits::default() }
    }

    /// Opens a TCP connection, and TLS over it if configured.
    ///
    /// # Errors
    ///
    /// The error of the connection or of the TLS handshake.
    pub(crate) async fn open(&self) -> std::io::Result<Box<dyn Duplex>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => tls(stream).await,
        }
    }

    /// Opens a WebSocket connection and reads the `welcome`.
    ///
    /// # Errors
    ///
    /// The server's refusal.
    pub(crate) async fn connect(&self) -> Result<Wire, String> {
        let stream = self.open().await.map_err(|error| format!("no connection: {error}"))?;
        let mut lines = Vec::new();
        lines.extend(self.offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}")));
        lines.extend(self.token.as_ref().map(|token| format!("Authorization: Bearer {token}")));
        Wire::over(stream, &upgrade(self.address, &lines)).await
    }

    /// Returns a text message as one frame, compressed if compression was offered.
    pub(crate) fn frame(&self, text: &str) -> Vec<u8> {
        match self.offer {
            None => masked(TEXT, text.as_bytes()),
            Some(_) => masked(TEXT | RSV1, &deflated(text.as_bytes())),
        }
    }
}

/// An attack that exhausts one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Echoes of the maximum size; each reply is compared with its request.
    FullEchoes,
    /// Echoes of the maximum size from clients that never read.
    UnreadEchoes,
    /// Publishes to one topic that all attackers subscribe to.
    FanOut,
    /// The same as `FanOut` with messages of the maximum size, from clients that never read.
    UnreadFanOut,
    /// Publishes of the maximum size without a subscriber: pure decoding.
    UnwantedPublishes,
    /// Overlapping patterns of 128 levels, and publishes that match all levels except the last.
    DeepPatterns,
    /// The most subscriptions per client, each with the longest name.
    LongNames,
    /// Patterns that are subscribed to and unsubscribed from at once.
    PatternChurn,
    /// Hundreds of empty final DEFLATE blocks in front of a short message.
    EmptyBlocks,
    /// Messages in the most fragments.
    Fragments,
    /// Messages of the maximum size and nesting depth.
    DeepJson,
    /// The shortest messages.
    ShortMessages,
    /// Messages that are not JSON.
    Garbage,
    /// Binary messages of the maximum size.
    Binary,
    /// WebSocket pings.
    Pings,
    /// Tokens with an invalid signature.
    WrongTokens,
    /// Connections that are closed right after the `welcome`.
    Handshakes,
    /// Request heads in small pieces that never end (slowloris).
    SlowHeads,
    /// Connections that stop in the middle of the handshake.
    HalfOpen,
    /// Connections that send a full burst, close and reconnect.
    Reconnects,
    /// Clients that read echoes of the maximum size at 20 KB/s.
    SlowReaders,
    /// Publishes of the maximum size to topics with history.
    FullHistories,
    /// Publishes to a new topic with history each.
    NewHistories,
    /// Subscribes that replay a history, over and over.
    Replays,
    /// The same as `Replays` from clients that never read.
    UnreadReplays,
    /// Reads of as many kept messages as one message may ask for.
    HistoryReads,
}

impl Attack {
    /// All attacks, in the order of the table of limits.
    pub(crate) const ALL: [Self; 26] = [
        Self::Handshakes,
        Self::Reconnects,
        Self::SlowHeads,
        Self::HalfOpen,
        Self::FullEchoes,
        Self::UnwantedPublishes,
        Self::Binary,
        Self::EmptyBlocks,
        Self::Fragments,
        Self::DeepJson,
        Self::ShortMessages,
        Self::Garbage,
        Self::FanOut,
        Self::WrongTokens,
        Self::Pings,
        Self::DeepPatterns,
        Self::LongNames,
        Self::PatternChurn,
        Self::UnreadEchoes,
        Self::UnreadFanOut,
        Self::SlowReaders,
        Self::FullHistories,
        Self::NewHistories,
        Self::Replays,
        Self::UnreadReplays,
        Self::HistoryReads,
    ];

    /// Flags of a server whose histories the attacks fill and read. They end soon, so that nothing
    /// remains after an attack.
    pub(crate) const HISTORY_FLAGS: [&str; 4] =
        ["--topic", "attack.kept.>: history=1000 ttl=2s", "--history-forget", "1s"];

    /// Returns a short description.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FullEchoes => "echoes of the maximum size",
            Self::UnreadEchoes => "echoes of the maximum size, never read",
            Self::FanOut => "publishes to each other, 1 KiB",
            Self::UnreadFanOut => "publishes of the maximum size to each other, never read",
            Self::UnwantedPublishes => "publishes of the maximum size without subscribers",
            Self::DeepPatterns => "overlapping patterns of 128 levels",
            Self::LongNames => "subscriptions to names of 255 bytes",
            Self::PatternChurn => "pattern subscribe/unsubscribe churn",
            Self::EmptyBlocks => "empty final DEFLATE blocks",
            Self::Fragments => "messages in the most fragments",
            Self::DeepJson => "JSON of the maximum size and depth",
            Self::ShortMessages => "the shortest messages",
            Self::Garbage => "messages that are not JSON",
            Self::Binary => "binary messages of the maximum size",
            Self::Pings => "WebSocket pings",
            Self::WrongTokens => "tokens with an invalid signature",
            Self::Handshakes => "handshakes",
            Self::SlowHeads => "request heads in small pieces",
            Self::HalfOpen => "unfinished handshakes",
            Self::Reconnects => "full bursts of reconnecting clients",
            Self::SlowReaders => "slow readers, 20 KB/s",
            Self::FullHistories => "publishes of the maximum size to topics with history",
            Self::NewHistories => "publishes to new topics with history",
            Self::Replays => "replays of a history",
            Self::UnreadReplays => "replays of a history, never read",
            Self::HistoryReads => "reads of 1,000 kept messages",
        }
    }

    /// Returns the limit that the attack stays at.
    pub(crate) const fn limit(self) -> &'static str {
        match self {
            Self::FullEchoes | Self::UnwantedPublishes | Self::Binary => "--max-message-bytes",
            Self::UnreadEchoes | Self::UnreadFanOut | Self::SlowReaders => "--max-queue-bytes",
            Self::FanOut | Self::ShortMessages | Self::Garbage | Self::EmptyBlocks => "--rate-limit",
            Self::DeepPatterns | Self::LongNames | Self::PatternChurn => "--max-subscriptions",
            Self::Fragments => "--max-fragments",
            Self::DeepJson => "--max-json-depth",
            Self::Pings => "--control-rate-limit",
            Self::WrongTokens => "--token-rate-limit",
            Self::Handshakes => "--max-connections",
            Self::SlowHeads => "--max-handshake-bytes",
            Self::HalfOpen => "--handshake-timeout",
            Self::Reconnects => "--burst-rate-per-ip",
            Self::FullHistories => "--history-bytes",
            Self::NewHistories => "--max-streams",
            Self::Replays | Self::HistoryReads => "--rate-limit",
            Self::UnreadReplays => "--max-queue-bytes",
        }
    }

    /// Returns the rate that each attacker is allowed.
    pub(crate) const fn allowance(self) -> &'static str {
        match self {
            Self::Pings => "50/s",
            Self::WrongTokens => "5/s",
            Self::HistoryReads => "9/s",
            Self::Handshakes | Self::Reconnects => "no limit by default",
            Self::SlowHeads | Self::HalfOpen => "one at a time",
            Self::SlowReaders | Self::LongNames => "held",
            _ => "100/s",
        }
    }

    /// Returns `true` if the attack needs compression.
    pub(crate) const fn is_compressed_only(self) -> bool {
        matches!(self, Self::EmptyBlocks)
    }

    /// Attacks and reconnects until the future is dropped. Returns only if the server sent wrong
    /// bytes, with a description of them.
    pub(crate) async fn run(
        self,
        options: &ConnectOptions,
        client: usize,
        counters: &AttackCounters,
    ) -> String {
        loop {
            match self.attack_once(options, client, counters).await {
                AttackEnd::Closed(how) => counters.ended(how),
                AttackEnd::WrongBytes(what) => return what,
            }
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }

    async fn attack_once(
        self,
        options: &ConnectOptions,
        client: usize,
        counters: &AttackCounters,
    ) -> AttackEnd {
        let attack: BoxFuture<'_, AttackResult> = match self {
            Self::Handshakes => Box::pin(shake_hands(options, counters)),
            Self::SlowHeads => Box::pin(send_head_in_crumbs(options, counters)),
            Self::HalfOpen => Box::pin(open_half(options, counters)),
            Self::Reconnects => Box::pin(send_burst_and_leave(options, counters)),
            Self::SlowReaders => Box::pin(read_slowly(options, counters)),
            _ => Box::pin(self.send_at_rate(options, client, counters)),
        };
        attack.await.unwrap_or_else(|fault| fault)
    }

    /// Runs an attack that consists of messages.
    async fn send_at_rate(
        self,
        options: &ConnectOptions,
        client: usize,
        counters: &AttackCounters,
    ) -> AttackResult {
        let wire = options.connect().await.map_err(AttackEnd::Closed)?;
        counters.connected();
        let Some(MessagePlan { ahead, again, reading, bucket }) = self.plan(options, client) else {
            return Err(AttackEnd::WrongBytes(format!("{} does not consist of messages", self.name())));
        };
        let (stream, read) = wire.into_parts();
        let (from, to) = tokio::io::split(stream);
        let mut sender = Sender { to, bucket, counters };
        tokio::select! {
            sent = sender.send(&ahead, &again) => sent,
            read = reading.read(from, read) => read,
        }
    }

    /// Returns the client's message plan; `None` if the attack does not consist of messages.
    fn plan(self, options: &ConnectOptions, client: usize) -> Option<MessagePlan> {
        let limits = options.limits;
        let mut bucket = TokenBucket::new(limits.rate, limits.burst);
        let letter = letter(client);
        let full = |head: &str, tail: &str| {
            let fill = limits.message_bytes - head.len() - tail.len();
            format!("{head}{}{tail}", letter.to_string().repeat(fill))
        };
        let publish = |topic: &str, len: usize| {
            let (head, tail) =
                (format!(r#"{{"type":"publish","data":{{"topic":"{topic}","message":""#), r#""}}"#);
            format!("{head}{}{tail}", letter.to_string().repeat(len - head.len() - tail.len()))
        };
        let texts = |texts: Vec<String>| texts.iter().map(|text| options.frame(text)).collect::<Vec<_>>();
        let (ahead, again, reading) = match self {
            Self::FullEchoes => {
                // Lengths and letters differ, so a reply meant for another message or client is
                // detected.
                let echoes: Vec<_> = (0..4)
                    .map(|n| {
                        let mut echo = full(&format!(r#"{{"type":"echo","id":{n},"data":""#), r#""}"#);
                        let at = echo.len() - 2;
                        echo.replace_range(at - n..at, "");
                        echo
                    })
                    .collect();
                (vec![], texts(echoes.clone()), Reading::Compare(echoes))
            }
            Self::UnreadEchoes => {
                (vec![], texts(vec![full(r#"{"type":"echo","data":""#, r#""}"#)]), Reading::Never)
            }
            Self::FanOut => {
                (texts(vec![subscribe("attack.hot")]), texts(vec![publish("attack.hot", 1024)]), Reading::All)
            }
            Self::UnreadFanOut => (
                texts(vec![subscribe("attack.hot")]),
                texts(vec![publish("attack.hot", limits.message_bytes)]),
                Reading::Never,
            ),
            Self::UnwantedPublishes => {
                (vec![], texts(vec![publish("attack.nobody", limits.message_bytes)]), Reading::All)
            }
            Self::DeepPatterns => {
                let patterns = (0..limits.subscriptions).map(|n| subscribe(&deep_pattern(client, n)));
                let deepest = publish(&vec!["a"; 128].join("."), 400);
                // A quarter of the clients publish; the others only hold patterns.
                let again = if client.is_multiple_of(4) { texts(vec![deepest]) } else { vec![] };
                (texts(patterns.collect()), again, Reading::All)
            }
            Self::LongNames => {
                let names = (0..limits.subscriptions).map(|n| subscribe(&long_name(client, n)));
                (texts(names.collect()), vec![], Reading::All)
            }
            Self::PatternChurn => {
                let churn = (0..64).flat_map(|n| {
                    let topic = format!("*.{client}.{n}.>");
                    [subscribe(&topic), subscribe(&topic).replacen("subscribe", "unsubscribe", 1)]
                });
                (vec![], texts(churn.collect()), Reading::All)
            }
            Self::EmptyBlocks => {
                // The output before them fills the window that a decoder carries over each block.
                let window = [deflated(&[b' '; 40_000]), vec![0, 0, 0xff, 0xff]].concat();
                let blocks = [3, 0].repeat(FINAL_BLOCKS);
                let payload = [window, blocks, deflated(br#"{"type":"ping"}"#)].concat();
                (vec![], vec![masked(TEXT | RSV1, &payload)], Reading::All)
            }
            Self::Fragments => {
                let mut message = masked(0x01, br#"{"type":"ping""#);
                message.extend(masked(0x00, b"").repeat(limits.fragments - 2));
                message.extend(masked(0x80, b"}"));
                (vec![], vec![message], Reading::All)
            }
            Self::DeepJson => {
                let levels = limits.json_depth - 2;
                let deep = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
                let many = vec![deep; (limits.message_bytes - 100) / (2 * levels + 1)].join(",");
                (vec![], texts(vec![format!(r#"{{"type":"echo","data":[{many}]}}"#)]), Reading::All)
            }
            Self::ShortMessages => (vec![], texts(vec![r#"{"type":"ping"}"#.to_owned()]), Reading::All),
            Self::Garbage => (vec![], texts(vec![r#"{"type":"#.to_owned()]), Reading::All),
            Self::Binary => (vec![], vec![masked(BINARY, &vec![0; limits.message_bytes])], Reading::All),
            Self::Pings => {
                bucket = TokenBucket::new(limits.control_rate, 2.0 * limits.control_rate);
                (vec![], vec![masked(PING, &[b'x'; 125])], Reading::All)
            }
            Self::WrongTokens => {
                bucket = TokenBucket::new(5.0, 50.0);
                let text = format!(r#"{{"type":"authenticate","data":{{"token":"{}"}}}}"#, wrong_token());
                (vec![], texts(vec![text]), Reading::All)
            }
            Self::FullHistories => {
                let topics = (0..16).map(|n| publish(&kept(client, n), limits.message_bytes));
                (vec![], texts(topics.collect()), Reading::All)
            }
            Self::NewHistories => {
                let topics = (0..1000).map(|n| publish(&kept(client, n), 400));
                (vec![], texts(topics.collect()), Reading::All)
            }
            Self::Replays | Self::UnreadReplays => {
                let topic = kept(client, 0);
                let replay = format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}","history":1000}}}}"#);
                let end = subscribe(&topic).replacen("subscribe", "unsubscribe", 1);
                let reading = if self == Self::Replays { Reading::All } else { Reading::Never };
                (vec![], texts(vec![publish(&topic, 4096), replay, end]), reading)
            }
            Self::HistoryReads => {
                // Each 100 requested messages count as a message.
                bucket = TokenBucket::new(limits.rate / 11.0, limits.burst / 11.0);
                let topic = kept(client, 0);
                let read = format!(r#"{{"type":"history","data":{{"topic":"{topic}","limit":1000}}}}"#);
                (vec![], texts(vec![publish(&topic, 4096), read]), Reading::All)
            }
            Self::Handshakes | Self::SlowHeads | Self::HalfOpen | Self::Reconnects | Self::SlowReaders => {
                return None;
            }
        };
        Some(MessagePlan { ahead, again, reading, bucket })
    }
}

/// Frames that one client of a message attack sends, and its reading behavior.
struct MessagePlan {
    /// Frames to send once.
    ahead: Vec<Vec<u8>>,
    /// Frames to send repeatedly after that.
    again: Vec<Vec<u8>>,
    reading: Reading,
    bucket: TokenBucket,
}

/// Bytes of a token; the server accepts 16 KiB.
const TOKEN_BYTES: usize = 16_000;

/// Returns a well-formed token of nearly the maximum size with an invalid signature.
fn wrong_token() -> String {
    let (head, signature) = ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "A".repeat(43));
    format!("{head}.{}.{signature}", "e30A".repeat((TOKEN_BYTES - head.len() - signature.len()) / 4))
}

fn subscribe(topic: &str) -> String {
    format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#)
}

/// Returns a topic with history of a client.
fn kept(client: usize, n: usize) -> String {
    format!("attack.kept.{client}.{n}")
}

/// Returns the letter that fills the messages of a client.
fn letter(client: usize) -> char {
    char::from(b'a' + u8::try_from(client % 26).unwrap_or_default())
}

/// Returns a pattern that differs from all other patterns only in its first levels.
fn deep_pattern(client: usize, n: usize) -> String {
    let number = client * 128 + n;
    let first = (0..16).map(|bit| if number >> bit & 1 == 0 { "*" } else { "a" });
    let levels: Vec<_> = first.chain(std::iter::repeat_n("*", 111)).chain(["x"]).collect();
    levels.join(".")
}

/// Returns a name of the maximum length; every other one is a pattern.
fn long_name(client: usize, n: usize) -> String {
    let name = format!("{}.{client}.{n}.", if n.is_multiple_of(2) { "*" } else { "attack" });
    format!("{name}{}", "x".repeat(255 - name.len()))
}

/// Reason that an attacker's connection ended.
#[derive(Debug)]
enum AttackEnd {
    /// The server refused or closed it, which may be how the limit is enforced.
    Closed(String),
    /// The server sent bytes that it must not send.
    WrongBytes(String),
}

/// Result of one connection. An attack runs until its connection ends, so both variants are an end.
type AttackResult = Result<AttackEnd, AttackEnd>;

/// Sends messages at the allowed rate.
struct Sender<'a> {
    to: WriteHalf<Box<dyn Duplex>>,
    bucket: TokenBucket,
    counters: &'a AttackCounters,
}

/// Most bytes in one write of an attacker.
const MAX_WRITE_BYTES: usize = 256 * 1024;

impl Sender<'_> {
    /// Sends `ahead` once and then `again` repeatedly.
    async fn send(&mut self, ahead: &[Vec<u8>], again: &[Vec<u8>]) -> AttackResult {
        let message = |n: usize| match n.checked_sub(ahead.len()) {
            None => ahead.get(n),
            Some(n) => again.get(n.checked_rem(again.len())?),
        };
        let (mut next, mut batch) = (0, Vec::new());
        while message(next).is_some() {
            let mut allowed = self.bucket.wait().await;
            let first = next;
            batch.clear();
            while allowed > 0 && batch.len() < MAX_WRITE_BYTES {
                let Some(message) = message(next) else { break };
                batch.extend_from_slice(message);
                allowed -= 1;
                next += 1;
            }
            let count = (next - first) as u64;
            self.bucket.take(count);
            let written = self.to.write_all(&batch).await;
            written.map_err(|error| AttackEnd::Closed(format!("not written: {error}")))?;
            self.counters.sent(count);
        }
        // Nothing left to send: keep the connection open.
        std::future::pending().await
    }
}

/// Messages that may be sent now. Refills 3 % slower than the server's bucket, so that clock
/// differences do not matter.
#[derive(Debug)]
struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl TokenBucket {
    fn new(rate: f64, burst: f64) -> Self {
        Self { rate: rate * 0.97, burst, tokens: burst, last: Instant::now() }
    }

    /// Waits until messages may be sent and returns how many.
    async fn wait(&mut self) -> u64 {
        loop {
            let now = Instant::now();
            let filled = (now - self.last).as_secs_f64() * self.rate;
            self.tokens = (self.tokens + filled).min(self.burst);
            self.last = now;
            // Releases at least 50 ms worth of tokens at a time, like a client with a timer.
            let few = (self.rate / 20.0).max(1.0);
            if self.tokens >= few {
                return self.tokens as u64;
            }
            tokio::time::sleep(Duration::from_secs_f64((few - self.tokens) / self.rate)).await;
        }
    }

    fn take(&mut self, count: u64) {
        self.tokens -= count as f64;
    }
}

/// Reading behavior of an attacker.
enum Reading {
    /// Never reads.
    Never,
    /// Reads and discards everything.
    All,
    /// Compares replies with these texts, repeatedly in this order.
    Compare(Vec<String>),
}

impl Reading {
    async fn read(&self, mut from: ReadHalf<Box<dyn Duplex>>, mut read: Vec<u8>) -> AttackResult {
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
fn readable_tail(read: &[u8]) -> String {
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

async fn shake_hands(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
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

async fn send_head_in_crumbs(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
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

async fn open_half(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
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

async fn send_burst_and_leave(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
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

/// Bytes per second of a slow reader.
const SLOW_READ_RATE: usize = 20_000;

async fn read_slowly(options: &ConnectOptions, counters: &AttackCounters) -> AttackResult {
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

/// Counts what attackers did and how their connections ended.
#[derive(Debug, Default)]
pub(crate) struct AttackCounters {
    connected: AtomicU64,
    sent: AtomicU64,
    ended: AtomicU64,
    /// Description of how the last connection ended.
    last_end: std::sync::Mutex<String>,
}

impl AttackCounters {
    fn connected(&self) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    fn sent(&self, count: u64) {
        self.sent.fetch_add(count, Ordering::Relaxed);
    }

    fn ended(&self, how: String) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last_end.lock() {
            *last = how;
        }
    }

    /// Returns the number of messages (or handshakes) sent.
    pub(crate) fn messages(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of connections opened.
    pub(crate) fn connections(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }
}

impl std::fmt::Display for AttackCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} connections, {} messages", self.connections(), self.messages())?;
        let ended = self.ended.load(Ordering::Relaxed);
        if ended > 0 {
            let last = self.last_end.lock().map(|last| last.clone()).unwrap_or_default();
            write!(f, ", {ended} ended or refused (the last: {})", ends(&last))?;
        }
        Ok(())
    }
}

/// Tasks of attackers; dropping it ends them.
#[derive(Debug, Default)]
pub(crate) struct Attackers {
    tasks: JoinSet<String>,
    pub(crate) counters: Arc<AttackCounters>,
}

impl Attackers {
    /// Starts attackers, which take `options` in turn.
    pub(crate) fn spawn(&mut self, attack: Attack, options: &[ConnectOptions], clients: usize) {
        for (client, options) in options.iter().cycle().take(clients).enumerate() {
            let (options, counters) = (options.clone(), Arc::clone(&self.counters));
            self.tasks.spawn(async move { attack.run(&options, client, &counters).await });
        }
    }

    /// Ends all attackers.
    ///
    /// # Errors
    ///
    /// A description of the wrong bytes, if an attacker received any.
    pub(crate) async fn stop(mut self) -> Result<Arc<AttackCounters>, String> {
        self.tasks.abort_all();
        while let Some(done) = self.tasks.join_next().await {
            match done {
                Ok(wrong) => return Err(wrong),
                // A timeout of the wire client panics.
                Err(error) if error.is_panic() => return Err(format!("an attacker failed: {error}")),
                Err(_) => {}
            }
        }
        Ok(self.counters)
    }
}
