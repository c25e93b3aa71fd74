//! Who counts as alive, what reaches those who read slowly or have said their last word, and what reconnecting is worth.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::attack::{Entrance, Limits, close_reason, ends};
use crate::healthy::Healthy;
use crate::stage::{BUDGET, Stage, Variation};
use crate::support::{PATIENCE, Server, http, metric, patiently};
use crate::wire::{Duplex, RSV1, TEXT, Wire, masked, parse, upgrade};

const CLOSE: u8 = 0x88;

const PLAIN: Variation = Variation {
    has_two_workers: false,
    has_io_uring: true,
    has_tls: false,
    is_compressed: false,
    has_tokens: false,
};

/// A connection with a small receive buffer, so that what is sent to it waits at the server.
async fn with_small_buffer(server: &Server) -> Box<dyn Duplex> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let stream = socket.connect(server.clients).await.unwrap();
    let wire = Wire::over(Box::new(stream), &upgrade(server.clients, &[])).await;
    wire.unwrap_or_else(|refusal| panic!("{refusal}")).into_parts().0
}

/// Reads so many bytes a second and answers nothing, until a frame of text is as long as this, or the end.
async fn read_at(stream: &mut Box<dyn Duplex>, rate: usize, length: usize) -> Result<(), String> {
    let (mut read, mut buffer) = (Vec::new(), vec![0; rate / 20]);
    let began = Instant::now();
    loop {
        let len = patiently("bytes", stream.read(&mut buffer)).await.map_err(|error| {
            format!("after {:.1} s and {} bytes: {error}", began.elapsed().as_secs_f64(), read.len())
        })?;
        read.extend_from_slice(&buffer[..len]);
        // Whole frames of the server ahead of the long one are short.
        while let Some((frame, len)) = parse(&read) {
            match frame.first {
                CLOSE => {
                    let seconds = began.elapsed().as_secs_f64();
                    return Err(format!("after {seconds:.1} s it was {}", close_reason(&frame)));
                }
                TEXT if frame.payload.len() == length => return Ok(()),
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

/// Pings that nobody answers: only bytes tell of life.
const IMPATIENT: [&str; 4] = ["--ping-interval", "500ms", "--pong-timeout", "1500ms"];

fn long_echo(length: usize) -> String {
    let (head, tail) = (r#"{"type":"echo","data":""#, r#""}"#);
    format!("{head}{}{tail}", "l".repeat(length - head.len() - tail.len()))
}

/// Sends an echo of `length` bytes and reads it at `rate`.
async fn check_slow_reader(length: usize, rate: usize) {
    let flags = ["--max-message-bytes", "1048576", "--max-queue-bytes", "8388608"];
    let server = Server::start(&[&flags[..], &IMPATIENT].concat());
    let readers = join_all((0..4).map(|_| async {
        let mut stream = with_small_buffer(&server).await;
        stream.write_all(&masked(TEXT, long_echo(length).as_bytes())).await.unwrap();
        read_at(&mut stream, rate, length).await
    }));
    for result in readers.await {
        result.unwrap_or_else(|error| panic!("a reader of {rate} bytes a second: {error}"));
    }
    let timeouts = metric(&server, "deeperhub_pong_timeouts_total").await;
    assert_eq!(timeouts, 0, "readers of {rate} bytes a second were given up");
}

#[tokio::test]
async fn a_long_message_to_a_slow_reader_is_life_as_long_as_any_of_it_is_taken() {
    check_slow_reader(1 << 20, 160_000).await;
}

#[tokio::test]
async fn a_message_in_the_buffers_of_the_system_is_life_as_long_as_any_of_it_is_taken() {
    check_slow_reader(100_000, 20_000).await;
}

#[tokio::test]
#[ignore = "long: a minute"]
async fn a_megabyte_at_20_kilobytes_a_second_is_read_to_its_end() {
    let flags = ["--max-message-bytes", "1048576", "--max-queue-bytes", "8388608"];
    let server = Server::start(&flags);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, long_echo(1 << 20).as_bytes())).await.unwrap();
    read_at(&mut stream, 20_000, 1 << 20).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_subscriber_that_reads_slowly_but_keeps_up_is_not_given_up() {
    let server = Server::start(&IMPATIENT);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, br#"{"type":"subscribe","data":{"topic":"t"}}"#)).await.unwrap();
    let publish = async {
        for _ in 0..50 {
            let message = format!("\"{}\"", "p".repeat(1500));
            http(server.api(), "POST /v1/topics/t/messages", &[], &message).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // What the subscriber waits for.
        http(server.api(), "POST /v1/topics/t/messages", &[], &format!("\"{}\"", "p".repeat(3000))).await;
    };
    let last = r#"{"type":"message","data":{"topic":"t","message":""}}"#.len() + 3000;
    let (read, ()) = tokio::join!(read_at(&mut stream, 20_000, last), publish);
    read.unwrap_or_else(|error| panic!("a subscriber that keeps up: {error}"));
}

/// Healthy clients do not answer pings, but send.
#[tokio::test]
async fn without_a_sign_of_life_a_client_is_given_up_in_time_and_whoever_sends_is_not() {
    let server = Server::start(&["--ping-interval", "200ms", "--pong-timeout", "600ms"]);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(Entrance::plain(server.clients).connect().await.unwrap());
    }
    // The sockets of these are full, and they take nothing.
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let mut stream = with_small_buffer(&server).await;
        let echoes = masked(TEXT, long_echo(60_000).as_bytes()).repeat(12);
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&echoes)).await;
        stuck.push(stream);
    }
    let healthy = Healthy::start(&[Entrance::plain(server.clients)], 2, 0).unwrap();
    let began = Instant::now();
    patiently("the end of those without a sign of life", async {
        while metric(&server, "deeperhub_connections_active").await > 2 {
            assert!(!healthy.has_failed(), "a healthy client failed: {:?}", std::thread::current().id());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    println!("the silent were gone {:?} after the last had come", began.elapsed());
    // Several pings go by.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let report = healthy.stop().unwrap_or_else(|error| panic!("who sends is alive: {error}"));
    println!("{report}");
    for mut silent in silent {
        let (code, reason) = silent.closed().await;
        assert_eq!(code, 4200, "{reason}");
    }
}

/// Sends all and ends its side at once; all answers come, in order, and then the end.
async fn check_half_close(entrance: &Entrance, echo_bytes: usize) -> Result<(), String> {
    const MESSAGES: usize = 20;
    let wire = entrance.connect().await?;
    let (mut stream, mut read) = wire.into_parts();
    let mut all = Vec::new();
    let mut expected = Vec::new();
    for n in 0..MESSAGES {
        let echo = long_echo(echo_bytes).replacen("{", &format!(r#"{{"id":{n},"#), 1);
        all.extend(entrance.frame(&echo));
        expected.push(format!(r#"{{"type":"echo","id":{n},"#));
        let publish = format!(r#"{{"type":"publish","id":"p{n}","data":{{"topic":"half","message":{n}}}}}"#);
        all.extend(entrance.frame(&publish));
        expected.push(format!(r#"{{"type":"published","id":"p{n}","#));
    }
    let wrote = async {
        let (mut from, mut to) = tokio::io::split(&mut stream);
        let write = async {
            // A server that gave the connection up is seen by what it did not answer.
            let _ = to.write_all(&all).await;
            let _ = to.shutdown().await;
        };
        let (read_all, ()) = tokio::join!(from.read_to_end(&mut read), write);
        read_all
    };
    let ended = tokio::time::timeout(PATIENCE, wrote).await;
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
                    return Err(format!("answer {answers} was {:?}, not {expected}", ends(&text)));
                }
                answers += 1;
            }
            CLOSE => println!("half-closed, and {}", close_reason(&frame)),
            _ => {}
        }
    }
    if answers < 2 * MESSAGES {
        let ended = ended.map(|ended| ended.map(|_| ())).map_err(|_| "no end in time");
        return Err(format!("{answers} of {} answers came, then {ended:?}", 2 * MESSAGES));
    }
    match ended {
        Ok(_) => Ok(()),
        Err(_) => Err("all answers came, but never the end".to_owned()),
    }
}

async fn check_half_closes(variation: Variation) {
    let limits = Limits { rate: 0.0, ..Limits::default() };
    let stage = Stage::new(variation, &["--rate-limit", "0"], BUDGET, limits).await;
    let entrance = stage.entrance();
    for echo_bytes in [100, 30_000] {
        let results = join_all((0..20).map(|_| check_half_close(&entrance, echo_bytes))).await;
        let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(
            failures.is_empty(),
            "echoes of {echo_bytes} bytes, {variation}: {} of 20 clients that ended their side behind the last \
             message: {failures:?}",
            failures.len()
        );
    }
}

#[tokio::test]
async fn all_answers_reach_a_client_that_ends_its_side_behind_the_last_message() {
    check_half_closes(PLAIN).await;
}

#[tokio::test]
async fn all_answers_reach_a_client_that_ends_its_side_over_tls() {
    check_half_closes(Variation { has_tls: true, is_compressed: true, has_two_workers: true, ..PLAIN }).await;
}

/// Clients that read all, with queues that hold less than a burst.
#[tokio::test]
async fn nobody_who_reads_is_closed_where_queues_are_short() {
    const ROUNDS: usize = 20;
    const BURST: usize = 10;
    let server = Server::start(&["--max-queue-bytes", "4096", "--rate-limit", "0"]);
    let entrance = Entrance::plain(server.clients);
    let clients = (0..8).map(async |n| {
        let mut wire = entrance.connect().await?;
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

/// Reads at a rate to the end; the code of the goodbye and the close frame.
async fn last_words(stream: &mut Box<dyn Duplex>, rate: usize) -> (Option<String>, Option<String>) {
    let (mut read, mut buffer) = (Vec::new(), vec![0; rate / 20]);
    let (mut goodbye, mut close) = (None, None);
    loop {
        let len = patiently("bytes", stream.read(&mut buffer)).await.unwrap_or(0);
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

/// Too slow for its queue, but it reads all the time.
#[tokio::test]
async fn a_goodbye_and_a_close_frame_reach_a_slow_consumer_that_still_reads() {
    let server = Server::start(&["--max-queue-bytes", "200000"]);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, br#"{"type":"subscribe","data":{"topic":"t"}}"#)).await.unwrap();
    let flood = async {
        let message = format!("\"{}\"", "f".repeat(30_000));
        while metric(&server, "deeperhub_slow_consumers_total").await == 0 {
            http(server.api(), "POST /v1/topics/t/messages", &[], &message).await;
        }
    };
    let ((goodbye, close), ()) = tokio::join!(last_words(&mut stream, 100_000), patiently("a close", flood));
    let (goodbye, close) = (goodbye.unwrap_or_default(), close.unwrap_or_default());
    assert!(goodbye.contains("1013"), "the goodbye was {goodbye:?}, the close {close:?}");
    assert!(close.contains("1013"), "the goodbye was {goodbye:?}, the close {close:?}");
}

#[tokio::test]
async fn a_goodbye_and_a_close_frame_reach_a_slow_reader_that_is_disconnected() {
    let server = Server::start(&["--max-queue-bytes", "8388608"]);
    let mut stream = with_small_buffer(&server).await;
    stream.write_all(&masked(TEXT, long_echo(60_000).as_bytes()).repeat(6)).await.unwrap();
    patiently("the echoes", async {
        while metric(&server, "deeperhub_messages_received_total{type=\"echo\"}").await < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let clients = http(server.api(), "GET /v1/clients", &[], "").await.json();
    let id = clients["clients"][0]["client_id"].as_str().expect("the reader is listed");
    let answer = http(server.api(), &format!("DELETE /v1/clients/{id}"), &[], "").await;
    assert!(answer.status < 300, "{answer:?}");
    let (goodbye, close) = last_words(&mut stream, 60_000).await;
    let (goodbye, close) = (goodbye.unwrap_or_default(), close.unwrap_or_default());
    assert!(goodbye.contains("4003"), "the goodbye was {goodbye:?}, the close {close:?}");
    assert!(close.contains("4003"), "the goodbye was {goodbye:?}, the close {close:?}");
}

/// Clients of one address that have used up their burst come back for another one, over and over.
#[tokio::test]
async fn reconnecting_earns_no_more_messages_than_staying() {
    const CLIENTS: usize = 4;
    const TIME: Duration = Duration::from_secs(2);
    let server = Server::start(&[]);
    let entrance = Arc::new(Entrance::plain(server.clients));
    let burst = entrance.limits.burst as usize;
    let began = Instant::now();
    let clients = (0..CLIENTS).map(|_| {
        let entrance = Arc::clone(&entrance);
        async move {
            let mut answers = HashMap::<&str, usize>::new();
            while began.elapsed() < TIME {
                // Whoever is refused may come a moment later.
                let Ok(mut wire) = entrance.connect().await else {
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
    let staying = CLIENTS as f64 * (entrance.limits.burst + entrance.limits.rate * seconds);
    let taken = all.get("pong").copied().unwrap_or_default();
    println!("in {seconds:.1} s: {all:?}; {CLIENTS} clients that stay may send {staying:.0}");
    assert!(
        taken as f64 <= 2.0 * staying,
        "{CLIENTS} clients of one address that reconnect were answered {taken} messages in {seconds:.1} s, where \
         {staying:.0} is what such clients may send that stay: {all:?}"
    );
}

/// Clients that do nothing, beside others that make the server take all the memory that it may have.
#[tokio::test]
async fn those_who_use_up_memory_pay_and_the_silent_do_not() {
    use crate::attack::{Attack, Crowd};
    const BUDGET: u64 = 160 << 20;
    let variation = Variation { has_two_workers: true, is_compressed: true, ..PLAIN };
    // Far more than memory may wait for each of them.
    let flags = ["--max-queue-bytes", "67108864"];
    let stage = Stage::new(variation, &flags, BUDGET, Limits::default()).await;
    let entrance = stage.entrance();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(entrance.connect().await.unwrap());
    }
    let healthy =
        Healthy::start(std::slice::from_ref(&entrance), 4, 2).unwrap_or_else(|error| panic!("{error}"));
    let mut crowd = Crowd::default();
    crowd.gather(Attack::UnreadFanOut, std::slice::from_ref(&entrance), 40);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end && !healthy.has_failed() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let tally = crowd.disperse().await.unwrap_or_else(|error| panic!("{error}"));
    let report = healthy.stop();
    let peak = stage.server.peak_resident_bytes();
    let sheds = metric(&stage.server, "deeperhub_memory_sheds_total").await;
    let scene = format!("{tally}; {sheds} shed; peak {} MiB of {} MiB", peak >> 20, BUDGET >> 20);
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
    assert!(lost.is_empty(), "{} of 20 silent clients paid: {lost:?}; {scene}", lost.len());
    report.unwrap_or_else(|error| panic!("{error}; {scene}"));
    assert!(peak <= BUDGET / 10 * 11, "memory is over its budget by more than a tenth: {scene}");
    drop(silent);
    stage.check_aftermath(&scene).await;
}
