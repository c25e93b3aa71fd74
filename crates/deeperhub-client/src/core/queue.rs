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

    /// Appends a gap, or extends the last one if no message stands between them. If the queue is
    /// full of gaps, they become one of unknown length.
    pub(super) fn push_gap(&mut self, gap: Gap) {
        let is_full = self.bytes + GAP_BYTES > self.max_bytes;
        let since_message =
            self.events.iter_mut().rev().take_while(|event| !matches!(event, Event::Message(_)));
        let last = since_message.into_iter().find_map(|event| match event {
            Event::Gap(gap) => Some(gap),
            _ => None,
        });
        if let Some(last) = last {
            let is_same = last.reason == gap.reason && last.topic == gap.topic;
            let is_adjacent = last.to.is_some() && last.to.map(|to| to + 1) == gap.from;
            if is_same && (is_adjacent || (last.from, last.to) == (gap.from, gap.to)) {
                last.to = gap.to;
                last.position = gap.position;
                return;
            }
            if is_full {
                *last = Gap { from: None, to: None, ..gap };
                return;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64, reason: &str) -> Gap {
        Gap { topic: "t".into(), from: Some(from), to: Some(to), reason: reason.into(), position: None }
    }

    #[test]
    fn adjacent_gaps_are_one() {
        let mut queue = EventQueue::new(1000);
        queue.push_gap(gap(3, 5, "trimmed"));
        queue.push_state(SubscriptionState::Recovering);
        queue.push_gap(gap(6, 9, "trimmed"));
        queue.push_gap(gap(10, 11, "dropped"));
        let gaps: Vec<Gap> = std::iter::from_fn(|| queue.pop())
            .filter_map(|event| match event {
                Event::Gap(gap) => Some(gap),
                _ => None,
            })
            .collect();
        assert_eq!(gaps, [gap(3, 9, "trimmed"), gap(10, 11, "dropped")]);
    }

    #[test]
    fn gaps_and_states_are_bounded() {
        let mut queue = EventQueue::new(1000);
        for n in 0..1000 {
            queue.push_gap(gap(3 * n, 3 * n + 1, "trimmed"));
            queue.push_state(SubscriptionState::Recovering);
        }
        assert!(queue.bytes() <= 1000);
        let events = std::iter::from_fn(|| queue.pop()).count();
        assert!(events < 50, "{events}");
    }
}
