//! The bounded queue of requests to the store: reads, looks at positions, and resets.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_protocol::Topic;
use tokio::sync::{Notify, oneshot};

use super::{MAX_READS, ReadError, ResetStream, StorePosition, StreamRange, StreamRead, StreamTop};

/// Maximum cost of the waiting requests, in streams to read. Limits memory use while the store is
/// slow. The answers to so many take a few seconds.
const MAX_WAITING: usize = 4096;

/// Time after which a request that waits for its turn fails.
const MAX_WAIT: Duration = Duration::from_secs(3);

type ReadOutcome = Result<StreamRange, ReadError>;

type Reply<T> = oneshot::Sender<Result<T, ReadError>>;

/// A request to the store.
#[derive(Debug)]
#[cfg_attr(
    not(any(feature = "redis", feature = "simulation")),
    expect(dead_code, reason = "JetStream does not need all fields, or there are no engines")
)]
pub(crate) enum Request {
    /// Reads messages.
    Streams { reads: Vec<StreamRead>, reply: Reply<Vec<ReadOutcome>> },
    /// Looks up the newest positions, and makes the store remember them for `remember_ms`.
    Tops { topics: Vec<Topic<'static>>, remember_ms: Option<u64>, reply: Reply<Vec<StreamTop>> },
    /// Starts a new stream. The envelope tells the other nodes; the store fills in its fields at
    /// `stamp`.
    Reset { reset: ResetStream, envelope: Vec<u8>, stamp: usize, reply: Reply<StorePosition> },
}

impl Request {
    /// Answers with an error.
    pub(crate) fn fail(self, error: ReadError) {
        // The requester may have gone.
        match self {
            Self::Streams { reply, .. } => drop(reply.send(Err(error))),
            Self::Tops { reply, .. } => drop(reply.send(Err(error))),
            Self::Reset { reply, .. } => drop(reply.send(Err(error))),
        }
    }

    /// Returns `true` if nothing waits for the answer any more.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Streams { reply, .. } => reply.is_closed(),
            Self::Tops { reply, .. } => reply.is_closed(),
            Self::Reset { .. } => false,
        }
    }
}

/// A request that waits for its turn.
#[derive(Debug)]
struct Waiting {
    request: Request,
    cost: usize,
    /// Confirmation of interest that must come first, see
    /// [`Interests::request_confirmation`](crate::interest::Interests::request_confirmation).
    barrier: u64,
    since: Instant,
}

/// Queue of requests to the store. Open while the node has a connection.
#[derive(Debug, Default)]
pub(crate) struct RequestQueue {
    inner: Mutex<Inner>,
    /// Notified when a request may be ready.
    pub(crate) changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Waiting>,
    /// Cost of the waiting requests.
    cost: usize,
    is_open: bool,
}

