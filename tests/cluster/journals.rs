//! Publishers and subscribers of a topic with history, and the comparison of what they noted.
//!
//! Half of them use the Rust client, which repeats unanswered publishes and recovers by itself. The
//! others speak the protocol themselves, and break their connections often.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::{publishers, readers};
use crate::support::{Server, http};

/// Keeps all that a trial publishes, so that only the store can lose messages.
pub(super) const RULE: &[&str] = &["--topic", "kept.>: history=50000 history_bytes=64MiB ttl=1h"];

/// Longest wait of a trial for messages, and for its publishers and readers to end.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(90);

/// Publisher in the content that ends the readers.
const END: &str = "end";

/// Epoch and offset of a message.
pub(super) type Position = (String, u64);

/// A published text, which names its publisher and number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    pub(super) publisher: String,
    pub(super) number: u64,
    hash: u64,
}

impl Content {
    /// Returns the text of a publisher's message, whose length depends on its number.
    pub(super) fn text(publisher: &str, number: u64) -> String {
        format!("{publisher} {number} {}", "x".repeat((number * 37 % 300) as usize))
    }

    /// Returns `true` if the publisher is the Rust client, which publishes with `once`.
    fn has_once(&self) -> bool {
        self.publisher.starts_with("client")
    }

    /// Parses a received text. Returns `None` for the end of the trial.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (publisher, number) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        (publisher != END).then_some(Self { publisher, number, hash: hasher.finish() })
    }
}

/// State that all tasks of a trial share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Publishes that were acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// Publishes that were refused.
    pub(super) refused: AtomicU64,
    /// Readers that have subscribed.
    pub(super) reading: AtomicU64,
    /// `true` when the publishers are to end.
    pub(super) is_over: AtomicBool,
}

/// Messages of a publisher, by the answers to it.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) acknowledged: BTreeMap<Content, Position>,
    /// The node said that nothing was published.
    pub(super) refused: BTreeSet<Content>,
    /// The connection ended before the answer came.
    pub(super) unanswered: BTreeSet<Content>,
}

/// Messages that must not be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    All,
    /// Messages that were published with `once`. A store that has lost its list of messages stores
    /// others again when a node sends them again.
    WithOnce,
}

/// A part of a stream without holes.
#[derive(Debug, Default)]
struct Segment {
    epoch: String,
    /// Offset before the first message; `None` if the reader was not told.
    start: Option<u64>,
    messages: BTreeMap<u64, Content>,
    newest: u64,
}

/// Messages that a reader received: segments, and between them the holes that it was told of.
#[derive(Debug, Default)]
pub(super) struct Journal {
    name: String,
    segments: Vec<Segment>,
    /// The reasons of the holes.
    pub(super) holes: Vec<String>,
}

impl Journal {
    pub(super) fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// Notes that the reader goes on after a position. Except for the first one, this is behind a hole
    /// with a reason.
    pub(super) fn begin_segment(&mut self, position: Option<Position>, reason: Option<&str>) {
        self.holes.extend(reason.map(str::to_owned));
        let (epoch, offset) = position.map_or((String::new(), None), |(epoch, offset)| (epoch, Some(offset)));
        let newest = offset.unwrap_or_default();
        self.segments.push(Segment { epoch, start: offset, newest, ..Segment::default() });
    }

    /// Returns the position of the reader.
    pub(super) fn position(&self) -> Option<Position> {
        let last = self.segments.last()?;
        (!last.epoch.is_empty()).then(|| (last.epoch.clone(), last.newest))
    }

    /// Notes a message, which must follow the one before.
    pub(super) fn message(&mut self, (epoch, offset): Position, content: Content) {
        let Self { name, segments, holes } = self;
        let last = segments.last_mut().expect("a reader has subscribed");
        if last.epoch.is_empty() {
            (last.epoch, last.start) = (epoch.clone(), Some(offset - 1));
            last.newest = offset - 1;
        }
        assert_eq!(
            (&epoch, offset),
            (&last.epoch, last.newest + 1),
            "{name} got {content:?} after {:?} and holes {holes:?}",
            last.messages.last_key_value()
        );
        last.newest = offset;
        last.messages.insert(offset, content);
    }

