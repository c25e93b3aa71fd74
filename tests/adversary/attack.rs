//! What clients can do that stay within every limit: for each limit, an attack at exactly that limit.
//!
//! The worst-case table of `benches/` runs the same attacks, so nothing here depends on how tests start a server.

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

/// Asks for compression so that the server cannot compress its answers: zlib has no window of 256 bytes. A bomb of a
/// few bytes comes back in full length.
pub(crate) const COMPRESSED: &str = "permessage-deflate; server_max_window_bits=8";

/// Empty final blocks of a message: fewer than the server takes.
const FINAL_BLOCKS: usize = 250;

/// The longest wait of an attacker for anything.
const WAIT: Duration = Duration::from_secs(60);

/// Between two connections of an attacker that lost the first one.
const COME_BACK: Duration = Duration::from_millis(50);

/// Wraps a TCP connection in TLS.
pub(crate) type Tls =
    Arc<dyn Fn(TcpStream) -> BoxFuture<'static, std::io::Result<Box<dyn Duplex>>> + Send + Sync>;

/// The limits of the server that attackers stay within.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) message_bytes: usize,
    pub(crate) fragments: usize,
    pub(crate) json_depth: usize,
    pub(crate) subscriptions: usize,
    /// Messages a second.
    pub(crate) rate: f64,
    pub(crate) burst: f64,
    /// Pings a second; twice as many may come at once.
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
            handshake_bytes: 16_384,
        }
    }
}

/// How a client comes in.
#[derive(Clone)]
pub(crate) struct Entrance {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Tls>,
    /// What it offers in `Sec-WebSocket-Extensions`. With an offer it sends every message compressed.
    pub(crate) offer: Option<&'static str>,
    pub(crate) token: Option<String>,
    pub(crate) limits: Limits,
}

impl Entrance {
    /// Connects with nothing but an address.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, offer: None, token: None, limits: Limits::default() }
    }

    /// Opens a connection, with TLS where the server has it.
    ///
    /// # Errors
    ///
    /// What the system or TLS says.
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
    /// The refusal.
    pub(crate) async fn connect(&self) -> Result<Wire, String> {
        let stream = self.open().await.map_err(|error| format!("no connection: {error}"))?;
        let mut lines = Vec::new();
        lines.extend(self.offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}")));
        lines.extend(self.token.as_ref().map(|token| format!("Authorization: Bearer {token}")));
        Wire::over(stream, &upgrade(self.address, &lines)).await
    }

    /// A text message in one frame, compressed where that was offered.
    pub(crate) fn frame(&self, text: &str) -> Vec<u8> {
        match self.offer {
            None => masked(TEXT, text.as_bytes()),
            Some(_) => masked(TEXT | RSV1, &deflated(text.as_bytes())),
        }
    }
}

/// One way to use up a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Echoes of full size that are read and compared with what was sent.
    FullEchoes,
    /// Echoes of full size by clients that never read.
    UnreadEchoes,
    /// Publishes to one topic that all attackers are subscribed to.
    FanOut,
    /// The same in full size, and nobody reads.
    UnreadFanOut,
    /// Publishes of full size that nobody is subscribed to: nothing but decoding.
    UnwantedPublishes,
    /// Patterns of 128 levels that overlap, and publishes that match all but their last level.
    DeepPatterns,
    /// As many subscriptions as a client may have, each with the longest name.
    LongNames,
    /// Patterns that are subscribed to and given up at once.
    PatternChurn,
    /// Hundreds of empty final blocks of DEFLATE ahead of a short message.
    EmptyBlocks,
    /// Messages in as many fragments as they may have.
    Fragments,
    /// Messages of full size that nest as deep as they may.
    DeepJson,
    /// The shortest messages.
    ShortMessages,
    /// Messages that are no JSON.
    Garbage,
    /// Binary messages of full size.
    Binary,
    /// WebSocket pings.
    Pings,
    /// Tokens that are not good.
    WrongTokens,
    /// Connections that are closed as soon as they are welcomed.
    Handshakes,
    /// Heads that come in crumbs and never end.
    SlowHeads,
    /// Connections that begin a handshake, or TLS, and say no more.
    HalfOpen,
    /// Connections that send the burst they may and come back for another one.
    Reconnects,
    /// Clients that read 20 KB a second of echoes of full size.
    SlowReaders,
}

impl Attack {
    /// All of them, in the order of the table of limits.
    pub(crate) const ALL: [Self; 21] = [
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
    ];

