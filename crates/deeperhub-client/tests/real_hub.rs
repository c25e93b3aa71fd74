//! The client against a real hub, whose program `DEEPERHUB_BINARY` names, over connections that are
//! cut again and again.

#[allow(dead_code)]
#[path = "support/mod.rs"]
mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use deeperhub_client::{Event, Hub, Options};
use support::bounded;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

const CUTS: u32 = 100;

/// A hub that is stopped with the test.
struct Program(Child, String);

impl Program {
    /// Starts the hub. Returns `None`, and says so, if there is no program.
    async fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("DEEPERHUB_BINARY") else {
            println!("skipped: DEEPERHUB_BINARY names no program");
            return None;
        };
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = free.local_addr().expect("it listens");
        drop(free);
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string(), "--api-listen", "off"])
            .args(["--topic", "chat.>: history=10000 ttl=10m", "--rate-limit", "0"])
            .args(["--connection-rate-per-ip", "0"])
            // The hub warns about variables that it does not know.
            .env_remove("DEEPERHUB_BINARY")
            .stdout(Stdio::null())
            .spawn();
        let program = Self(child.expect("the program starts"), address.to_string());
        while TcpStream::connect(&program.1).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Passes connections on to an address, and cuts all of them at each message of `cuts`.
async fn proxy(listener: TcpListener, target: String, cuts: broadcast::Sender<()>) {
    loop {
        let (mut client, _) = listener.accept().await.expect("clients come");
        let (target, mut cut) = (target.clone(), cuts.subscribe());
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(target).await else { return };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = cut.recv() => {}
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_is_seen_once_over_100_cuts() {
    bounded(async {
        let Some(program) = Program::start().await else { return };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("ws://{}/", listener.local_addr().expect("it listens"));
        let cuts = broadcast::Sender::new(16);
        let proxy = tokio::spawn(proxy(listener, program.1.clone(), cuts.clone()));
        let options =
            || Options::default().min_delay(Duration::from_millis(2)).max_delay(Duration::from_millis(10));
        let publisher = Hub::connect(&url, options()).await.expect("the hub is there");
        let subscriber = Hub::connect(&url, options()).await.expect("the hub is there");
        let mut chat = subscriber.subscribe("chat.1").await.expect("it subscribes");
        let publishing = tokio::spawn({
            let cuts = cuts.clone();
            async move {
                let (mut number, mut cut) = (0_u32, 0);
                while cut < CUTS {
                    number += 1;
                    let published = publisher.publish("chat.1", &number).await.expect("it is published");
                    let offset = published.position.expect("the topic has history").offset;
                    assert_eq!(offset, u64::from(number), "each publish is stored once");
                    if number.is_multiple_of(5) {
                        cut += u32::from(cuts.send(()).is_ok());
                        // The next messages meet connections that are coming back.
                        tokio::time::sleep(Duration::from_millis(u64::from(number % 7) * 3)).await;
                    }
                }
                number
            }
        });
        let (mut seen, mut reconnects) = (0, 0);
        let mut last = None;
        let mut publishing = Some(publishing);
        while last.is_none_or(|last| seen < last) {
            tokio::select! {
                event = chat.next() => match event.expect("the subscription goes on") {
                    Event::Message(message) => {
                        seen += 1;
                        assert_eq!(message.message::<u32>().expect("it is a number"), seen);
                    }
                    Event::Gap(gap) => panic!("nothing was lost, but told: {gap:?}"),
                    Event::State(state) => {
                        let is_live = matches!(state, deeperhub_client::SubscriptionState::Live { .. });
                        reconnects += u32::from(is_live);
                    }
                    _ => {}
                },
                result = async { publishing.as_mut().expect("it runs").await }, if publishing.is_some() => {
                    last = Some(result.expect("no panic"));
                    publishing = None;
                }
            }
        }
        println!("{seen} messages over {reconnects} times live");
        assert!(reconnects > CUTS / 4, "the subscriber came back only {reconnects} times");
        subscriber.close().await;
        proxy.abort();
    })
    .await;
}
