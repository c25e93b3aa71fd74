use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::task::Waker;

use super::*;
use crate::admission::Admission;

fn candidate(connections: usize, waiting: usize, is_behind: bool) -> WorkerLoad {
    WorkerLoad { connections, waiting, is_behind }
}

#[test]
fn the_worker_with_the_fewest_connections_gets_the_next() {
    let candidates = [candidate(7, 3, false), candidate(5, 9, false), candidate(5, 0, false)];
    assert_eq!(choose_worker(candidates.into_iter()), Some(1));
}

#[test]
fn workers_that_are_behind_are_chosen_last() {
    let responsive = candidate(9000, MAX_ARRIVALS - 1, false);
    assert_eq!(choose_worker([candidate(0, 1, true), responsive].into_iter()), Some(1));
    assert_eq!(choose_worker([candidate(2, 1, true), candidate(1, 1, true)].into_iter()), Some(1));
}

#[test]
fn a_worker_with_a_full_queue_gets_no_connection() {
    let full = candidate(0, MAX_ARRIVALS, false);
    assert_eq!(choose_worker([full, candidate(9, 1, true)].into_iter()), Some(1));
    assert_eq!(choose_worker([full, full].into_iter()), None);
    assert_eq!(choose_worker([].into_iter()), None);
}

/// Source of new connections with one permit each.
struct Arrivals {
    listener: TcpListener,
    admission: Arc<Admission>,
    clients: Vec<TcpStream>,
}

impl Arrivals {
    fn new(workers: usize) -> Self {
        let admission = Arc::new(Admission::new(10_000, None, None, workers));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { listener, admission, clients: Vec::new() }
    }

    fn next(&mut self) -> Arrival {
        let Self { listener, admission, clients } = self;
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (socket, peer) = listener.accept().unwrap();
        let permit = admission.try_admit(None).unwrap();
        Arrival { socket, peer, permit, refusal: None, accepted_at: Instant::now() }
    }
}

/// Returns the number of queued connections of each worker.
fn queue_lengths(control: &Control) -> Vec<usize> {
    control.mailboxes.iter().map(|mailbox| lock(&mailbox.arrivals).len()).collect()
}

fn hand_to_next_worker(control: &Control, arrival: Arrival, now: Instant) {
    let worker = control.next_worker(&arrival.permit, now).unwrap();
    control.hand_over(worker, arrival, now);
}

/// Takes each worker's first notification and returns the time.
fn take_first_notifications(control: &Control) -> Instant {
    assert!(control.mailboxes.iter().all(Mailbox::take_notification));
    Instant::now()
}

/// Takes the notification and the queue, as a worker does at the start of a round.
fn check_mailbox(mailbox: &Mailbox) -> Vec<Arrival> {
    mailbox.take_notification();
    std::iter::from_fn(|| mailbox.pop()).collect()
}

#[test]
fn new_connections_skip_workers_that_are_behind_and_full_queues() {
    let (control, mut arrivals) = (Control::new(2), Arrivals::new(2));
    let start = take_first_notifications(&control);
    hand_to_next_worker(&control, arrivals.next(), start);
    hand_to_next_worker(&control, arrivals.next(), start);
    assert_eq!(queue_lengths(&control), [1, 1]);
    // The second worker empties its queue; the first does not.
    let later = start + BEHIND_AFTER * 2;
    let first = check_mailbox(control.mailbox(1));
    for _ in 0..3 {
        hand_to_next_worker(&control, arrivals.next(), later);
        assert_eq!(queue_lengths(&control), [1, 1]);
        assert_eq!(check_mailbox(control.mailbox(1)).len(), 1);
    }
    drop(first);
    control.mailbox(1).set_vacant(true);
    while queue_lengths(&control) != [MAX_ARRIVALS; 2] {
        hand_to_next_worker(&control, arrivals.next(), start);
    }
    let one_more = arrivals.next();
    assert_eq!(control.next_worker(&one_more.permit, start), None);
    control.mailbox(0).pop().unwrap();
    hand_to_next_worker(&control, one_more, start);
    let admission = Arc::clone(&arrivals.admission);
    assert_eq!(admission.open(), 2 * MAX_ARRIVALS);
    drop(control);
    assert_eq!(admission.open(), 0);
}

#[test]
fn connections_queued_for_a_hanging_worker_are_reassigned() {
    let (control, mut arrivals) = (Control::new(2), Arrivals::new(2));
    let start = take_first_notifications(&control);
    for _ in 0..4 {
        hand_to_next_worker(&control, arrivals.next(), start);
    }
    assert!(control.has_arrivals());
    let admission = Arc::clone(&arrivals.admission);
    let late = start + RECLAIM_AFTER;
    assert_eq!(control.reassign(late), 0, "all workers are behind");
    drop(check_mailbox(control.mailbox(1)));
    assert_eq!(control.reassign(start + BEHIND_AFTER), 0, "the worker may only be busy");
    assert_eq!(control.reassign(late), 2);
    assert_eq!(queue_lengths(&control), [0, 2]);
    let moved = check_mailbox(control.mailbox(1));
    assert_eq!((moved[0].permit.connections_of(0), moved[0].permit.connections_of(1)), (0, 2));
    // The first worker still has not checked its mailbox, so it gets no further connection.
    hand_to_next_worker(&control, arrivals.next(), late);
    assert_eq!(queue_lengths(&control), [0, 1]);
    drop((moved, control));
    assert_eq!(admission.open(), 0);
}

#[derive(Default)]
struct Count(AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_worker_is_woken_once_until_it_checks_its_mailbox() {
    let (control, count) = (Control::new(1), Arc::new(Count::default()));
    let mailbox = control.mailbox(0);
    mailbox.attach(&Waker::from(Arc::clone(&count)));
    assert!(mailbox.take_notification(), "a new worker has a notification");
    assert!(!mailbox.take_notification());
    let mut arrivals = Arrivals::new(1);
    for _ in 0..3 {
        hand_to_next_worker(&control, arrivals.next(), Instant::now());
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(mailbox.take_notification());
    control.stop();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    assert!(control.is_stopping());
}
