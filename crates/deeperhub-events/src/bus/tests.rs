use super::*;
use crate::EventDetails;
use deeperhub_types::ClientId;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::task::{Wake, Waker};
use std::time::UNIX_EPOCH;

/// Returns an event of `client` with a payload of `bytes` bytes.
fn binary(client: u64, bytes: usize) -> Event {
    event(client, EventDetails::BinaryReceived { payload: vec![0; bytes].into() })
}

fn error(client: u64) -> Event {
    event(client, EventDetails::Error { code: "internal".into(), message: "a failure".into() })
}

fn event(client: u64, details: EventDetails) -> Event {
    Event::new(UNIX_EPOCH, ClientId::parse(&client.to_string()).unwrap(), details)
}

fn bus(max_observers: usize, max_queue_events: usize, max_queue_bytes: usize) -> EventBus {
    EventBus::new(Config { max_observers, max_queue_events, max_queue_bytes })
}

fn only(kind: EventKind) -> EventFilter {
    EventFilter::none().with(kind)
}

/// A received item, reduced to the client of an event or the number of lost events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Event(u64),
    Lost(u64),
}

fn seen(received: Received) -> Seen {
    match received {
        Received::Event(event) => Seen::Event(event.client_id.as_str().parse().unwrap()),
        Received::Lost(count) => Seen::Lost(count),
    }
}

fn drain(stream: &mut EventStream) -> Vec<Seen> {
    std::iter::from_fn(|| stream.try_recv()).map(seen).collect()
}

/// A waker that counts its calls.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl WakeCounter {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn poll(stream: &mut EventStream, wakes: &Arc<WakeCounter>) -> Poll<Option<Seen>> {
    let waker = Waker::from(Arc::clone(wakes));
    stream.poll_recv(&mut Context::from_waker(&waker)).map(|received| received.map(seen))
}

#[test]
fn an_observer_gets_the_events_of_its_filter_in_order() {
    let bus = EventBus::default();
    let mut all = bus.subscribe(EventFilter::all()).unwrap();
    let mut errors = bus.subscribe(only(EventKind::Error)).unwrap();
    for client in 0..4 {
        bus.clone().publish(if client % 2 == 0 { binary(client, 3) } else { error(client) });
    }
    assert_eq!(drain(&mut all), [0, 1, 2, 3].map(Seen::Event));
    assert_eq!(drain(&mut errors), [1, 3].map(Seen::Event));
    assert_eq!(bus.lost(), 0);
}

