//! Tests with a server that a test plays itself.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::client::Client;
use super::handshake;
use super::request::RequestError;
use super::wire::command;
use crate::config::{BrokerUrl, Config};
use crate::link::LinkError;

const INFO: &str = "INFO {\"max_payload\":2000,\"nonce\":\"n\",\"headers\":true}\r\n";

/// Time within which everything happens, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The server's side of a connection.
struct Server {
    stream: TcpStream,
    /// Text that was read and not expected yet.
    read: String,
}

impl Server {
    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads up to this text, and returns what comes before it.
    async fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some((before, rest)) = self.read.split_once(text) {
                let before = before.to_owned();
                self.read = rest.to_owned();
                return before;
            }
            let mut buffer = [0; 65_536];
            let length = self.stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the client closed the connection before {text:?}: {:?}", self.read);
            self.read.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, test).await }).expect("a test ends in time")
}

/// Connects to a server that sends a text first, and answers the client's `CONNECT` with another.
async fn connect(user: &str, first: &str, answer: &str) -> (Result<Client, LinkError>, Server, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{user}127.0.0.1:{}", listener.local_addr().unwrap().port());
    let config = Config::new(BrokerUrl::parse(&url).unwrap());
    let accept = async {
        let mut server = Server { stream: listener.accept().await.unwrap().0, read: String::new() };
        server.send(first).await;
        let mut options = String::new();
        if !answer.is_empty() {
            server.expect("CONNECT ").await;
            options = server.expect("\r\nPING\r\n").await;
            server.send(answer).await;
        }
        (server, options)
    };
    let connecting = handshake::connect(&config, &config.url.servers()[0], "test");
    let (connected, (server, options)) = tokio::join!(connecting, accept);
    (connected.map(|connected| Client::new(connected, "inbox")), server, options)
}

async fn connected() -> (Client, Server) {
    let (client, server, _) = connect("", INFO, "PONG\r\n").await;
    (client.unwrap(), server)
}

fn texts(batch: &[Bytes]) -> Vec<&str> {
    batch.iter().map(|bytes| std::str::from_utf8(bytes).unwrap()).collect()
}

#[test]
fn a_connection_starts_with_its_options() {
    run(async {
        let answer = "+OK\r\nINFO {}\r\nPONG\r\nMSG a 2 1\r\nx\r\n";
        let (client, _server, options) = connect("me:secret@", INFO, answer).await;
        let options: serde_json::Value = serde_json::from_str(&options).unwrap();
        for (name, value) in [("echo", false), ("verbose", false), ("headers", true), ("no_responders", true)]
        {
            assert_eq!(options[name], value, "{name}");
        }
        assert_eq!((options["user"].as_str(), options["pass"].as_str()), (Some("me"), Some("secret")));
        assert_eq!((options["name"].as_str(), options["protocol"].as_u64()), (Some("test"), Some(1)));
        let client = client.unwrap();
        assert_eq!(client.max_payload(), 2000);
        // A message that came with the acceptance is not lost.
        let mut batch = Vec::new();
        client.receive(&mut batch).await.unwrap();
        assert_eq!(texts(&batch), ["x"]);
    });
}

#[test]
fn a_refusal_is_an_error_with_its_reason() {
    run(async {
        for (first, answer, reason) in [
            (INFO, "-ERR 'Authorization Violation'\r\n", "nats: authorization violation"),
            (INFO, "-ERR 'maximum connections exceeded'\r\n", "nats: maximum connections exceeded"),
            ("-ERR 'no'\r\n", "", "nats: no"),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "", "the server sent an unknown operation"),
            ("INFO nothing\r\n", "", "the server's description is invalid"),
            ("PING\r\n", "", "the server did not introduce itself as a NATS server"),
        ] {
            let (client, ..) = connect("", first, answer).await;
            let error = client.err().expect("the connection is refused");
            assert!(error.0.starts_with(reason), "{error}");
        }
    });
}

#[test]
fn messages_come_in_order_whatever_the_reads() {
    run(async {
        let (client, mut server) = connected().await;
        let sids = ["a", "b.>"].map(|subject| client.subscribe(subject).unwrap());
        let all =
            "MSG a 2 3\r\n1\r\n\r\nHMSG b.c 4 12 13\r\nNATS/1.0\r\n\r\n2\r\nPING\r\nMSG a 2 r 1\r\n3\r\n";
        let play = async {
            server.expect(&format!("SUB a {}\r\nSUB b.> {}\r\n", sids[0], sids[1])).await;
            for byte in all.bytes() {
                server.send(std::str::from_utf8(&[byte]).unwrap()).await;
                tokio::task::yield_now().await;
            }
            server.send(&all.repeat(1000)).await;
            server.expect("PONG\r\n").await;
        };
        let receive = async {
            let mut received = Vec::new();
            while received.len() < 3003 {
                let mut batch = Vec::new();
                client.receive(&mut batch).await.unwrap();
                assert!(!batch.is_empty());
                received.append(&mut batch);
            }
            let expected: Vec<_> = ["1\r\n", "2", "3"].into_iter().cycle().take(3003).collect();
            assert!(texts(&received) == expected);
        };
        tokio::join!(play, receive);
    });
}

