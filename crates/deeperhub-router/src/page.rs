//! Pages of the topics and patterns that have subscribers. The routing table is read in parts: each
//! stripe is a part, and the patterns are the last part.

use crate::kept::Keep;
use crate::router::{Router, STRIPES};
use crate::stripe::RouteEntry;
use crate::sync::read;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Maximum patterns that are visited under one lock. Bounds the time for which publishes wait.
const MAX_PATTERNS_PER_LOCK: usize = if cfg!(test) { 64 } else { 1024 };

/// A page of the list of topics and patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPage {
    /// Names with their numbers of subscribers, in unspecified order.
    pub topics: Vec<(String, u64)>,
    /// Cursor of the next page. `None` on the last page.
    pub next_cursor: Option<String>,
}

/// Error for a malformed cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor: use the `next_cursor` of the page before")]
pub struct InvalidCursor;

/// Start of a page: a part of the table, and the name in it after which the page starts.
#[derive(Debug, PartialEq, Eq)]
struct PageCursor {
    part: usize,
    name: String,
}

impl PageCursor {
    /// Returns the cursor in hexadecimal, which needs no escaping in a URL.
    fn to_text(&self) -> String {
        use std::fmt::Write;
        let mut text = format!("{:02x}", self.part);
        for byte in self.name.bytes() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn parse(text: &str) -> Result<Self, InvalidCursor> {
        let bytes = text
            .as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [a @ (b'0'..=b'9' | b'a'..=b'f'), b @ (b'0'..=b'9' | b'a'..=b'f')] => {
                    let digit = |byte: u8| if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 };
                    Ok(digit(*a) << 4 | digit(*b))
                }
                _ => Err(InvalidCursor),
            })
            .collect::<Result<Vec<u8>, _>>()?;
        let (&part, name) = bytes.split_first().ok_or(InvalidCursor)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| InvalidCursor)?;
        if usize::from(part) > STRIPES {
            return Err(InvalidCursor);
        }
        Ok(Self { part: part.into(), name })
    }
}

impl<M: Send + 'static, T: Keep> Router<M, T> {
    /// Returns a page of the topics and patterns that have subscribers, without reserved topics.
    ///
    /// `cursor` is the `next_cursor` of the previous page. `limit` is the maximum number of topics
    /// on the page; 0 counts as 1.
    ///
    /// A topic that has subscribers throughout a listing is on exactly one of its pages. A topic
    /// that is added or removed meanwhile is on at most one. The call locks one part of the table
    /// at a time.
    ///
    /// # Errors
    /// Returns [`InvalidCursor`] if the cursor is malformed.
    pub fn list(&self, cursor: Option<&str>, limit: usize) -> Result<TopicPage, InvalidCursor> {
        let limit = limit.max(1);
        let mut cursor = cursor.map(PageCursor::parse).transpose()?;
        let mut topics = Vec::new();
        // The patterns follow the last stripe.
        for part in cursor.as_ref().map_or(0, |cursor| cursor.part)..=STRIPES {
            let after = cursor.take().map_or(String::new(), |cursor| cursor.name);
            let remaining = limit - topics.len();
            let (names, has_more) = self.names_after(part, &after, remaining);
            topics.extend(names);
            if has_more {
                // If earlier parts filled the page, it contains no name of this part.
                let name = if remaining == 0 {
                    after
                } else {
                    topics.last().map_or(after, |(name, _)| name.clone())
                };
                return Ok(TopicPage { topics, next_cursor: Some(PageCursor { part, name }.to_text()) });
            }
        }
        Ok(TopicPage { topics, next_cursor: None })
    }

    /// Returns up to `limit` names after `after` in byte order, with their numbers of subscribers.
    /// Reads the whole table, one part at a time. The order allows merging the lists of several
    /// nodes.
    #[must_use]
    pub fn list_names_after(&self, after: &str, limit: usize) -> Vec<(String, u64)> {
        let mut lowest = Vec::new();
        for part in 0..=STRIPES {
            let (names, _) = self.names_after(part, after, limit);
            lowest.extend(names);
            lowest.sort_unstable();
            lowest.truncate(limit);
        }
        lowest
    }

    /// Returns up to `limit` names of a part after `after`, in order, with their numbers of
    /// subscribers. Also returns `true` if there are more.
    fn names_after(&self, part: usize, after: &str, limit: usize) -> (Vec<(String, u64)>, bool) {
        let mut lowest = LowestNames { after, limit, heap: BinaryHeap::new(), has_more: false };
        if let Some(stripe) = self.shared().stripe_at(part) {
            stripe.iter_listed().for_each(|entry| lowest.add(entry));
            return lowest.into_sorted();
        }
        // Release the lock of the patterns now and then, because publishers need it. A pattern
        // keeps its number as long as it has subscribers, so it is visited exactly once.
        let mut next = Some(0);
        while let Some(start) = next {
            let patterns = read(&self.shared().patterns);
            let (entries, next_start) = patterns.range(start, MAX_PATTERNS_PER_LOCK);
            entries.for_each(|entry| lowest.add(entry));
            next = next_start;
        }
        lowest.into_sorted()
    }
}

