//! Measures what a batch saves: sends 128 bytes to each of 256 connections, with one system call per
//! connection and with one per batch.
//!
//! Run it with `cargo run --release -p deeperhub-uring --example broadcast`. `ROUNDS` sets the
//! number of rounds, by default 300.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use deeperhub_uring::{Batcher, MAX_BATCH, SendOp};

const MESSAGE: [u8; 128] = [b'x'; 128];

pub(crate) fn main() -> io::Result<()> {
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300_u32);
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

    // Each round measures all sizes, so that other load on the machine affects all of them alike.
    let sizes = [1, 2, 4, 8, 16, 64, 256];
    let mut alone = Duration::ZERO;
    let mut batched = [Duration::ZERO; 7];
    for _ in 0..rounds {
        let start = Instant::now();
        for mut socket in &sockets {
            all(socket.write(&MESSAGE))?;
        }
        alone += start.elapsed();
        read_all(&mut readers)?;
        for (size, time) in sizes.into_iter().zip(&mut batched) {
            let start = Instant::now();
            for batch in sockets.chunks(size) {
                let sends = batch.iter().map(|socket| SendOp { to: socket.as_fd(), bytes: &MESSAGE });
                batcher.send(sends).try_for_each(all)?;
            }
            *time += start.elapsed();
            read_all(&mut readers)?;
        }
    }
    let messages = rounds * MAX_BATCH as u32;
    println!("a send for each: {:?} a message", alone / messages);
    for (size, time) in sizes.into_iter().zip(batched) {
        println!("batches of {size:3}: {:?} a message", time / messages);
    }
    Ok(())
}

fn read_all(readers: &mut [TcpStream]) -> io::Result<()> {
    readers.iter_mut().try_for_each(|reader| reader.read_exact(&mut [0; MESSAGE.len()]))
}

/// Fails unless the whole message was sent. These sockets have room for many messages.
fn all(sent: io::Result<usize>) -> io::Result<()> {
    match sent? {
        sent if sent == MESSAGE.len() => Ok(()),
        _ => Err(ErrorKind::WriteZero.into()),
    }
}
