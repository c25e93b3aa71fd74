//! Liveness, slow readers, half-closed connections, reconnects and memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::attack::{ConnectOptions, Limits, close_reason, ends};
use crate::healthy::HealthyClients;
use crate::scenario::{BUDGET, Scenario, ServerSetup};
use crate::support::{Server, WAIT_TIMEOUT, http, metric, wait_for};
use crate::wire::{Duplex, RSV1, TEXT, Wire, masked, parse, upgrade};

const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

const PLAIN_SETUP: ServerSetup = ServerSetup {
    has_two_workers: false,
    has_io_uring: true,
    has_tls: false,
    is_compressed: false,
    has_tokens: false,
};

/// Connects with a small receive buffer, so that messages wait at the server.
async fn with_small_buffer(server: &Server) -> Box<dyn Duplex> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let stream = socket.connect(server.clients).await.unwrap();
    let wire = Wire::over(Box::new(stream), &upgrade(server.clients, &[])).await;
    wire.unwrap_or_else(|refusal| panic!("{refusal}")).into_parts().0
}

/// Reads `rate` bytes per second and answers pings as it reads them, until a text frame of `length`
/// bytes or the end.
async fn read_at(stream: &mut Box<dyn Duplex>, rate: usize, length: usize) -> Result<(), String> {
    let (mut read, mut buffer) = (Vec::new(), vec![0; rate / 20]);
    let began = Instant::now();
    loop {
        let len = wait_for("bytes", stream.read(&mut buffer)).await.map_err(|error| {
            format!("after {:.1} s and {} bytes: {error}", began.elapsed().as_secs_f64(), read.len())
        })?;
        read.extend_from_slice(&buffer[..len]);
        while let Some((frame, len)) = parse(&read) {
            match frame.first {
                CLOSE => {
                    let seconds = began.elapsed().as_secs_f64();
                    return Err(format!("after {seconds:.1} s it was {}", close_reason(&frame)));
                }
                TEXT if frame.payload.len() == length => return Ok(()),
                PING => {
                    // A lost connection shows at the next read.
                    let _ = stream.write_all(&masked(PONG, &frame.payload)).await;
                }
                _ => {}
            }
            read.drain(..len);
        }
        if len == 0 {
            return Err(format!("ended after {} bytes of a frame", read.len()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Flags for frequent pings. A ping queues behind unread bytes of a slow reader, so only read bytes
/// prove liveness in time.
const SHORT_PINGS: [&str; 4] = ["--ping-interval", "500ms", "--pong-timeout", "1500ms"];

fn long_echo(length: usize) -> String {
    let (head, tail) = (r#"{"type":"echo","data":""#, r#""}"#);
    format!("{head}{}{tail}", "l".repeat(length - head.len() - tail.len()))
}

/// Sends an echo of `length` bytes and reads the reply at `rate`.
async fn check_slow_reader(length: usize, rate: usize) {
    let flags = ["--max-message-bytes", "1048576", "--max-queue-bytes", "8388608"];
    let server = Server::start(&[&flags[..], &SHORT_PINGS].concat());
    let readers = join_all((0..4).map(|_| async {
        let mut stream = with_small_buffer(&server).await;
        stream.write_all(&masked(TEXT, long_echo(length).as_bytes())).await.unwrap();
        read_at(&mut stream, rate, length).await
    }));
    for result in readers.await {
        result.unwrap_or_else(|error| panic!("a reader of {rate} bytes a second: {error}"));
    }
    let timeouts = metric(&server, "deeperhub_pong_timeouts_total").await;
    assert_eq!(timeouts, 0, "closed with 4200 although they read {rate} bytes a second");
}

#[tokio::test]
async fn a_slow_reader_of_a_long_message_is_alive_while_bytes_are_taken() {
    check_slow_reader(1 << 20, 160_000).await;
}

#[tokio::test]
async fn a_slow_reader_of_the_kernels_send_buffer_is_alive_while_bytes_are_taken() {
    check_slow_reader(100_000, 20_000).await;
}

#[tokio::test]
#[ignore = "long: a minute"]
async fn a_reader_of_20_kilobytes_per_second_receives_a_megabyte() {
    let flags = ["--max-message-bytes", "1048576", "--max-queue-bytes", "8388608"];
    let server = Server::start(&flags);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, long_echo(1 << 20).as_bytes())).await.unwrap();
    read_at(&mut stream, 20_000, 1 << 20).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_slow_subscriber_that_keeps_up_is_alive() {
    let server = Server::start(&SHORT_PINGS);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, br#"{"type":"subscribe","data":{"topic":"t"}}"#)).await.unwrap();
    let publish = async {
        for _ in 0..50 {
            let message = format!("\"{}\"", "p".repeat(1500));
            http(server.api(), "POST /v1/topics/t/messages", &[], &message).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The subscriber reads up to this message.
        http(server.api(), "POST /v1/topics/t/messages", &[], &format!("\"{}\"", "p".repeat(3000))).await;
    };
    let last = r#"{"type":"message","data":{"topic":"t","message":""}}"#.len() + 3000;
    let (read, ()) = tokio::join!(read_at(&mut stream, 20_000, last), publish);
    read.unwrap_or_else(|error| panic!("a subscriber that keeps up: {error}"));
}

/// Healthy clients never answer pings, but send messages.
#[tokio::test]
async fn dead_clients_are_closed_with_4200_and_sending_clients_are_not() {
    let server = Server::start(&["--ping-interval", "200ms", "--pong-timeout", "600ms"]);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(ConnectOptions::plain(server.clients).connect().await.unwrap());
    }
    // These clients' sockets are full.
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let mut stream = with_small_buffer(&server).await;
        let echoes = masked(TEXT, long_echo(60_000).as_bytes()).repeat(12);
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&echoes)).await;
        stuck.push(stream);
    }
    let healthy = HealthyClients::start(&[ConnectOptions::plain(server.clients)], 2, 0).unwrap();
    let began = Instant::now();
    wait_for("the end of dead clients", async {
        while metric(&server, "deeperhub_connections_active").await > 2 {
            assert!(!healthy.has_failed(), "a healthy client failed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    println!("dead clients were closed after {:?}", began.elapsed());
    // Several ping intervals.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let report = healthy.stop().unwrap_or_else(|error| panic!("a client that sends was closed: {error}"));
    println!("{report}");
    for mut silent in silent {
        let (code, reason) = silent.closed().await;
        assert_eq!(code, 4200, "{reason}");
    }
}

/// Sends messages, half-closes at once, and expects all replies in order and then the end.
async fn check_half_close(options: &ConnectOptions, echo_bytes: usize) -> Result<(), String> {
    const MESSAGES: usize = 20;
    let wire = options.connect().await?;
    let (mut stream, mut read) = wire.into_parts();
    let mut all = Vec::new();
    let mut expected = Vec::new();
    for n in 0..MESSAGES {
        let echo = long_echo(echo_bytes).replacen("{", &format!(r#"{{"id":{n},"#), 1);
        all.extend(options.frame(&echo));
        expected.push(format!(r#"{{"type":"echo","id":{n},"#));
        let publish = format!(r#"{{"type":"publish","id":"p{n}","data":{{"topic":"half","message":{n}}}}}"#);
        all.extend(options.frame(&publish));
        expected.push(format!(r#"{{"type":"published","id":"p{n}","#));
    }
    let wrote = async {
        let (mut from, mut to) = tokio::io::split(&mut stream);
        let write = async {
            // A write error shows as missing replies.
            let _ = to.write_all(&all).await;
            let _ = to.shutdown().await;
        };
        let (read_all, ()) = tokio::join!(from.read_to_end(&mut read), write);
        read_all
    };
    let ended = tokio::time::timeout(WAIT_TIMEOUT, wrote).await;
    let mut expected = expected.into_iter();
    let mut answers = 0;
    let mut rest = &read[..];
    while let Some((frame, len)) = parse(rest) {
        rest = &rest[len..];
        match frame.first & !RSV1 {
            TEXT => {
                let expected = expected.next().unwrap_or_else(|| "nothing".to_owned());
                let text = frame.text();
                if !text.starts_with(&expected) {
                    return Err(format!("response {answers} was {:?}, not {expected}", ends(&text)));
                }
                answers += 1;
            }
            CLOSE => println!("half-closed, and {}", close_reason(&frame)),
            _ => {}
        }
    }
    if answers < 2 * MESSAGES {
        let ended = ended.map(|ended| ended.map(|_| ())).map_err(|_| "no end in time");
        return Err(format!("{answers} of {} replies came, then {ended:?}", 2 * MESSAGES));
    }
    match ended {
        Ok(_) => Ok(()),
        Err(_) => Err("all replies came, but never the end".to_owned()),
    }
}

async fn check_half_closes(setup: ServerSetup) {
    let limits = Limits { rate: 0.0, ..Limits::default() };
    let scenario = Scenario::new(setup, &["--rate-limit", "0"], BUDGET, limits).await;
    let options = scenario.options();
    for echo_bytes in [100, 30_000] {
        let results = join_all((0..20).map(|_| check_half_close(&options, echo_bytes))).await;
        let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(
            failures.is_empty(),
            "echoes of {echo_bytes} bytes, {setup}: {} of 20 clients that half-closed: {failures:?}",
            failures.len()
        );
    }
}

#[tokio::test]
async fn a_client_that_half_closes_receives_all_replies() {
    check_half_closes(PLAIN_SETUP).await;
}

#[tokio::test]
async fn a_client_that_half_closes_over_tls_receives_all_replies() {
    check_half_closes(ServerSetup {
        has_tls: true,
        is_compressed: true,
        has_two_workers: true,
        ..PLAIN_SETUP
    })
    .await;
}

/// Clients that read everything, with a queue limit below the size of one burst.
#[tokio::test]
async fn clients_that_read_are_not_closed_with_a_short_queue() {
    const ROUNDS: usize = 20;
    const BURST: usize = 10;
    let server = Server::start(&["--max-queue-bytes", "4096", "--rate-limit", "0"]);
    let options = ConnectOptions::plain(server.clients);
    let clients = (0..8).map(async |n| {
        let mut wire = options.connect().await?;
        wire.send(TEXT, br#"{"type":"subscribe","data":{"topic":"short"}}"#).await;
        let (mut echoes, mut deliveries) = (0, 0);
        for round in 0..ROUNDS {
            let length = if round % 2 == 0 { 3000 } else { 60_000 };
            let mut burst = masked(TEXT, long_echo(length).as_bytes()).repeat(BURST);
            let publish = r#"{"type":"publish","data":{"topic":"short","message":"#;
            burst.extend(masked(TEXT, format!("{publish}\"{}\"}}}}", "q".repeat(2000)).as_bytes()));
            wire.write(&burst).await;
            while echoes < (round + 1) * BURST {
                let Some(frame) = wire.receive().await else {
                    return Err(format!("client {n} ended after {echoes} echoes"));
                };
                if frame.first == CLOSE {
                    return Err(format!(
                        "client {n} was {} after {echoes} echoes and {deliveries} deliveries",
                        close_reason(&frame)
                    ));
                }
                echoes += usize::from(frame.payload.starts_with(br#"{"type":"echo""#));
                deliveries += usize::from(frame.payload.starts_with(br#"{"type":"message""#));
            }
        }
        Ok(())
    });
    let failures: Vec<_> = join_all(clients).await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{} of 8 clients that read: {failures:?}", failures.len());
}

/// Reads at `rate` to the end and returns the goodbye and the close reason.
async fn read_goodbye(stream: &mut Box<dyn Duplex>, rate: usize) -> (Option<String>, Option<String>) {
    let (mut read, mut buffer) = (Vec::new(), vec![0; rate / 20]);
    let (mut goodbye, mut close) = (None, None);
    loop {
        let len = wait_for("bytes", stream.read(&mut buffer)).await.unwrap_or(0);
        read.extend_from_slice(&buffer[..len]);
        while let Some((frame, len)) = parse(&read) {
            read.drain(..len);
            match frame.first {
                CLOSE => close = Some(close_reason(&frame)),
                TEXT if frame.payload.starts_with(br#"{"type":"goodbye""#) => goodbye = Some(frame.text()),
                _ => {}
            }
        }
        if len == 0 {
            return (goodbye, close);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_slow_consumer_that_reads_on_receives_goodbye_and_close() {
    let server = Server::start(&["--max-queue-bytes", "200000"]);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, br#"{"type":"subscribe","data":{"topic":"t"}}"#)).await.unwrap();
    let flood = async {
        let message = format!("\"{}\"", "f".repeat(30_000));
        while metric(&server, "deeperhub_slow_consumers_total").await == 0 {
            http(server.api(), "POST /v1/topics/t/messages", &[], &message).await;
        }
    };
    let ((goodbye, close), ()) = tokio::join!(read_goodbye(&mut stream, 100_000), wait_for("a close", flood));
    let (goodbye, close) = (goodbye.unwrap_or_default(), close.unwrap_or_default());
    assert!(goodbye.contains("1013"), "the goodbye was {goodbye:?}, the close {close:?}");
    assert!(close.contains("1013"), "the goodbye was {goodbye:?}, the close {close:?}");
}

#[tokio::test]
async fn a_disconnected_slow_reader_receives_goodbye_and_close() {
    let server = Server::start(&["--max-queue-bytes", "8388608"]);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, long_echo(60_000).as_bytes()).repeat(6)).await.unwrap();
    wait_for("the echoes", async {
        while metric(&server, "deeperhub_messages_received_total{type=\"echo\"}").await < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let clients = http(server.api(), "GET /v1/clients", &[], "").await.json();
    let id = clients["clients"][0]["client_id"].as_str().expect("the reader is listed");
    let response = http(server.api(), &format!("DELETE /v1/clients/{id}"), &[], "").await;
    assert!(response.status < 300, "{response:?}");
    let (goodbye, close) = read_goodbye(&mut stream, 60_000).await;
    let (goodbye, close) = (goodbye.unwrap_or_default(), close.unwrap_or_default());
    assert!(goodbye.contains("4003"), "the goodbye was {goodbye:?}, the close {close:?}");
    assert!(close.contains("4003"), "the goodbye was {goodbye:?}, the close {close:?}");
}

/// Full bursts that one address may use at once for new connections, and bursts refilled per
/// second.
const BURSTS_PER_ADDRESS: f64 = 100.0;
const BURSTS_PER_SECOND: f64 = 20.0;

/// Clients of one address reconnect whenever they have used up their burst.
#[tokio::test]
async fn reconnecting_does_not_refill_the_burst() {
    const CLIENTS: usize = 4;
    const RECONNECT_TIME: Duration = Duration::from_secs(2);
    let server = Server::start(&[]);
    let options = Arc::new(ConnectOptions::plain(server.clients));
    let burst = options.limits.burst as usize;
    let began = Instant::now();
    let clients = (0..CLIENTS).map(|_| {
        let options = Arc::clone(&options);
        async move {
            let mut answers = HashMap::<&str, usize>::new();
            while began.elapsed() < RECONNECT_TIME {
                // Retry a moment later.
                let Ok(mut wire) = options.connect().await else {
                    *answers.entry("refused connection").or_default() += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                *answers.entry("connection").or_default() += 1;
                wire.write(&masked(TEXT, br#"{"type":"ping"}"#).repeat(burst)).await;
                for _ in 0..burst {
                    let Some(frame) = wire.receive().await.filter(|frame| frame.first == TEXT) else { break };
                    let is_pong = frame.payload == br#"{"type":"pong"}"#;
                    *answers.entry(if is_pong { "pong" } else { "error" }).or_default() += 1;
                }
            }
            answers
        }
    });
    let mut all = HashMap::<&str, usize>::new();
    for answers in join_all(clients).await {
        for (what, count) in answers {
            *all.entry(what).or_default() += count;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let bursts = BURSTS_PER_ADDRESS + BURSTS_PER_SECOND * seconds;
    let allowed = bursts * options.limits.burst + CLIENTS as f64 * options.limits.rate * seconds;
    let taken = all.get("pong").copied().unwrap_or_default();
    println!("in {seconds:.1} s: {all:?}; allowed are {allowed:.0} messages");
    assert!(
        taken as f64 <= 1.1 * allowed,
        "{CLIENTS} reconnecting clients of one address sent {taken} messages in {seconds:.1} s; bursts of new \
         connections and the rate allow {allowed:.0}: {all:?}"
    );
}

/// Silent clients beside attackers that fill the memory budget.
#[tokio::test]
async fn memory_is_shed_from_attackers_and_not_from_silent_clients() {
    use crate::attack::{Attack, Attackers};
    const BUDGET: u64 = 160 << 20;
    let setup = ServerSetup { has_two_workers: true, is_compressed: true, ..PLAIN_SETUP };
    // The queue limits allow far more than the budget.
    let flags = ["--max-queue-bytes", "67108864"];
    let scenario = Scenario::new(setup, &flags, BUDGET, Limits::default()).await;
    let options = scenario.options();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(options.connect().await.unwrap());
    }
    let healthy =
        HealthyClients::start(std::slice::from_ref(&options), 4, 2).unwrap_or_else(|error| panic!("{error}"));
    let mut attackers = Attackers::default();
    attackers.spawn(Attack::UnreadFanOut, std::slice::from_ref(&options), 40);
    attackers.spawn(Attack::UnreadEchoes, std::slice::from_ref(&options), 40);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end && !healthy.has_failed() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counters = attackers.stop().await.unwrap_or_else(|error| panic!("{error}"));
    let report = healthy.stop();
    let peak = scenario.server.peak_resident_bytes();
    let sheds = metric(&scenario.server, "deeperhub_memory_sheds_total").await;
    let scene = format!("{counters}; {sheds} shed; peak {} MiB of {} MiB", peak >> 20, BUDGET >> 20);
    println!("{scene}");
    let mut lost = Vec::new();
    for (n, wire) in silent.iter_mut().enumerate() {
        let echo = format!(r#"{{"type":"echo","id":{n},"data":"still here"}}"#);
        wire.send(TEXT, echo.as_bytes()).await;
        match wire.receive().await {
            Some(frame) if frame.first == TEXT && frame.text() == echo => {}
            Some(frame) if frame.first == CLOSE => lost.push(close_reason(&frame)),
            other => lost.push(other.map_or("ended".to_owned(), |frame| ends(&frame.text()))),
        }
    }
    assert!(lost.is_empty(), "{} of 20 silent clients were closed: {lost:?}; {scene}", lost.len());
    report.unwrap_or_else(|error| panic!("{error}; {scene}"));
    assert!(peak <= BUDGET / 10 * 11, "peak memory is over --max-memory + 10 %: {scene}");
    drop(silent);
    scenario.check_cleanup(&scene).await;
}
