//! Events that wait until the application takes them.

use std::collections::VecDeque;
use std::mem;

use crate::{Event, Gap, Message, Position, SubscriptionState};

/// Number of waiting states from which on a state replaces the one before it.
const MAX_STATES: usize = 16;

/// Bytes that a gap counts for.
const GAP_BYTES: usize = 64;

/// Events of one handle, bounded in bytes of text.
#[derive(Debug)]
pub(super) struct EventQueue {
    events: VecDeque<Event>,
    bytes: usize,
    states: usize,
    max_bytes: usize,
    /// Position of the event that the application took last. It is the application's own when the
    /// application takes the next one.
    taken: Option<Position>,
    /// Position up to which the application has processed events.
    handed: Option<Position>,
}

impl EventQueue {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { events: VecDeque::new(), bytes: 0, states: 0, max_bytes, taken: None, handed: None }
    }

    /// Appends a message. Returns `false`, and drops it, if the queue is full. An empty queue takes
    /// any message.
    pub(super) fn push_message(&mut self, message: Message) -> bool {
        if self.bytes > 0 && self.bytes + message.bytes > self.max_bytes {
            return false;
        }
        self.push(Event::Message(message));
        true
    }

    /// Appends a gap, or extends the last one since the last message.
    pub(super) fn push_gap(&mut self, gap: Gap) {
        let since_message =
            self.events.iter_mut().rev().take_while(|event| !matches!(event, Event::Message(_)));
        for event in since_message {
            if let Event::Gap(last) = event
                && last.reason == gap.reason
                && last.topic == gap.topic
            {
                let adjacent = last.to.is_some() && last.to.map(|to| to + 1) == gap.from;
                if adjacent || (last.from, last.to) == (gap.from, gap.to) {
                    last.to = gap.to;
                    last.position = gap.position;
                    return;
                }
            }
        }
        self.push(Event::Gap(gap));
    }

    /// Appends a state. If very many states wait, it replaces the last event if that is a state.
    pub(super) fn push_state(&mut self, state: SubscriptionState) {
        if self.states >= MAX_STATES
            && let Some(Event::State(last)) = self.events.back_mut()
        {
            *last = state;
            return;
        }
        self.push(Event::State(state));
    }

    fn push(&mut self, event: Event) {
        self.bytes += bytes(&event);
        self.states += usize::from(matches!(event, Event::State(_)));
        self.events.push_back(event);
    }

    /// Takes the first event. The one that was taken before it counts as processed.
    pub(super) fn pop(&mut self) -> Option<Event> {
        self.commit();
        let event = self.events.pop_front()?;
        self.bytes -= bytes(&event);
        match &event {
            Event::Message(message) => self.taken.clone_from(&message.position),
            Event::Gap(gap) => self.taken.clone_from(&gap.position),
            Event::State(_) => self.states -= 1,
        }
        Some(event)
    }

    /// Counts the event that was taken last as processed. Returns `true` if that moved the
    /// position.
    pub(super) fn commit(&mut self) -> bool {
        match mem::take(&mut self.taken) {
            Some(position) => {
                self.handed = Some(position);
                true
            }
            None => false,
        }
    }

    pub(super) fn handed(&self) -> Option<&Position> {
        self.handed.as_ref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn is_half_free(&self) -> bool {
        self.bytes <= self.max_bytes / 2
    }

    /// Returns the bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops what waits.
    pub(super) fn clear(&mut self) {
        (self.bytes, self.states) = (0, 0);
        self.events.clear();
    }
}

fn bytes(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.bytes,
        Event::Gap(_) => GAP_BYTES,
        // States are bounded in number.
        Event::State(_) => 0,
    }
}