#[test]
fn a_pong_confirms_what_was_written_before() {
    run(async {
        let (client, mut server) = connected().await;
        let first = client.write_and_ping(|out| command::publish(out, &[b"a"], b"1")).unwrap();
        let second = client.write_and_ping(|out| command::publish(out, &[b"a"], b"2")).unwrap();
        let play = async {
            server.expect("PUB a 1\r\n1\r\nPING\r\nPUB a 1\r\n2\r\nPING\r\n").await;
            server.send("PONG\r\n").await;
            server
        };
        let (mut server, confirmed) = tokio::join!(play, client.confirmed(first));
        assert_eq!(confirmed, Ok(()));
        let mut waiting = Box::pin(client.confirmed(second));
        assert!(waiting.as_mut().now_or_never().is_none());
        server.send("PONG\r\n").await;
        assert_eq!(waiting.await, Ok(()));
    });
}

/// A socket has one waker, and each of the futures has its own.
#[test]
fn futures_with_wakers_of_their_own_share_a_connection() {
    run(async {
        let (client, mut server) = connected().await;
        let confirmations: Vec<_> = (0..5).map(|_| client.write_and_ping(|_| {}).unwrap()).collect();
        let confirmed: futures_util::stream::FuturesUnordered<_> =
            confirmations.into_iter().map(|number| client.confirmed(number)).collect();
        let all = futures_util::StreamExt::collect::<Vec<_>>(confirmed);
        let mut batch = Vec::new();
        let receive = client.receive(&mut batch);
        let play = async {
            for _ in 0..5 {
                tokio::task::yield_now().await;
                server.send("PONG\r\n").await;
            }
            server.send("MSG a 2 1\r\nx\r\n").await;
        };
        let (confirmed, received, ()) = tokio::join!(all, receive, play);
        assert_eq!((confirmed, received), (vec![Ok(()); 5], Ok(())));
        assert_eq!(texts(&batch), ["x"]);
    });
}

#[test]
fn messages_come_before_the_reason_of_a_loss() {
    run(async {
        let (client, mut server) = connected().await;
        server.send("MSG a 2 1\r\nx\r\n-ERR 'Stale Connection'\r\nMSG a 2 1\r\ny\r\n").await;
        drop(server);
        let mut batch = Vec::new();
        client.receive(&mut batch).await.unwrap();
        assert_eq!(texts(&batch), ["x"]);
        let lost = LinkError::new("nats: Stale Connection");
        assert_eq!(client.receive(&mut Vec::new()).await, Err(lost.clone()));
        assert_eq!(client.confirm().await, Err(lost.clone()));
        assert_eq!(client.subscribe("a"), Err(lost));
        // Without a reason.
        let (client, server) = connected().await;
        drop(server);
        let error = client.confirm().await.unwrap_err();
        assert!(error.0.starts_with("the connection was lost"), "{error}");
    });
}

#[test]
fn a_server_that_reads_slowly_gets_everything() {
    run(async {
        let (client, mut server) = connected().await;
        let payload = "p".repeat(1000);
        let number = client.write_and_ping(|out| {
            (0..4000).for_each(|_| command::publish(out, &[b"a"], payload.as_bytes()));
        });
        let play = async {
            let before = server.expect("PING\r\n").await;
            assert_eq!(before.len(), 4000 * (b"PUB a 1000\r\n\r\n".len() + 1000));
            server.send("PONG\r\n").await;
        };
        let (confirmed, ()) = tokio::join!(client.confirmed(number.unwrap()), play);
        assert_eq!(confirmed, Ok(()));
    });
}

#[test]
fn messages_that_nobody_takes_are_bounded() {
    run(async {
        let (client, mut server) = connected().await;
        let payload = "p".repeat(100_000);
        let message = format!("MSG a 2 {}\r\n{payload}\r\n", payload.len());
        let number = client.write_and_ping(|_| {}).unwrap();
        let play = async {
            for _ in 0..200 {
                server.send(&message).await;
            }
            server.send("PONG\r\n").await;
            // The client has read everything only when this has been sent.
            server
        };
        let mut play = std::pin::pin!(play);
        let mut confirmed = Box::pin(client.confirmed(number));
        // Without a receiver, the server cannot send all of it.
        let stalled =
            timeout(Duration::from_millis(200), async { tokio::join!(play.as_mut(), confirmed.as_mut()) });
        assert!(stalled.await.is_err());
        let receive = async {
            let mut count = 0;
            while count < 200 {
                let mut batch = Vec::new();
                client.receive(&mut batch).await.unwrap();
                assert!(batch.len() < 40, "{}", batch.len());
                assert!(batch.iter().all(|bytes| bytes.len() == 100_000));
                count += batch.len();
            }
        };
        let (_server, confirmed, ()) = tokio::join!(play, confirmed, receive);
        assert_eq!(confirmed, Ok(()));
    });
}

