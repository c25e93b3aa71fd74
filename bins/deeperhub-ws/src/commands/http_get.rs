//! One request to the server API of a running server, for the commands that look at it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use deeperhub_security::Secret;

use deeperhub_args::Address;

/// More than any answer.
const MAX_ANSWER: usize = 4 << 20;

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Asks for `path`, and waits at most `timeout` in all.
///
/// # Errors
///
/// Nobody answers in time, or (`InvalidData`) not as an HTTP server does.
pub(crate) fn get(
    address: &Address,
    path: &str,
    key: Option<&Secret>,
    timeout: Duration,
) -> io::Result<Answer> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&to_connect(address.resolve()?), timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n").into_bytes();
    if let Some(key) = key {
        request.extend_from_slice(b"Authorization: Bearer ");
        request.extend_from_slice(key.expose());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request)?;
    parse(&read(stream, deadline)?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not one of an HTTP server"))
}

/// A server that listens on every interface is asked on loopback.
fn to_connect(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

/// All that comes: the server ends the connection behind its answer, as it is asked to.
fn read(mut stream: TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while answer.len() < MAX_ANSWER {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend(buffer.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = head.parse(answer) else { return None };
    Some(Answer { status: head.code?, body: answer.get(length..)?.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use deeperhub_args::Host;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Asks a server that answers like this once.
    fn ask(answer: &'static [u8], key: Option<&Secret>, timeout: Duration) -> (io::Result<Answer>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let address = Address { host: Host::Ip(server.ip()), port: server.port() };
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer).unwrap();
            if answer.is_empty() {
                // Stays silent until the other side goes.
                let _ = stream.read(&mut byte);
            }
            String::from_utf8_lossy(&request).into_owned()
        });
        let answer = get(&address, "/x", key, timeout);
        let host = format!("Host: {server}\r\n");
        (answer, serving.join().unwrap().replace(&host, ""))
    }

    #[test]
    fn status_and_body_are_read_from_the_answer() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..], Some((200, "{}"))),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Some((503, ""))),
            (b"HTTP/1.1 200\r\n\r\n", Some((200, ""))),
            (b"SSH-2.0-OpenSSH\r\n", None),
            (b"HTTP/1.1 OK\r\n\r\n", None),
            (b"\xFF\xFE\n", None),
            (b"HTTP/1.1 ", None),
        ] {
            let (found, request) = ask(answer, None, PATIENCE);
            let found = found.map(|answer| (answer.status, String::from_utf8(answer.body).unwrap()));
            let expected = expected.map(|(status, body): (_, &str)| (status, body.to_owned()));
            assert_eq!(found.ok(), expected, "{}", answer.escape_ascii());
            assert_eq!(request, "GET /x HTTP/1.1\r\nConnection: close\r\n\r\n");
        }
    }

    #[test]
    fn a_key_goes_along() {
        let key = Secret::new(b"k".to_vec());
        let (_, request) = ask(b"HTTP/1.1 200 OK\r\n\r\n", Some(&key), PATIENCE);
        assert!(request.contains("\r\nAuthorization: Bearer k\r\n"), "{request}");
    }

    #[test]
    fn a_silent_server_is_not_waited_for_without_end() {
        let (answer, _) = ask(b"", None, Duration::from_millis(50));
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::TimedOut);
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
