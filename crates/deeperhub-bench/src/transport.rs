//! A TCP stream, plain or with TLS.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use rustls::ClientConnection;

/// A non-blocking socket that is polled edge-triggered.
#[derive(Debug)]
pub(crate) enum Transport {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<Tls>),
}

/// A TLS session on a socket.
#[derive(Debug)]
pub(crate) struct Tls {
    socket: TcpStream,
    session: ClientConnection,
}

impl Transport {
    pub(crate) fn new(socket: TcpStream, session: Option<ClientConnection>) -> Self {
        match session {
            None => Self::Plain(socket),
            Some(session) => Self::Tls(Box::new(Tls { socket, session })),
        }
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
        }
    }

    /// Returns `true` if a short read means that the socket is empty. A short read of TLS does not
    /// mean that, because another record may be in the session or in the socket.
    pub(crate) fn short_read_empties(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Reads like [`Read::read`].
    #[inline]
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Writes like [`Write::write`].
    #[inline]
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// Writes buffered TLS records to the socket. Call it when the socket is writable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.write_records(),
        }
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            let result = self.session.process_new_packets();
            // Records are written also after an error, because one of them is the TLS alert.
            self.write_records()?;
            result.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.session.writer().write(bytes)?;
        self.write_records()?;
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Writes buffered records until the socket is full.
    fn write_records(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
