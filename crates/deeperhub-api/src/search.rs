//! Search in lists.

use std::future::Future;

use crate::error::ApiError;
use crate::responses::List;

/// Maximum number of pages that one call reads. Bounds its time. A caller continues with the cursor.
const MAX_PAGES: usize = 128;

/// Reads pages until `limit` items match, the list ends, or [`MAX_PAGES`] pages are read. The
/// result may thus have fewer items than `limit`, or none, and a cursor.
///
/// A cursor marks the end of a page, so each page is read with a limit of the items that may still
/// match.
pub(crate) async fn search<L: List, F: Future<Output = Result<L, ApiError>>>(
    limit: usize,
    cursor: Option<String>,
    is_match: impl Fn(&L::Item) -> bool,
    read_page: impl Fn(Option<String>, usize) -> F,
) -> Result<L, ApiError> {
    let mut found = read_page(cursor, limit).await?;
    found.items().retain(&is_match);
    for _ in 1..MAX_PAGES {
        let remaining = limit - found.items().len();
        if remaining == 0 {
            break;
        }
        let Some(cursor) = found.next_cursor().take() else { break };
        let mut page = read_page(Some(cursor), remaining).await?;
        page.items().retain(&is_match);
        found.items().append(page.items());
        *found.next_cursor() = page.next_cursor().take();
        if let (Some(all), Some(nodes)) = (found.unanswered(), page.unanswered()) {
            nodes.retain(|node| !all.contains(node));
            all.append(nodes);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Numbers {
        items: Vec<usize>,
        next_cursor: Option<String>,
        unanswered: Option<Vec<String>>,
    }

    impl List for Numbers {
        type Item = usize;

        fn items(&mut self) -> &mut Vec<usize> {
            &mut self.items
        }

        fn next_cursor(&mut self) -> &mut Option<String> {
            &mut self.next_cursor
        }

        fn unanswered(&mut self) -> &mut Option<Vec<String>> {
            &mut self.unanswered
        }
    }

    /// Returns a page of the numbers below 1000. Cursors are the first number of a page.
    fn page(cursor: Option<String>, limit: usize) -> std::future::Ready<Result<Numbers, ApiError>> {
        let start: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
        let end = (start + limit).min(1000);
        let next_cursor = (end < 1000).then(|| end.to_string());
        ready(Ok(Numbers {
            items: (start..end).collect(),
            next_cursor,
            unanswered: Some(vec!["n2".to_owned()]),
        }))
    }

    #[tokio::test]
    async fn every_match_is_found_once() {
        let (mut cursor, mut all) = (None, Vec::new());
        loop {
            let mut found = search(7, cursor, |number| number % 10 == 3, page).await.unwrap();
            assert!(found.items.len() <= 7);
            assert_eq!(found.unanswered.as_deref(), Some(&["n2".to_owned()][..]));
            all.append(&mut found.items);
            cursor = found.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(all, (0..100).map(|ten| ten * 10 + 3).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_call_reads_a_bounded_number_of_pages() {
        let pages = Cell::new(0);
        let count = |cursor, limit| {
            pages.set(pages.get() + 1);
            page(cursor, limit)
        };
        let found = search(1, None, |_| false, count).await.unwrap();
        assert_eq!((pages.get(), found.items.len()), (MAX_PAGES, 0));
        assert_eq!(found.next_cursor, Some(MAX_PAGES.to_string()));
    }
}
