//! Reads of many topics with one pass over their stream.
//!
//! The server finds the messages of a topic by looking at all messages of the stream after the
//! start. A pass that brings all of them costs more for each message, but it serves any number of
//! topics.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use deeperhub_protocol::Topic;
use tokio::time::timeout;
use tracing::debug;

use super::api::ApiError;
use super::consumer::Delivered;
use super::ensure::Store;
use super::known::MessageTime;
use super::range::{self, Brought, Plan};
use super::reader::{MAX_READ_BYTES, Outcome};
use super::source::Source;
use super::time::format_ns;
use crate::store::{MAX_READS, StreamRead, StreamRule};

/// Messages that the server looks at in the time in which a pass takes one: 0.1 and 5 µs.
const LOOKS_PER_MESSAGE: u64 = 50;

/// Maximum number of messages that a pass may bring. The server sends so many in two seconds, so
/// that none of them reaches its age meanwhile.
const MAX_MESSAGES: u64 = 1 << 18;

/// Time without a message after which a pass is given up.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// Maximum size of all messages that a pass keeps for its reads.
const MAX_KEPT_BYTES: usize = MAX_READS * MAX_READ_BYTES;

/// A read that a pass serves.
struct Swept<'r> {
    /// Its number.
    index: usize,
    read: &'r StreamRead,
    plan: Plan,
    brought: Brought,
    bytes: usize,
    /// Time of the last message that was kept.
    time_ns: Option<u64>,
}

impl Swept<'_> {
    /// Takes a message, and returns the number of bytes that are kept of it.
    fn take(&mut self, delivered: &Delivered, has_room: bool) -> usize {
        let Delivered { sequence, time_ns, ref message } = *delivered;
        if sequence < self.plan.start {
            return 0;
        }
        let Brought { messages, count, pending, .. } = &mut self.brought;
        *count += 1;
        let is_full = u32::try_from(messages.len()).is_ok_and(|len| len >= self.read.messages)
            || self.bytes >= MAX_READ_BYTES;
        // Kept messages have no holes.
        if is_full || !has_room || *pending > 0 {
            *pending += 1;
            return 0;
        }
        let bytes = message.payload.len();
        self.bytes += bytes;
        // The buffer of the answer also has messages that nobody wants.
        messages.push((sequence, Bytes::copy_from_slice(&message.payload)));
        self.time_ns = Some(time_ns);
        bytes
    }
}

/// Returns `true` if a pass over a stream costs less than the reads that start at these sequences.
fn is_worthwhile(newest: u64, starts: &[u64]) -> bool {
    let after = |start: u64| (newest + 1).saturating_sub(start);
    let passed = starts.iter().map(|start| after(*start)).max().unwrap_or(0);
    let looks: u64 = starts.iter().map(|start| after(*start)).sum();
    passed <= MAX_MESSAGES && passed * LOOKS_PER_MESSAGE < looks
}

impl Store {
    /// Makes reads of streams of which many topics are read. Returns `None` for the others.
    pub(super) async fn sweep(
        &mut self,
        rules: &[StreamRule],
        reads: &[&StreamRead],
    ) -> Result<Vec<Option<Outcome>>, ApiError> {
        let mut outcomes: Vec<Option<Outcome>> = reads.iter().map(|_| None).collect();
        if reads.len() <= MAX_READS {
            return Ok(outcomes);
        }
        let (mut indices, mut sources) = self.sources(rules, reads.iter().map(|read| &read.topic)).await?;
        self.keep_worthwhile(reads, &mut indices, &sources);
        if indices.iter().all(Option::is_none) {
            return Ok(outcomes);
        }
        self.look(reads, &indices, &mut sources).await?;
        for (number, source) in sources.iter().enumerate() {
            let Ok(source) = source else { continue };
            let of_source = reads.iter().zip(&indices).enumerate();
            let of_source = of_source.filter(|(_, (_, source))| **source == Some(number));
            let mut swept: Vec<_> = of_source
                .map(|(index, (read, _))| Swept {
                    index,
                    read,
                    plan: self.plan(read, source),
                    brought: Brought::default(),
                    bytes: 0,
                    time_ns: None,
                })
                .collect();
            if swept.is_empty() || !self.pass(source, &mut swept).await? {
                continue;
            }
            let plans: Vec<_> =
                swept.iter().map(|swept| (swept.index, swept.read, source, swept.plan)).collect();
            let newest = self.newest_of_leader(&plans).await?;
            for (swept, newest) in swept.into_iter().zip(newest) {
                let Swept { index, read, plan, mut brought, time_ns, .. } = swept;
                brought.time = time_ns.map(|time_ns| MessageTime::new(&format_ns(time_ns)));
                let is_served = brought.pending == 0 || !brought.messages.is_empty();
                let answer = range::range(read, plan, source.look, &brought);
                let is_late = brought.pending == 0 && newest > answer.last.max(plan.start.saturating_sub(1));
                if is_served
                    && !is_late
                    && let Some(outcome) = outcomes.get_mut(index)
                {
                    *outcome = Some(Ok(self.note(source, &read.topic, &brought, answer)));
                }
            }
        }
        Ok(outcomes)
    }

