//! Compares sends with one system call per connection and sends in batches. Each round sends 128
//! bytes to each of 256 connections.
//!
//! Run it with `cargo run --release -p deeperhub-uring --example broadcast`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use deeperhub_uring::{Batcher, MAX_BATCH, SendOp};

const ROUNDS: u32 = 300;
const MESSAGE: [u8; 128] = [b'x'; 128];

fn main() -> io::Result<()> {
    let mut batcher = Batcher::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sockets = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..MAX_BATCH {
        readers.push(TcpStream::connect(listener.local_addr()?)?);
        let socket = listener.accept()?.0;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }

    // Each round measures all variants, so that other load on the machine affects all of them
    // alike.
    let batch_sizes = [1, 2, 4, 8, 16, 64, 256];
    let mut single_time = Duration::ZERO;
    let mut batch_times = [Duration::ZERO; 7];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for mut socket in &sockets {
            check_complete(socket.write(&MESSAGE))?;
        }
        single_time += start.elapsed();
        read_all(&mut readers)?;
        for (size, time) in batch_sizes.into_iter().zip(&mut batch_times) {
            let start = Instant::now();
            for batch in sockets.chunks(size) {
                let sends = batch.iter().map(|socket| SendOp { to: socket.as_fd(), bytes: &MESSAGE });
                for sent in batcher.send(sends) {
                    check_complete(sent)?;
                }
            }
            *time += start.elapsed();
            read_all(&mut readers)?;
        }
    }
    let messages = ROUNDS * MAX_BATCH as u32;
    println!("one call per message: {:?} per message", single_time / messages);
    for (size, time) in batch_sizes.into_iter().zip(batch_times) {
        println!("batches of {size:3}: {:?} per message", time / messages);
    }
    Ok(())
}

/// Reads one message from each connection.
fn read_all(readers: &mut [TcpStream]) -> io::Result<()> {
    for reader in readers {
        reader.read_exact(&mut [0; MESSAGE.len()])?;
    }
    Ok(())
}

/// Checks that the socket accepted the whole message. Its buffer has space for many messages.
fn check_complete(sent: io::Result<usize>) -> io::Result<()> {
    if sent? == MESSAGE.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}