#[test]
fn observers_share_one_event() {
    let bus = EventBus::default();
    let mut streams = [(); 2].map(|()| bus.subscribe(EventFilter::all()).unwrap());
    bus.publish(error(1));
    let [Some(Received::Event(first)), Some(Received::Event(second))] =
        streams.each_mut().map(EventStream::try_recv)
    else {
        panic!("each observer has the event")
    };
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn a_kind_is_observed_while_a_filter_contains_it() {
    let bus = EventBus::default();
    let observed = || -> Vec<EventKind> {
        EventKind::ALL.iter().copied().filter(|&kind| bus.is_observed(kind)).collect()
    };
    assert_eq!(observed(), []);
    let errors = bus.subscribe(only(EventKind::Error)).unwrap();
    let both = bus.subscribe(only(EventKind::Error).with(EventKind::Connected)).unwrap();
    assert_eq!(observed(), [EventKind::Connected, EventKind::Error]);
    drop(both);
    assert_eq!(observed(), [EventKind::Error]);
    drop(errors);
    assert_eq!(observed(), []);
}

#[test]
fn earlier_events_are_not_received() {
    let bus = EventBus::default();
    bus.publish(error(1));
    let mut stream = bus.subscribe(EventFilter::all()).unwrap();
    assert_eq!(drain(&mut stream), []);
    assert_eq!(bus.lost(), 0, "events without observers are not lost");
}

#[test]
fn the_number_of_observers_is_limited() {
    let bus = bus(2, 10, 1000);
    let first = bus.subscribe(EventFilter::all());
    let second = bus.subscribe(EventFilter::all());
    assert!(first.is_some() && second.is_some() && bus.subscribe(EventFilter::all()).is_none());
    drop(first);
    assert!(bus.subscribe(EventFilter::all()).is_some());
}

#[test]
fn a_full_queue_loses_the_newest_events_and_marks_the_gap() {
    let bus = bus(1, 2, usize::MAX);
    let mut stream = bus.subscribe(EventFilter::all()).unwrap();
    (0..5).for_each(|client| bus.publish(error(client)));
    assert_eq!(stream.try_recv().map(seen), Some(Seen::Event(0)));
    bus.publish(error(5));
    bus.publish(error(6));
    assert_eq!(drain(&mut stream), [Seen::Event(1), Seen::Lost(3), Seen::Event(5), Seen::Lost(1)]);
    assert_eq!(bus.lost(), 4);
}

#[test]
fn slow_observers_do_not_affect_other_observers() {
    let bus = bus(3, 1, usize::MAX);
    let mut slow = [(); 2].map(|()| bus.subscribe(EventFilter::all()).unwrap());
    let mut quick = bus.subscribe(EventFilter::all()).unwrap();
    for client in 0..3 {
        bus.publish(error(client));
        assert_eq!(drain(&mut quick), [Seen::Event(client)]);
    }
    for stream in &mut slow {
        assert_eq!(drain(stream), [Seen::Event(0), Seen::Lost(2)]);
    }
    assert_eq!(bus.lost(), 4);
}

#[test]
fn a_queue_is_bounded_in_bytes() {
    let bytes = binary(0, 100).memory_bytes();
    let bus = bus(1, usize::MAX, 2 * bytes);
    let mut stream = bus.subscribe(EventFilter::all()).unwrap();
    bus.publish(binary(0, 100));
    bus.publish(binary(1, 101));
    bus.publish(binary(2, 100));
    bus.publish(binary(3, 0));
    assert_eq!(drain(&mut stream), [Seen::Event(0), Seen::Lost(1), Seen::Event(2), Seen::Lost(1)]);
    // Received events free space again. An event larger than the limit never fits.
    bus.publish(binary(4, 2 * bytes));
    bus.publish(binary(5, 100));
    assert_eq!(drain(&mut stream), [Seen::Lost(1), Seen::Event(5)]);
}

#[test]
fn a_waiting_observer_is_woken_once() {
    let bus = EventBus::default();
    let mut stream = bus.subscribe(only(EventKind::Error)).unwrap();
    let (earlier, wakes) = (Arc::new(WakeCounter::default()), Arc::new(WakeCounter::default()));
    assert_eq!(poll(&mut stream, &earlier), Poll::Pending);
    assert_eq!(poll(&mut stream, &wakes), Poll::Pending);
    bus.publish(binary(0, 1));
    assert_eq!(wakes.count(), 0, "the filter excludes this event");
    bus.publish(error(1));
    bus.publish(error(2));
    assert_eq!((earlier.count(), wakes.count()), (0, 1));
    for client in [1, 2] {
        assert_eq!(poll(&mut stream, &wakes), Poll::Ready(Some(Seen::Event(client))));
    }
    assert_eq!(poll(&mut stream, &wakes), Poll::Pending);
}

#[test]
fn a_stream_ends_after_the_events_queued_before_the_close() {
    let bus = EventBus::default();
    let mut full = bus.subscribe(EventFilter::all()).unwrap();
    bus.publish(error(1));
    let mut empty = bus.subscribe(EventFilter::all()).unwrap();
    let wakes = Arc::new(WakeCounter::default());
    assert_eq!(poll(&mut empty, &wakes), Poll::Pending);
    bus.close();
    assert_eq!(wakes.count(), 1);
    assert!(!bus.is_observed(EventKind::Error));
    bus.publish(error(2));
    assert_eq!(poll(&mut empty, &wakes), Poll::Ready(None));
    assert_eq!(poll(&mut full, &wakes), Poll::Ready(Some(Seen::Event(1))));
    assert_eq!(poll(&mut full, &wakes), Poll::Ready(None));
    let mut late = bus.subscribe(EventFilter::all()).unwrap();
    assert_eq!(poll(&mut late, &wakes), Poll::Ready(None));
    assert!(!bus.is_observed(EventKind::Error));
}

/// A waker can drop its own stream, for example if an executor cancels the task.
#[test]
fn a_waker_can_drop_its_own_stream() {
    struct Cancel(std::sync::Mutex<Option<EventStream>>);
    impl Wake for Cancel {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let bus = EventBus::default();
    let cancel = Arc::new(Cancel(std::sync::Mutex::new(bus.subscribe(EventFilter::all()))));
    let waker = Waker::from(Arc::clone(&cancel));
    let mut stream = cancel.0.lock().unwrap();
    assert!(stream.as_mut().unwrap().poll_recv(&mut Context::from_waker(&waker)).is_pending());
    drop(stream);
    bus.publish(error(1));
    assert!(!bus.is_observed(EventKind::Error));
}

#[test]
fn every_event_of_every_thread_is_received_or_counted_as_lost() {
    const PUBLISHERS: u64 = 4;
    const EVENTS: u64 = 5000;
    let bus = bus(1, 64, usize::MAX);
    let mut stream = bus.subscribe(EventFilter::all()).unwrap();
    // The reader sleeps until it is woken, so the test hangs if a wake-up is lost.
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let received = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let mut all = Vec::new();
            loop {
                match stream.poll_recv(&mut Context::from_waker(&waker)) {
                    Poll::Ready(Some(received)) => all.push(seen(received)),
                    Poll::Ready(None) => return all,
                    Poll::Pending => std::thread::park(),
                }
            }
        });
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let bus = &bus;
                scope.spawn(move || (0..EVENTS).for_each(|n| bus.publish(error(publisher * EVENTS + n))))
            })
            .collect();
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        bus.close();
        reader.join().unwrap()
    });
    let (mut events, mut lost) = (0, 0);
    let mut next = [0; PUBLISHERS as usize];
    for seen in received {
        match seen {
            Seen::Lost(count) => lost += count,
            Seen::Event(id) => {
                let (publisher, n) = ((id / EVENTS) as usize, id % EVENTS);
                assert!(n >= next[publisher], "an event was received twice or out of order");
                next[publisher] = n + 1;
                events += 1;
            }
        }
    }
    assert_eq!((events + lost, bus.lost()), (PUBLISHERS * EVENTS, lost));
}

