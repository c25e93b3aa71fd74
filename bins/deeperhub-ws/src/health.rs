//! Asks a running server whether it is ready, as container health checks do.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::settings::Settings;
use crate::values::{Address, Host, Switchable};

/// For connecting, asking and reading together.
const TIMEOUT: Duration = Duration::from_secs(3);
/// More than any status line.
const MAX_STATUS_LINE: u64 = 1024;

/// Asks the server whose API listens as `listen` says, and tells the answer.
pub(crate) fn check(listen: Option<Switchable<Address>>) -> ExitCode {
    let default = Address { host: Host::LOOPBACK, port: Settings::API_PORT };
    let address = match listen.unwrap_or(Switchable::On(default)) {
        Switchable::Off => {
            return not_ready("the server API is off (api_listen), so there is nothing to ask");
        }
        Switchable::On(Address { port: 0, .. }) => {
            return not_ready(
                "the server API's port is 0 (api_listen); give the port that the server printed",
            );
        }
        Switchable::On(address) => address,
    };
    match address.resolve().and_then(|socket| status(to_connect(socket), &address, TIMEOUT)) {
        Ok(200) => {
            let _ = writeln!(io::stdout(), "ready");
            ExitCode::SUCCESS
        }
        Ok(status) => not_ready(&format!("{address} answered {status}")),
        Err(error) => not_ready(&format!("{address}: {error}")),
    }
}

fn not_ready(reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "not ready: {reason}");
    ExitCode::from(crate::FAILED)
}

/// A server that listens on every interface is asked on loopback.
pub(crate) fn to_connect(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

/// The status of `GET /health/ready`.
fn status(server: SocketAddr, host: &Address, timeout: Duration) -> io::Result<u16> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET /health/ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while !line.contains(&b'\n') && (line.len() as u64) < MAX_STATUS_LINE {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => line.extend(buffer.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    parse_status(&line)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not one of an HTTP server"))
}

/// `HTTP/1.1 200 OK`: 200.
fn parse_status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Asks a server that answers like this once.
    fn ask(answer: &'static [u8], timeout: Duration) -> io::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = listener.local_addr()?;
        let address = Address { host: Host::Ip(server.ip()), port: server.port() };
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte)?;
                request.extend(byte);
            }
            stream.write_all(answer)?;
            if answer.is_empty() {
                // Stays silent until the other side goes.
                let _ = stream.read(&mut byte);
            }
            io::Result::Ok(String::from_utf8_lossy(&request).into_owned())
        });
        let status = status(server, &address, timeout);
        let request = serving.join().unwrap()?;
        assert_eq!(
            request,
            format!("GET /health/ready HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")
        );
        status
    }

    #[test]
    fn the_status_is_read_from_the_answer() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], Some(200)),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Some(503)),
            (b"HTTP/1.1 200\r\n", Some(200)),
            (b"SSH-2.0-OpenSSH\r\n", None),
            (b"HTTP/1.1 OK\r\n", None),
            (b"\xFF\xFE\n", None),
            (b"HTTP/1.1 ", None),
        ] {
            assert_eq!(ask(answer, TIMEOUT).ok(), expected, "{}", answer.escape_ascii());
        }
    }

    #[test]
    fn a_silent_server_is_not_waited_for_without_end() {
        let error = ask(b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_server_on_every_interface_is_asked_on_loopback() {
        for (listen, expected) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.1.2.3:1", "10.1.2.3:1")]
        {
            assert_eq!(to_connect(listen.parse().unwrap()).to_string(), expected);
        }
    }
}