    /// What it does, for a table or a message.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FullEchoes => "echoes of full size",
            Self::UnreadEchoes => "echoes of full size, never read",
            Self::FanOut => "publishes to each other, 1 KiB",
            Self::UnreadFanOut => "publishes of full size to each other, never read",
            Self::UnwantedPublishes => "publishes of full size to nobody",
            Self::DeepPatterns => "overlapping patterns of 128 levels",
            Self::LongNames => "subscriptions to names of 255 bytes",
            Self::PatternChurn => "patterns subscribed to and given up",
            Self::EmptyBlocks => "empty final blocks in a message",
            Self::Fragments => "messages in the most fragments",
            Self::DeepJson => "JSON of full size and depth",
            Self::ShortMessages => "the shortest messages",
            Self::Garbage => "messages that are no JSON",
            Self::Binary => "binary messages of full size",
            Self::Pings => "WebSocket pings",
            Self::WrongTokens => "tokens that are not good",
            Self::Handshakes => "handshakes",
            Self::SlowHeads => "heads in crumbs",
            Self::HalfOpen => "handshakes that stop",
            Self::Reconnects => "bursts of connections that come back",
            Self::SlowReaders => "readers of 20 KB/s",
        }
    }

    /// The limit that it stays at.
    pub(crate) const fn limit(self) -> &'static str {
        match self {
            Self::FullEchoes | Self::UnwantedPublishes | Self::Binary => "--max-message-bytes",
            Self::UnreadEchoes | Self::UnreadFanOut | Self::SlowReaders => "--max-queue-bytes",
            Self::FanOut | Self::ShortMessages | Self::Garbage | Self::EmptyBlocks => "--rate-limit",
            Self::DeepPatterns | Self::LongNames | Self::PatternChurn => "--max-subscriptions",
            Self::Fragments => "--max-fragments",
            Self::DeepJson => "--max-json-depth",
            Self::Pings => "--control-rate-limit",
            Self::WrongTokens => "tokens of a connection",
            Self::Handshakes => "--max-connections",
            Self::SlowHeads => "--max-handshake-bytes",
            Self::HalfOpen => "--handshake-timeout",
            Self::Reconnects => "--rate-burst",
        }
    }

    /// The rate that each attacker is allowed, for a table.
    pub(crate) const fn allowance(self) -> &'static str {
        match self {
            Self::Pings => "50/s",
            Self::WrongTokens => "5/s",
            Self::Handshakes | Self::Reconnects => "as fast as it is let in",
            Self::SlowHeads | Self::HalfOpen => "one at a time",
            Self::SlowReaders | Self::LongNames => "held",
            _ => "100/s",
        }
    }

    /// Whether it is none without compression.
    pub(crate) const fn is_compressed_only(self) -> bool {
        matches!(self, Self::EmptyBlocks)
    }

    /// Attacks until it is dropped; returns only when the server gave wrong bytes, with what was wrong.
    pub(crate) async fn go_on(self, entrance: &Entrance, client: usize, tally: &Tally) -> String {
        loop {
            match self.attack_once(entrance, client, tally).await {
                Fault::Ended(how) => tally.ended(how),
                Fault::Wrong(what) => return what,
            }
            tokio::time::sleep(COME_BACK).await;
        }
    }

    async fn attack_once(self, entrance: &Entrance, client: usize, tally: &Tally) -> Fault {
        let attack: BoxFuture<'_, Attacked> = match self {
            Self::Handshakes => Box::pin(shake_hands(entrance, tally)),
            Self::SlowHeads => Box::pin(send_head_in_crumbs(entrance, tally)),
            Self::HalfOpen => Box::pin(open_half(entrance, tally)),
            Self::Reconnects => Box::pin(send_burst_and_leave(entrance, tally)),
            Self::SlowReaders => Box::pin(read_slowly(entrance, tally)),
            _ => Box::pin(self.send_at_the_rate(entrance, client, tally)),
        };
        attack.await.unwrap_or_else(|fault| fault)
    }

    /// The attacks that are made of messages.
    async fn send_at_the_rate(self, entrance: &Entrance, client: usize, tally: &Tally) -> Attacked {
        let wire = entrance.connect().await.map_err(Fault::Ended)?;
        tally.connected();
        let Some(Plan { ahead, again, reading, bucket }) = self.plan(entrance, client) else {
            return Err(Fault::Wrong(format!("{} is not made of messages alone", self.name())));
        };
        let (stream, read) = wire.into_parts();
        let (from, to) = tokio::io::split(stream);
        let mut sender = Sender { to, bucket, tally };
        tokio::select! {
            sent = sender.send(&ahead, &again) => sent,
            read = reading.read(from, read) => read,
        }
    }

    /// What a client sends and reads; `None` where an attack is not made of messages alone.
    fn plan(self, entrance: &Entrance, client: usize) -> Option<Plan> {
        let limits = entrance.limits;
        let mut bucket = Bucket::new(limits.rate, limits.burst);
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
        let texts = |texts: Vec<String>| texts.iter().map(|text| entrance.frame(text)).collect::<Vec<_>>();
        let (ahead, again, reading) = match self {
            Self::FullEchoes => {
                // Of different lengths, so that an answer of another message, or of another client, is seen.
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
                // Some publish, the others only hold what has to be matched.
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
                // What comes before them fills the window, which a decoder may carry over each of them.
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
                bucket = Bucket::new(limits.control_rate, 2.0 * limits.control_rate);
                (vec![], vec![masked(PING, &[b'x'; 125])], Reading::All)
            }
            Self::WrongTokens => {
                bucket = Bucket::new(5.0, 50.0);
                let text = format!(r#"{{"type":"authenticate","data":{{"token":"{WRONG_TOKEN}"}}}}"#);
                (vec![], texts(vec![text]), Reading::All)
            }
            Self::Handshakes | Self::SlowHeads | Self::HalfOpen | Self::Reconnects | Self::SlowReaders => {
                return None;
            }
        };
        Some(Plan { ahead, again, reading, bucket })
    }
}

