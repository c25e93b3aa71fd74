//! An application that checks what one handle tells it.

use std::collections::BTreeMap;

use deeperhub_client::{Event, Gap, Message};

use crate::server::{Server, Stored};

/// The events of a handle so far.
#[derive(Debug)]
pub(crate) struct Application {
    topic: String,
    /// Epoch and offset up to which everything was seen or told. `None` at the start, and after a
    /// gap of unknown length.
    at: Option<(String, u64)>,
    seen: BTreeMap<(String, u64), u32>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) is_ended: bool,
    /// The handle may get earlier messages, among which own ones may be: the application asked for
    /// kept messages, or other handles recover together with this one.
    has_history: bool,
}

impl Application {
    pub(crate) fn new(topic: &str, has_history: bool) -> Self {
        Self {
            topic: topic.to_owned(),
            has_history,
            at: None,
            seen: BTreeMap::new(),
            gaps: Vec::new(),
            is_ended: false,
        }
    }

    pub(crate) fn messages(&self) -> usize {
        self.seen.len()
    }

    /// Checks an event against the journal of the server.
    pub(crate) fn on_event(&mut self, event: &Event, server: &Server) {
        match event {
            Event::Message(message) => self.on_message(message, server),
            Event::Gap(gap) => self.on_gap(gap, server),
            _ => {}
        }
    }

    fn journal<'a>(&self, server: &'a Server, epoch: &str, offset: u64) -> Option<&'a Stored> {
        server.streams.get(&self.topic)?.journal.get(&(epoch.to_owned(), offset))
    }

    fn on_message(&mut self, message: &Message, server: &Server) {
        let position = message.position.as_ref().expect("the topic has history");
        let (epoch, offset) = (position.epoch.to_string(), position.offset);
        let stored = self.journal(server, &epoch, offset).expect("the server stored it");
        assert_eq!(
            message.message::<u64>().expect("it is a number"),
            stored.body,
            "message {offset} has another body"
        );
        assert!(
            server.forgot_once || self.has_history || !self.is_own(stored),
            "the own message {offset} was handed over"
        );
        let count = self.seen.entry((epoch.clone(), offset)).or_default();
        *count += 1;
        assert_eq!(*count, 1, "message {offset} was handed over twice");
        if let Some((at_epoch, at)) = &self.at {
            assert_eq!(*at_epoch, epoch, "the epoch changed without a gap before {offset}");
            assert!(*at < offset, "message {offset} came after {at}");
            self.check_own_between(server, *at + 1..offset);
        }
        self.at = Some((epoch, offset));
    }

    fn is_own(&self, stored: &Stored) -> bool {
        Server::is_excluded(stored)
    }

    /// Offsets that were neither seen nor told must be own messages.
    fn check_own_between(&self, server: &Server, mut offsets: std::ops::Range<u64>) {
        let epoch = &self.at.as_ref().expect("there is a position").0;
        let untold =
            offsets.find(|&offset| !self.journal(server, epoch, offset).is_some_and(|it| self.is_own(it)));
        assert_eq!(untold, None, "an offset was skipped and not told, gaps: {:?}", self.gaps);
    }

    fn on_gap(&mut self, gap: &Gap, server: &Server) {
        self.gaps.push(gap.clone());
        let position = gap.position.as_ref().expect("the topic has history");
        if let (Some(from), Some(to)) = (gap.from, gap.to) {
            assert!(from <= to, "a gap ends before it starts");
            if let Some((epoch, at)) = &self.at {
                assert_eq!(**epoch, *position.epoch, "a gap with offsets is of another epoch");
                assert!(*at < from, "a gap tells {from}, but {at} was seen");
                self.check_own_between(server, *at + 1..from);
            }
            assert_eq!(to, position.offset);
        }
        self.at = Some((position.epoch.to_string(), position.offset));
    }

    /// Checks at the end that nothing newer is missing.
    pub(crate) fn finish(&self, server: &Server) {
        let Some(stream) = server.streams.get(&self.topic) else { return };
        if let Some((epoch, at)) = &self.at {
            assert_eq!(*epoch, stream.epoch(), "the application stayed in another epoch");
            self.check_own_between(server, *at + 1..stream.newest + 1);
        }
    }
}