    /// Checks that no message comes twice in an epoch, and that publishers keep their order.
    fn check(&self, checked: Checked) {
        let mut positions = BTreeMap::new();
        for segment in &self.segments {
            let mut numbers: BTreeMap<&str, u64> = BTreeMap::new();
            let contents = segment.messages.iter();
            for (offset, content) in
                contents.filter(|(_, content)| checked == Checked::All || content.has_once())
            {
                let before = positions.insert((&segment.epoch, content), offset);
                assert_eq!(before, None, "{} got {content:?} twice, at {offset} too", self.name);
                let last = numbers.insert(&content.publisher, content.number);
                assert!(last < Some(content.number), "{}: {content:?} after {last:?}", self.name);
            }
        }
    }

    fn messages(&self) -> impl Iterator<Item = (Position, &Content)> {
        self.segments.iter().flat_map(|segment| {
            segment.messages.iter().map(|(offset, content)| ((segment.epoch.clone(), *offset), content))
        })
    }

    /// Returns `true` if the reader has a message, or was told that it does not come.
    fn accounts_for(&self, (epoch, offset): &Position) -> bool {
        let of_epoch = || self.segments.iter().filter(|segment| segment.epoch == *epoch);
        if of_epoch().any(|segment| segment.messages.contains_key(offset)) {
            return true;
        }
        let is_inside = |segment: &Segment| {
            segment.start.is_some_and(|start| start < *offset) && *offset <= segment.newest
        };
        // After the last segment there is no hole.
        let is_at_the_end =
            self.segments.last().is_some_and(|last| last.epoch == *epoch && *offset > last.newest);
        !of_epoch().any(is_inside) && !is_at_the_end
    }
}

/// Publishers and readers of one topic.
pub(super) struct Trial {
    topic: String,
    pub(super) shared: Arc<Shared>,
    publishers: Vec<JoinHandle<Sent>>,
    readers: Vec<JoinHandle<Journal>>,
}

impl Trial {
    /// Starts two readers at each URL, waits until they have subscribed, and starts two publishers at
    /// each URL for publishers.
    pub(super) async fn start(topic: &str, publisher_urls: &[String], reader_urls: &[String]) -> Self {
        let shared = Arc::<Shared>::default();
        let mut trial = Self {
            topic: topic.to_owned(),
            shared: Arc::clone(&shared),
            publishers: Vec::new(),
            readers: Vec::new(),
        };
        for (url, number) in reader_urls.iter().zip(0..) {
            let reader =
                readers::Reader { shared: Arc::clone(&shared), url: url.clone(), topic: topic.to_owned() };
            trial.readers.push(tokio::spawn(reader.clone().read_with_client(format!("client {number}"))));
            trial.readers.push(tokio::spawn(reader.read(format!("raw reader {number}"), number)));
        }
        let expected = trial.readers.len() as u64;
        trial.wait_for("the readers", || shared.reading.load(Ordering::SeqCst) == expected).await;
        for (url, number) in publisher_urls.iter().zip(0..) {
            let publisher = publishers::Publisher {
                shared: Arc::clone(&shared),
                url: url.clone(),
                topic: topic.to_owned(),
            };
            let task = publisher.clone().publish_with_client(format!("client{number}"));
            trial.publishers.push(tokio::spawn(task));
            trial.publishers.push(tokio::spawn(publisher.publish(format!("raw{number}"))));
        }
        trial.run_for(50).await;
        trial
    }

    /// Starts two readers and two publishers at each node.
    pub(super) async fn of(topic: &str, nodes: &[Server]) -> Self {
        let urls: Vec<_> = nodes.iter().map(|node| node.url("/")).collect();
        Self::start(topic, &urls, &urls).await
    }