    /// Removes the sources of reads that a pass does not serve, or not at less cost.
    fn keep_worthwhile(
        &self,
        reads: &[&StreamRead],
        indices: &mut [Option<usize>],
        sources: &[Result<Source, ApiError>],
    ) {
        let mut starts = vec![Vec::new(); sources.len()];
        let mut topics: HashSet<&Topic<'_>> = HashSet::with_capacity(reads.len());
        for (read, index) in reads.iter().zip(indices.iter_mut()) {
            let found =
                index.and_then(|number| Some((sources.get(number)?.as_ref().ok()?, starts.get_mut(number)?)));
            let Some((source, starts)) = found else { continue };
            let plan = self.plan(read, source);
            // A pass finds no last messages, and has one read for each topic.
            let is_part = plan.after.is_none() && u64::from(read.messages) < source.look.max_messages;
            if is_part || read.messages == 0 || !topics.insert(&read.topic) {
                *index = None;
            } else {
                starts.push(plan.start);
            }
        }
        let is_worthwhile = |number: usize| match (sources.get(number), starts.get(number)) {
            (Some(Ok(source)), Some(starts)) => is_worthwhile(source.look.newest, starts),
            _ => false,
        };
        indices.iter_mut().for_each(|index| *index = index.filter(|number| is_worthwhile(*number)));
    }

    /// Brings all messages of a stream from the first start on. Returns `false` if there are too
    /// many.
    ///
    /// The pass must reach the end that the stream has when it has passed the end of the look. If
    /// messages are appended meanwhile, each message that the limit of its topic removes in front of
    /// the pass then has another one behind it, so that the count tells whether the limit was reached.
    /// The server's count of messages that are left does not tell the end: it learns of a removal
    /// before it learns of the message that caused it.
    async fn pass(&mut self, source: &Source, swept: &mut [Swept<'_>]) -> Result<bool, ApiError> {
        let by_topic: HashMap<String, usize, ahash::RandomState> = swept
            .iter()
            .enumerate()
            .map(|(number, swept)| (swept.read.topic.as_str().to_owned(), number))
            .collect();
        let start = swept.iter().map(|swept| swept.plan.start).min().unwrap_or(1);
        let mut consumer = match self.consume(source, start).await {
            Err(error) if error.is_of_connection() => return Err(error),
            Err(error) => {
                debug!(stream = source.stream, %error, "No pass over a stream");
                return Ok(false);
            }
            Ok(consumer) => consumer,
        };
        let (mut passed, mut reached, mut kept) = (0, 0, 0);
        let mut end = None;
        loop {
            // The message at the end of the look may have been removed.
            if end.is_none() && (reached >= source.look.newest || consumer.is_empty()) {
                let Some(info) = self.info(&source.stream).await? else { return Ok(false) };
                end = Some(if info.newest == source.look.newest { reached } else { info.newest });
            }
            if end.is_some_and(|end| reached >= end) {
                let (stream, topics) = (&source.stream, swept.len());
                debug!(stream, topics, messages = passed, "Passed over a stream");
                return Ok(true);
            }
            if passed > 2 * MAX_MESSAGES {
                return Ok(false);
            }
            let delivered = match consumer.take()? {
                Some(delivered) => delivered,
                None => match timeout(MAX_SILENCE, consumer.next()).await {
                    Ok(delivered) => delivered?,
                    // The message at the end may have been removed, too.
                    Err(_) => return Ok(false),
                },
            };
            (passed, reached) = (passed + 1, delivered.sequence);
            let topic = source.names.topic(delivered.message.subject());
            if let Some((topic, false)) = topic
                && let Some(swept) = by_topic.get(topic).and_then(|number| swept.get_mut(*number))
            {
                kept += swept.take(&delivered, kept < MAX_KEPT_BYTES);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_worth_its_cost_for_many_topics_of_a_short_stream() {
        let same = |count: usize, start: u64| vec![start; count];
        assert!(is_worthwhile(50_000, &same(100, 1)));
        assert!(!is_worthwhile(50_000, &same(50, 1)));
        // One topic from far back would bring much for the others.
        let mut starts = same(200, 49_000);
        assert!(is_worthwhile(50_000, &starts));
        starts.push(1);
        assert!(!is_worthwhile(50_000, &starts));
        assert!(!is_worthwhile(MAX_MESSAGES + 1, &same(1000, 1)));
        assert!(!is_worthwhile(0, &same(1000, 1)));
    }
}