/// Collects the lowest names after a given name. Takes memory for only `limit` names.
struct LowestNames<'a> {
    after: &'a str,
    limit: usize,
    /// The lowest names so far with their numbers of subscribers. The highest of them is on top.
    heap: BinaryHeap<(Arc<str>, u64)>,
    /// `true` if names were left out because of the limit.
    has_more: bool,
}

impl LowestNames<'_> {
    fn add(&mut self, entry: &RouteEntry) {
        if *entry.name <= *self.after {
            return;
        }
        if self.heap.len() < self.limit {
            self.heap.push((Arc::clone(&entry.name), entry.subscribers()));
            return;
        }
        self.has_more = true;
        if let Some(mut highest) = self.heap.peek_mut()
            && entry.name < highest.0
        {
            *highest = (Arc::clone(&entry.name), entry.subscribers());
        }
    }

    fn into_sorted(self) -> (Vec<(String, u64)>, bool) {
        let sorted = self.heap.into_sorted_vec().into_iter();
        (sorted.map(|(name, subscribers)| (name.to_string(), subscribers)).collect(), self.has_more)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Config, ShardId};
    use deeperhub_types::Subscription;
    use std::collections::BTreeMap;

    #[test]
    fn each_name_is_on_exactly_one_page() {
        let router = Router::<()>::new(2, Config::default());
        let mut shards = [router.attach(ShardId(0)), router.attach(ShardId(1))];
        let mut expected = BTreeMap::new();
        for number in 0..500_u32 {
            for name in [format!("topic.{number}"), format!("{number}.*.é")] {
                let subscription = Subscription::parse(name.as_str()).unwrap();
                for key in 0..=number % 3 {
                    shards[key as usize % 2].subscribe(key, &subscription);
                }
                expected.insert(name, u64::from(number % 3) + 1);
            }
        }
        assert_eq!(router.topic_count(), 1000);
        for limit in [1, 7, 64, 999, 1000, 1001, usize::MAX] {
            let mut seen = BTreeMap::new();
            let (mut cursor, mut pages) = (None, 0);
            loop {
                let page = router.list(cursor.as_deref(), limit).unwrap();
                assert!(page.topics.len() <= limit && pages <= 1000);
                for (name, subscribers) in page.topics {
                    assert_eq!(seen.insert(name, subscribers), None);
                }
                pages += 1;
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            assert!(seen == expected, "limit {limit}");
        }
        let all: Vec<_> = expected.into_iter().collect();
        assert_eq!(router.list_names_after("", usize::MAX), all);
        assert_eq!(router.list_names_after(&all[499].0, 3), all[500..503]);
        assert_eq!(router.list_names_after(&all[999].0, 3), []);
    }

    #[test]
    fn an_invalid_cursor_is_an_error() {
        let router = Router::<()>::new(1, Config::default());
        assert_eq!(router.list(Some("00"), 10).map(|page| page.topics), Ok(Vec::new()));
        for cursor in ["", "0", "é", "zz", "00fg", "41", "ff", "00ff", "0 "] {
            assert_eq!(router.list(Some(cursor), 10), Err(InvalidCursor), "{cursor}");
        }
        let cursor = PageCursor { part: STRIPES, name: "a.é.>".to_owned() };
        assert_eq!(PageCursor::parse(&cursor.to_text()), Ok(cursor));
    }
}