/// What a client of an attack does that is made of messages.
struct Plan {
    /// Frames that are sent once.
    ahead: Vec<Vec<u8>>,
    /// Frames that are sent again and again after that.
    again: Vec<Vec<u8>>,
    reading: Reading,
    bucket: Bucket,
}

/// Well formed, signed with a key that nobody has, and good for a long time.
const WRONG_TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJub2JvZHkiLCJleHAiOjk5OTk5OTk5OTl9.\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn subscribe(topic: &str) -> String {
    format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#)
}

/// What the messages of a client are filled with.
fn letter(client: usize) -> char {
    char::from(b'a' + u8::try_from(client % 26).unwrap_or_default())
}

/// Differs from all others, of this client and of others, only in its first levels.
fn deep_pattern(client: usize, n: usize) -> String {
    let number = client * 128 + n;
    let first = (0..16).map(|bit| if number >> bit & 1 == 0 { "*" } else { "a" });
    let levels: Vec<_> = first.chain(std::iter::repeat_n("*", 111)).chain(["x"]).collect();
    levels.join(".")
}

/// Of the greatest length, every other one a pattern.
fn long_name(client: usize, n: usize) -> String {
    let name = format!("{}.{client}.{n}.", if n.is_multiple_of(2) { "*" } else { "attack" });
    format!("{name}{}", "x".repeat(255 - name.len()))
}

/// Why an attacker's connection is over.
#[derive(Debug)]
enum Fault {
    /// It was refused or closed, which may be the limit's own answer.
    Ended(String),
    /// The server sent what it must not send.
    Wrong(String),
}

/// Nothing good can come of an attack: it goes on until it fails.
type Attacked = Result<Fault, Fault>;

/// A sender that keeps to its rate.
struct Sender<'a> {
    to: WriteHalf<Box<dyn Duplex>>,
    bucket: Bucket,
    tally: &'a Tally,
}

/// Bytes that an attacker writes at once.
const BATCH: usize = 256 * 1024;

impl Sender<'_> {
    /// Sends some messages once and others again and again.
    async fn send(&mut self, ahead: &[Vec<u8>], again: &[Vec<u8>]) -> Attacked {
        let message = |n: usize| match n.checked_sub(ahead.len()) {
            None => ahead.get(n),
            Some(n) => again.get(n.checked_rem(again.len())?),
        };
        let (mut next, mut batch) = (0, Vec::new());
        while message(next).is_some() {
            let mut allowed = self.bucket.wait().await;
            let first = next;
            batch.clear();
            while allowed > 0 && batch.len() < BATCH {
                let Some(message) = message(next) else { break };
                batch.extend_from_slice(message);
                allowed -= 1;
                next += 1;
            }
            let count = (next - first) as u64;
            self.bucket.take(count);
            let written = self.to.write_all(&batch).await;
            written.map_err(|error| Fault::Ended(format!("not written: {error}")))?;
            self.tally.sent(count);
        }
        // What is held is all that there is to do.
        std::future::pending().await
    }
}

