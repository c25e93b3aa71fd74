//! A node whose workers stay busy for long, tested through the cluster crate.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Action, Broker as Handle, BrokerUrl, ClusterState, Config, DriverHandle, Envelope, JoinOutcome, Message,
    MessageHandler, Operation, PendingAnswer, Target, connect,
};
use deeperhub_protocol::RawJson;

use super::eventually;
use crate::support::{Broker, Engine, WAIT_TIMEOUT};

/// Time that the first message takes; longer than a node may be silent.
const PROCESSING_TIME: Duration = Duration::from_secs(7);

/// Receiver that sleeps on the first message.
#[derive(Debug, Default)]
struct Busy {
    for_first: Duration,
    received: Arc<Mutex<Vec<u64>>>,
}

impl MessageHandler for Busy {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        if let Message::Operation(Operation { action: Action::Send(payload), .. }) = envelope.message {
            let number = payload.as_str().rsplit_once(':')?.1.trim_end_matches('}').parse().ok()?;
            if number == 0 {
                tokio::time::sleep(self.for_first).await;
            }
            self.received.lock().unwrap().push(number);
        }
        None
    }

    fn connections(&self) -> u64 {
        0
    }
}

fn join(url: &str, node: &str, inbound: Busy) -> (Handle, DriverHandle) {
    let url = BrokerUrl::parse(url).expect("a broker has a URL");
    let (broker, driver) = connect(Config::new(url), node, "1").expect("a random generator");
    let running = driver.spawn(inbound).expect("a thread can be started");
    assert_eq!(running.wait_for_join(WAIT_TIMEOUT), Some(JoinOutcome::Joined));
    (broker, running)
}

#[tokio::test]
async fn a_busy_node_keeps_its_link_and_gets_every_message() {
    const MESSAGES: u64 = 3000;
    for engine in Engine::BOTH {
        let server = Broker::start(engine);
        let received = Arc::default();
        let busy = Busy { for_first: PROCESSING_TIME, received: Arc::clone(&received) };
        let (remote, running) = join(&server.url(), "b", busy);
        let (local, running_here) = join(&server.url(), "a", Busy::default());
        let mut states = remote.watch();
        states.mark_unchanged();
        for number in 0..MESSAGES {
            let payload = format!(r#"{{"type":"x","n":{number}}}"#);
            let payload = RawJson::parse(&payload).expect("it is JSON");
            let broadcast = Operation::new(Target::All, Action::Send(payload));
            local.publish(Message::Operation(broadcast)).expect("the queue has room");
        }
        eventually("all messages", async || received.lock().unwrap().len() as u64 == MESSAGES).await;
        assert_eq!(*received.lock().unwrap(), (0..MESSAGES).collect::<Vec<_>>(), "{engine:?}");
        assert!(!states.has_changed().expect("the driver runs"), "{engine:?}: {:?}", remote.state());
        assert_eq!(remote.state(), ClusterState::Up);
        // Each node still lists the other.
        assert_eq!((remote.peers().len(), local.peers().len()), (1, 1), "{engine:?}");
        for (handle, running) in [(remote, running), (local, running_here)] {
            handle.stop(Instant::now() + Duration::from_secs(1));
            running.wait_for_end().await;
        }
    }
}