#[derive(Debug, Clone)]
enum Step {
    Publish { bytes: usize },
    PublishOther,
    Receive,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..200_usize).prop_map(|bytes| Step::Publish { bytes }),
        1 => Just(Step::PublishOther),
        3 => Just(Step::Receive),
    ]
}

proptest! {
    /// Compares the bus with a simple model of a bounded queue.
    #[test]
    fn lost_events_are_counted_at_their_position(steps in prop::collection::vec(step(), 0..120), max_events in 0..6_usize, max_bytes in 0..1200_usize) {
        let bus = bus(1, max_events, max_bytes);
        let mut stream = bus.subscribe(only(EventKind::BinaryReceived)).unwrap();
        let mut model: VecDeque<(Seen, usize)> = VecDeque::new();
        let mut lost = 0;
        for (id, step) in (0..).zip(steps) {
            match step {
                Step::PublishOther => bus.publish(error(id)),
                Step::Receive => prop_assert_eq!(stream.try_recv().map(seen), model.pop_front().map(|(seen, _)| seen)),
                Step::Publish { bytes } => {
                    let event = binary(id, bytes);
                    let size = event.memory_bytes();
                    bus.publish(event);
                    let events = model.iter().filter(|(seen, _)| matches!(seen, Seen::Event(_))).count();
                    let queued_bytes: usize = model.iter().map(|(_, size)| size).sum();
                    if events < max_events && queued_bytes + size <= max_bytes {
                        model.push_back((Seen::Event(id), size));
                    } else {
                        lost += 1;
                        match model.back_mut() {
                            Some((Seen::Lost(count), _)) => *count += 1,
                            _ => model.push_back((Seen::Lost(1), 0)),
                        }
                    }
                }
            }
            prop_assert_eq!(bus.lost(), lost);
        }
        let rest: Vec<Seen> = model.into_iter().map(|(seen, _)| seen).collect();
        prop_assert_eq!(drain(&mut stream), rest);
    }
}