/// Messages that may be sent now, as the server counts them; a little slower, so that clocks make no difference.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl Bucket {
    fn new(rate: f64, burst: f64) -> Self {
        Self { rate: rate * 0.97, burst, tokens: burst, last: Instant::now() }
    }

    /// Waits until some may be sent; how many.
    async fn wait(&mut self) -> u64 {
        loop {
            let now = Instant::now();
            let filled = (now - self.last).as_secs_f64() * self.rate;
            self.tokens = (self.tokens + filled).min(self.burst);
            self.last = now;
            // A few together, as a client does that has a timer.
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

/// What an attacker does with what comes.
enum Reading {
    /// It never reads.
    Never,
    /// It reads and forgets.
    All,
    /// It expects these, again and again in this order.
    Compare(Vec<String>),
}

impl Reading {
    async fn read(&self, mut from: ReadHalf<Box<dyn Duplex>>, mut read: Vec<u8>) -> Attacked {
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
                // The end is told in a frame at the end.
                read.drain(..read.len().saturating_sub(200));
            }
            let len = from.read(&mut buffer).await.map_err(|error| Fault::Ended(error.to_string()))?;
            if len == 0 {
                return Ok(Fault::Ended(last_words(&read)));
            }
            read.extend_from_slice(&buffer[..len]);
        }
    }
}

/// The readable end of what came last.
fn last_words(read: &[u8]) -> String {
    let tail = &read[read.len().saturating_sub(80)..];
    let text: String = String::from_utf8_lossy(tail).chars().filter(|c| c.is_ascii_graphic()).collect();
    format!("ended after {text:?}")
}

fn compare<'a>(frame: &WireFrame, expected: &mut impl Iterator<Item = &'a String>) -> Result<(), Fault> {
    match frame.first & !RSV1 {
        TEXT => {
            let got = frame.text();
            if got.starts_with(r#"{"type":"goodbye""#) {
                return Ok(());
            }
            let expected = expected.next().map(String::as_str).unwrap_or_default();
            // Who may not do this is told so for each message.
            if got == expected || got.starts_with(r#"{"type":"error""#) {
                return Ok(());
            }
            Err(Fault::Wrong(format!(
                "an attacker that sent {} bytes {:?} got {} bytes {:?}",
                expected.len(),
                ends(expected),
                got.len(),
                ends(&got)
            )))
        }
        CLOSE => Err(Fault::Ended(close_reason(frame))),
        _ => Ok(()),
    }
}

/// The code and the reason of a close frame.
pub(crate) fn close_reason(frame: &WireFrame) -> String {
    match frame.payload.split_first_chunk() {
        Some((code, reason)) => {
            format!("closed with {} {:?}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
        }
        None => "closed without a code".to_owned(),
    }
}

/// Where a long text begins and how it ends.
pub(crate) fn ends(text: &str) -> String {
    if text.len() <= 80 || !text.is_ascii() {
        return text.chars().take(80).collect();
    }
    format!("{}…{}", &text[..40], &text[text.len() - 30..])
}

async fn shake_hands(entrance: &Entrance, tally: &Tally) -> Attacked {
    loop {
        // A refusal is one's due; the next attempt comes at once all the same.
        match entrance.connect().await {
            Ok(_) => tally.connected(),
            Err(refusal) => tally.ended(first_line(&refusal)),
        }
        tally.sent(1);
        tokio::task::yield_now().await;
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

async fn send_head_in_crumbs(entrance: &Entrance, tally: &Tally) -> Attacked {
    let mut stream = entrance.open().await.map_err(|error| Fault::Ended(error.to_string()))?;
    tally.connected();
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(entrance.limits.handshake_bytes));
    let mut buffer = [0; 1024];
    for crumb in head.as_bytes()[..entrance.limits.handshake_bytes - 4].chunks(64) {
        stream.write_all(crumb).await.map_err(|error| Fault::Ended(error.to_string()))?;
        let pause = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut buffer)).await;
        if let Ok(Ok(0) | Err(_)) = pause {
            return Ok(Fault::Ended("the head took too long".to_owned()));
        }
    }
    until_closed(stream).await
}

async fn open_half(entrance: &Entrance, tally: &Tally) -> Attacked {
    let stream = TcpStream::connect(entrance.address).await;
    let mut stream = stream.map_err(|error| Fault::Ended(error.to_string()))?;
    tally.connected();
    let begun: &[u8] = match entrance.tls {
        // Most of a client's first record.
        Some(_) => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        None => b"GET / HTTP/1.1\r\nHost: ",
    };
    stream.write_all(begun).await.map_err(|error| Fault::Ended(error.to_string()))?;
    until_closed(Box::new(stream)).await
}