impl RequestQueue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self) {
        self.lock().is_open = true;
    }

    /// Refuses further requests, and fails those that wait.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.lock();
            inner.is_open = false;
            inner.cost = 0;
            std::mem::take(&mut inner.waiting)
        };
        waiting.into_iter().for_each(|waiting| waiting.request.fail(ReadError::Unavailable));
    }

    pub(crate) fn push(&self, request: Request, cost: usize, barrier: u64) -> Result<(), ReadError> {
        {
            let mut inner = self.lock();
            if !inner.is_open {
                return Err(ReadError::Unavailable);
            }
            if inner.cost + cost > MAX_WAITING {
                return Err(ReadError::Busy);
            }
            inner.cost += cost;
            inner.waiting.push_back(Waiting { request, cost, barrier, since: Instant::now() });
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Takes the oldest requests that `confirmed` allows, for one exchange with the store. Fails
    /// those that waited too long.
    pub(crate) fn take(&self, confirmed: u64, now: Instant) -> Vec<Request> {
        let (mut taken, mut outdated, mut cost) = (Vec::new(), Vec::new(), 0);
        {
            let mut inner = self.lock();
            let mut rest = VecDeque::new();
            while let Some(next) = inner.waiting.pop_front() {
                if next.request.is_abandoned() || now.saturating_duration_since(next.since) > MAX_WAIT {
                    inner.cost -= next.cost;
                    outdated.push(next);
                } else if next.barrier > confirmed {
                    rest.push_back(next);
                } else if cost > 0 && cost + next.cost > MAX_READS {
                    rest.push_back(next);
                    break;
                } else {
                    cost += next.cost;
                    inner.cost -= next.cost;
                    taken.push(next.request);
                }
            }
            rest.append(&mut inner.waiting);
            inner.waiting = rest;
        }
        outdated.into_iter().for_each(|waiting| waiting.request.fail(ReadError::TimedOut));
        taken
    }

    /// Returns the time at which the oldest request fails if it is not taken, if one waits.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.lock().waiting.front().map(|waiting| waiting.since + MAX_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tops() -> (Request, oneshot::Receiver<Result<Vec<StreamTop>, ReadError>>) {
        let (reply, receiver) = oneshot::channel();
        (Request::Tops { topics: Vec::new(), remember_ms: None, reply }, receiver)
    }

    #[test]
    fn requests_are_refused_without_a_connection() {
        let queue = RequestQueue::default();
        assert_eq!(queue.push(tops().0, 1, 0), Err(ReadError::Unavailable));
        queue.open();
        let (request, mut reply) = tops();
        assert_eq!(queue.push(request, 1, 0), Ok(()));
        queue.close();
        assert_eq!(reply.try_recv(), Ok(Err(ReadError::Unavailable)));
        assert_eq!(queue.push(tops().0, 1, 0), Err(ReadError::Unavailable));
    }

    #[test]
    fn waiting_requests_are_bounded() {
        let queue = RequestQueue::default();
        queue.open();
        let now = Instant::now();
        let mut replies = Vec::new();
        for _ in 0..MAX_WAITING / MAX_READS {
            let (request, reply) = tops();
            assert_eq!(queue.push(request, MAX_READS, 0), Ok(()));
            replies.push(reply);
        }
        assert_eq!(queue.push(tops().0, 1, 0), Err(ReadError::Busy));
        assert_eq!(queue.take(0, now).len(), 1);
        assert_eq!(queue.push(tops().0, MAX_READS, 0), Ok(()));
        assert_eq!(queue.push(tops().0, 1, 0), Err(ReadError::Busy));
    }

    #[test]
    fn an_exchange_takes_requests_in_order_up_to_its_size() {
        let queue = RequestQueue::default();
        queue.open();
        let now = Instant::now();
        let mut replies = Vec::new();
        for cost in [MAX_READS + 5, 40, 24, 1] {
            let (request, reply) = tops();
            assert_eq!(queue.push(request, cost, 0), Ok(()));
            replies.push(reply);
        }
        let counts: Vec<_> = (0..4).map(|_| queue.take(0, now).len()).collect();
        assert_eq!(counts, [1, 2, 1, 0]);
    }

    #[test]
    fn requests_wait_for_their_confirmation_and_not_for_that_of_others() {
        let queue = RequestQueue::default();
        queue.open();
        let now = Instant::now();
        let (first, mut first_reply) = tops();
        let (second, second_reply) = tops();
        assert_eq!((queue.push(first, 1, 7), queue.push(second, 1, 0)), (Ok(()), Ok(())));
        assert_eq!(queue.take(6, now).len(), 1);
        drop(second_reply);
        assert!(queue.take(6, now).is_empty());
        assert_eq!(queue.take(7, now).len(), 1);
        assert!(first_reply.try_recv().is_err());
    }

    #[test]
    fn requests_that_wait_too_long_fail() {
        let queue = RequestQueue::default();
        queue.open();
        let (request, mut reply) = tops();
        assert_eq!(queue.push(request, 1, 9), Ok(()));
        let timeout = queue.next_timeout().unwrap();
        assert!(queue.take(0, timeout - Duration::from_secs(1)).is_empty());
        assert!(queue.take(0, timeout + Duration::from_secs(1)).is_empty());
        assert_eq!(reply.try_recv(), Ok(Err(ReadError::TimedOut)));
        assert_eq!(queue.next_timeout(), None);
    }
}
