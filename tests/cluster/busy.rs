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

/// A handler that takes long for the first message.
#[derive(Debug, Default)]
struct SlowHandler {
    first_delay: Duration,
    received: Arc<Mutex<Vec<u64>>>,
}

impl MessageHandler for SlowHandler {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        if let Message::Operation(Operation { action: Action::Send(payload), .. }) = envelope.message {
            let number = payload.as_str().rsplit_once(':')?.1.trim_end_matches('}').parse().ok()?;
            if number == 0 {
                tokio::time::sleep(self.first_delay).await;
            }
            self.received.lock().unwrap().push(number);
        }
        None
    }

    fn connections(&self) -> u64 {
        0
    }
}

fn join(url: &str, node: &str, handler: SlowHandler) -> (Handle, DriverHandle) {
    let url = BrokerUrl::parse(url).expect("a broker has a URL");
    let (broker, driver) = connect(Config::new(url), node, "1").expect("a random generator");
    let driver = driver.spawn(handler).expect("a thread can be started");
    assert_eq!(driver.wait_for_join(WAIT_TIMEOUT), Some(JoinOutcome::Joined));
    (broker, driver)
}

#[tokio::test]
async fn a_busy_node_keeps_its_link_and_gets_every_message() {
    const MESSAGES: u64 = 3000;
    for engine in Engine::BOTH {
        let server = Broker::start(engine);
        let received = Arc::default();
        let slow = SlowHandler { first_delay: PROCESSING_TIME, received: Arc::clone(&received) };
        let (remote, remote_driver) = join(&server.url(), "b", slow);
        let (local, local_driver) = join(&server.url(), "a", SlowHandler::default());
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
        for (handle, driver) in [(remote, remote_driver), (local, local_driver)] {
            handle.stop(Instant::now() + Duration::from_secs(1));
            driver.wait_for_end().await;
        }
    }
}