async fn until_closed(mut stream: Box<dyn Duplex>) -> Attacked {
    let mut all = Vec::new();
    let ended = tokio::time::timeout(WAIT, stream.read_to_end(&mut all)).await;
    Ok(Fault::Ended(match ended {
        Ok(_) => format!("answered {:?}", first_line(&String::from_utf8_lossy(&all))),
        Err(_) => format!("not ended in {WAIT:?}"),
    }))
}

async fn send_burst_and_leave(entrance: &Entrance, tally: &Tally) -> Attacked {
    let burst = entrance.frame(r#"{"type":"ping"}"#).repeat(entrance.limits.burst as usize - 1);
    let last = entrance.frame(r#"{"type":"echo","data":"that was all"}"#);
    loop {
        let wire = match entrance.connect().await {
            Ok(wire) => wire,
            Err(refusal) => {
                tally.ended(first_line(&refusal));
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        tally.connected();
        let (mut stream, mut read) = wire.into_parts();
        let written = stream.write_all(&[&burst[..], &last].concat()).await;
        written.map_err(|error| Fault::Ended(error.to_string()))?;
        tally.sent(entrance.limits.burst as u64);
        let mut buffer = vec![0; 16 * 1024];
        // The answer, or that it came too fast.
        while !read.windows(12).any(|window| window == b"that was all")
            && !read.windows(12).any(|window| window == b"rate_limited")
        {
            read.drain(..read.len().saturating_sub(16));
            let came = tokio::time::timeout(WAIT, stream.read(&mut buffer)).await;
            match came {
                Ok(Ok(len @ 1..)) => read.extend_from_slice(&buffer[..len]),
                Ok(_) => return Ok(Fault::Ended(last_words(&read))),
                Err(_) => return Ok(Fault::Ended(format!("no answer in {WAIT:?}"))),
            }
        }
    }
}

/// Bytes a second that a slow reader takes.
const SLOW: usize = 20_000;

async fn read_slowly(entrance: &Entrance, tally: &Tally) -> Attacked {
    let wire = entrance.connect().await.map_err(Fault::Ended)?;
    tally.connected();
    let (mut stream, _) = wire.into_parts();
    let data = "s".repeat(entrance.limits.message_bytes - 30);
    let echo = entrance.frame(&format!(r#"{{"type":"echo","data":"{data}"}}"#));
    stream.write_all(&echo.repeat(4)).await.map_err(|error| Fault::Ended(error.to_string()))?;
    tally.sent(4);
    let mut buffer = vec![0; SLOW / 10];
    let mut tail = Vec::new();
    loop {
        let len = stream.read(&mut buffer).await.map_err(|error| Fault::Ended(error.to_string()))?;
        if len == 0 {
            return Ok(Fault::Ended(last_words(&tail)));
        }
        tail.extend_from_slice(&buffer[..len]);
        tail.drain(..tail.len().saturating_sub(100));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What attackers did and what became of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    connected: AtomicU64,
    sent: AtomicU64,
    ended: AtomicU64,
    /// How the last one ended.
    last_end: std::sync::Mutex<String>,
}

impl Tally {
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

    /// Messages, or handshakes, that attackers have sent.
    pub(crate) fn messages(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Connections that attackers have had.
    pub(crate) fn connections(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }
}

impl std::fmt::Display for Tally {
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

/// Attackers at work.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    tasks: JoinSet<String>,
    pub(crate) tally: Arc<Tally>,
}

impl Crowd {
    /// Lets so many more clients attack, who come in by each of the entrances in turn.
    pub(crate) fn gather(&mut self, attack: Attack, entrances: &[Entrance], clients: usize) {
        for (client, entrance) in entrances.iter().cycle().take(clients).enumerate() {
            let (entrance, tally) = (entrance.clone(), Arc::clone(&self.tally));
            self.tasks.spawn(async move { attack.go_on(&entrance, client, &tally).await });
        }
    }

    /// Ends all of it.
    ///
    /// # Errors
    ///
    /// What an attacker got that was not its due.
    pub(crate) async fn disperse(mut self) -> Result<Arc<Tally>, String> {
        self.tasks.abort_all();
        while let Some(done) = self.tasks.join_next().await {
            match done {
                Ok(wrong) => return Err(wrong),
                // Whoever waited in vain for something says so by a panic.
                Err(error) if error.is_panic() => return Err(format!("an attacker failed: {error}")),
                Err(_) => {}
            }
        }
        Ok(self.tally)
    }
}