#[test]
fn requests_get_their_own_answers() {
    run(async {
        let (client, mut server) = connected().await;
        let play = async {
            server.expect("SUB inbox.").await;
            let sid = server.expect("\r\n").await.split_once(' ').unwrap().1.to_owned();
            let reply = server.expect(" 1\r\nq\r\n").await;
            let reply = reply.strip_prefix("PUB api ").unwrap();
            // A message of another subscription, and one that nobody asked for.
            server.send("MSG a 2 1\r\nx\r\nMSG a 99 1\r\ny\r\n").await;
            server.send(&format!("HMSG {reply} {sid} 18 19\r\nNATS/1.0\r\nK: v\r\n\r\nz\r\n")).await;
            server.expect(&format!("UNSUB {sid}\r\n")).await;
            server.expect("SUB inbox.").await;
            let sid = server.expect("\r\n").await.split_once(' ').unwrap().1.to_owned();
            server.expect("HPUB api inbox.").await;
            server.expect(" 18 19\r\nNATS/1.0\r\nK: v\r\n\r\nq\r\n").await;
            server.send(&format!("HMSG r {sid} 16 16\r\nNATS/1.0 503\r\n\r\n\r\n")).await;
            server
        };
        let ask = async {
            let answer = client.request("api", &[], b"q").await.unwrap();
            assert_eq!((&answer.payload[..], answer.headers().last("K")), (&b"z"[..], Some("v")));
            assert_eq!(client.request("api", &[("K", "v")], b"q").await, Err(RequestError::NoResponders));
        };
        let (server, ()) = tokio::join!(play, ask);
        let mut batch = Vec::new();
        client.receive(&mut batch).await.unwrap();
        assert_eq!(texts(&batch), ["x"]);
        assert_eq!(client.request("api", &[], &[0; 2001]).await, Err(RequestError::TooLarge));
        drop(server);
        assert!(matches!(client.request("api", &[], b"q").await, Err(RequestError::Lost(_))));
    });
}

#[test]
fn answers_do_not_wait_for_a_receiver() {
    run(async {
        let (client, mut server) = connected().await;
        let payload = "x".repeat(100_000);
        let serve = async {
            for _ in 0..30 {
                let head = server.expect(" 0\r\n\r\n").await;
                let inbox = head.rsplit(' ').next().unwrap().to_owned();
                let sid = head.rsplit_once("SUB inbox").unwrap().1.lines().next().unwrap();
                let sid = sid.rsplit(' ').next().unwrap().to_owned();
                server.send(&format!("MSG {inbox} {sid} {}\r\n{payload}\r\n", payload.len())).await;
            }
        };
        // Nobody takes other messages of this connection.
        let ask = async {
            for _ in 0..30 {
                assert_eq!(client.request("a", &[], b"").await.unwrap().payload.len(), 100_000);
            }
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn messages_with_headers_are_stamped() {
    run(async {
        let (client, mut server) = connected().await;
        client.stamp_with(|message| message.headers().last("K").map(|value| Bytes::from(value.to_owned())));
        let plain = "MSG a 2 1\r\nx\r\nHMSG a 2 12 13\r\nNATS/1.0\r\n\r\ny\r\n";
        server
            .send(&format!("{plain}HMSG a 2 18 19\r\nNATS/1.0\r\nK: v\r\n\r\nz\r\nMSG a 2 1\r\nw\r\n"))
            .await;
        let mut received = Vec::new();
        while received.len() < 3 {
            let mut batch = Vec::new();
            client.receive(&mut batch).await.unwrap();
            received.append(&mut batch);
        }
        assert_eq!(texts(&received), ["x", "v", "w"]);
    });
}

#[test]
fn violations_can_fail_alone() {
    run(async {
        let (client, mut server) = connected().await;
        client.keep_violations();
        server.send("-ERR 'Permissions Violation for Publish to \"a\"'\r\nPONG\r\n").await;
        assert_eq!(client.violation().await.unwrap(), "nats: Permissions Violation for Publish to \"a\"");
        assert_eq!(client.confirm().await, Ok(()));
        server.send("-ERR 'Maximum Payload Violation'\r\n").await;
        assert_eq!(client.violation().await, Err(LinkError::new("nats: Maximum Payload Violation")));
    });
}
