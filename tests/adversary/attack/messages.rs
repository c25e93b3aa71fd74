//! Attacks that consist of messages: what each client sends, and how it reads.

use super::pace::{Sender, TokenBucket};
use super::reading::Reading;
use super::{Attack, AttackCounters, AttackEnd, AttackResult, ConnectOptions};
use crate::wire::{RSV1, TEXT, deflated, masked};

const BINARY: u8 = 0x82;
const PING: u8 = 0x89;

/// Empty final blocks in a message; the server accepts 256.
const FINAL_BLOCKS: usize = 250;

impl Attack {
    /// Runs an attack that consists of messages.
    pub(super) async fn send_at_rate(
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