    /// Waits for a condition. Fails at once if a task has failed.
    async fn wait_for(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + TRIAL_TIMEOUT;
        while !holds() {
            let is_over = self.shared.is_over.load(Ordering::SeqCst);
            let has_failed = self.readers.iter().any(JoinHandle::is_finished)
                || !is_over && self.publishers.iter().any(JoinHandle::is_finished);
            assert!(!has_failed, "a task of {} ended before {what}", self.topic);
            assert!(tokio::time::Instant::now() < deadline, "timed out waiting for {what} of {}", self.topic);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until further messages have been acknowledged.
    pub(super) async fn run_for(&self, messages: u64) {
        let acknowledged = || self.shared.acknowledged.load(Ordering::SeqCst);
        let enough = acknowledged() + messages;
        self.wait_for("publishes", || acknowledged() >= enough).await;
    }

    /// Waits until a further publish is refused.
    pub(super) async fn run_until_refused(&self) {
        let refused = || self.shared.refused.load(Ordering::SeqCst);
        let before = refused();
        self.wait_for("a refusal", || refused() > before).await;
    }

    /// Ends the publishers and then the readers, which have all messages by then. Also compares them
    /// with the history that a node reads.
    pub(super) async fn finish(self, node: &Server) -> TrialRecord {
        let Self { topic, shared, publishers, readers } = self;
        shared.is_over.store(true, Ordering::SeqCst);
        let mut sent = Vec::new();
        for publisher in publishers {
            let finished =
                tokio::time::timeout(TRIAL_TIMEOUT, publisher).await.expect("publishers end in time");
            sent.push(finished.expect("no publisher fails"));
        }
        let end = async {
            loop {
                http(node.api(), &format!("POST /v1/topics/{topic}/messages"), &[], "\"end 0\"").await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let all = async {
            let mut journals = Vec::new();
            for reader in readers {
                journals.push(reader.await.expect("no reader fails"));
            }
            journals
        };
        let journals = tokio::time::timeout(TRIAL_TIMEOUT, async {
            tokio::select! {
                journals = all => journals,
                () = end => unreachable!("it ends with the readers"),
            }
        });
        let journals = journals.await.expect("readers end in time");
        let request = format!("GET /v1/topics/{topic}/messages?from=-1000&limit=1000");
        let page = http(node.api(), &request, &[], "").await.json();
        let mut stored = Vec::new();
        for message in page["messages"].as_array().unwrap_or_else(|| panic!("{page}")) {
            let position = readers::position(message).unwrap_or_else(|| panic!("{message}"));
            if let Some(content) = Content::parse(message["message"].as_str().unwrap_or_default()) {
                stored.push((position, content));
            }
        }
        TrialRecord { sent, journals, stored }
    }
}

/// All that the publishers and readers of a trial have noted.
pub(super) struct TrialRecord {
    pub(super) sent: Vec<Sent>,
    pub(super) journals: Vec<Journal>,
    /// The newest messages, as a node reads them.
    pub(super) stored: Vec<(Position, Content)>,
}

impl TrialRecord {
    /// Checks that no position names two messages, that nothing is repeated, that nothing refused was
    /// published, and that each reader has each acknowledged message or was told of the hole.
    pub(super) fn check(&self) {
        self.check_journals(Checked::All);
        let mut positions: BTreeMap<Position, &Content> = BTreeMap::new();
        let of_journals = self.journals.iter().flat_map(Journal::messages);
        let of_publishers = self
            .sent
            .iter()
            .flat_map(|sent| sent.acknowledged.iter().map(|(content, position)| (position.clone(), content)));
        let of_store = self.stored.iter().map(|(position, content)| (position.clone(), content));
        for (position, content) in of_journals.chain(of_publishers).chain(of_store) {
            let other = *positions.entry(position.clone()).or_insert(content);
            assert_eq!(other, content, "{position:?} names two messages");
        }
    }

    /// Checks like [`Self::check`], but for positions of two messages: a store that has lost messages
    /// can give their positions again before anybody notices.
    pub(super) fn check_journals(&self, checked: Checked) {
        let refused: BTreeSet<_> = self.sent.iter().flat_map(|sent| &sent.refused).collect();
        for journal in &self.journals {
            journal.check(checked);
            for (position, content) in journal.messages() {
                assert!(!refused.contains(content), "{content:?} at {position:?} was refused");
            }
            for (content, position) in self.sent.iter().flat_map(|sent| &sent.acknowledged) {
                let accounts = journal.accounts_for(position);
                assert!(accounts, "{} lacks {content:?} of {position:?}: {:?}", journal.name, journal.holes);
            }
        }
    }

    /// Checks like [`Self::check`], and that each reader has received all acknowledged messages.
    pub(super) fn check_lossless(&self) {
        self.check();
        for journal in &self.journals {
            assert_eq!(journal.holes, [""; 0], "{}", journal.name);
            let received: BTreeSet<_> = journal.messages().map(|(_, content)| content).collect();
            for content in self.sent.iter().flat_map(|sent| sent.acknowledged.keys()) {
                assert!(received.contains(content), "{} lacks {content:?}", journal.name);
            }
        }
    }

    /// Returns the number of publishes that were acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.sent.iter().map(|sent| sent.acknowledged.len()).sum()
    }

    /// Returns the number of publishes that were refused.
    pub(super) fn refused(&self) -> usize {
        self.sent.iter().map(|sent| sent.refused.len()).sum()
    }
}
