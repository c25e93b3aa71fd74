//! A proxy that breaks connections in the ways networks do.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::Result;
use super::hub::Addresses;

/// Mean lifetime of a connection.
const LIFETIME: Duration = Duration::from_secs(12);

/// Time for which a silent connection stays open. The client must notice earlier.
const SILENCE: Duration = Duration::from_secs(60);

/// Treatment of one connection.
#[derive(Debug, Clone, Copy)]
struct Plan {
    entrance: Entrance,
    /// Pause before each piece from the hub.
    delay: Duration,
    lifetime: Duration,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum Entrance {
    Open,
    Refused,
    /// A page instead of an upgrade, as a captive portal answers.
    Portal,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Reset,
    /// Both directions end in an orderly way.
    Finished,
    /// Nothing is carried any more, in either direction.
    Silent,
}

impl Plan {
    fn random(random: &mut fastrand::Rng) -> Self {
        let entrance = match random.u8(..100) {
            0..6 => Entrance::Refused,
            6..10 => Entrance::Portal,
            _ => Entrance::Open,
        };
        let delay = if random.u8(..100) < 30 { random.u64(1..60) } else { 0 };
        let end = match random.u8(..100) {
            0..50 => End::Reset,
            50..80 => End::Finished,
            _ => End::Silent,
        };
        let lifetime = LIFETIME.mul_f64(-(1.0 - random.f64()).ln());
        Self { entrance, delay: Duration::from_millis(delay), lifetime, end }
    }

    const PLAIN: Self =
        Self { entrance: Entrance::Open, delay: Duration::ZERO, lifetime: Duration::MAX, end: End::Finished };
}

/// Starts the proxy and returns its address.
pub(super) async fn start(
    addresses: watch::Receiver<Addresses>,
    has_faults: watch::Receiver<bool>,
    mut random: fastrand::Rng,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let plan = if *has_faults.borrow() { Plan::random(&mut random) } else { Plan::PLAIN };
            let hub = addresses.borrow().clients;
            // The ends of connections are what this is for.
            tokio::spawn(async move { serve(client, hub, plan).await.unwrap_or_default() });
        }
    });
    Ok(address)
}

async fn serve(mut client: TcpStream, hub: SocketAddr, plan: Plan) -> std::io::Result<()> {
    match plan.entrance {
        Entrance::Open => {}
        Entrance::Refused => return reset(&client),
        Entrance::Portal => {
            let mut head = [0; 4096];
            let _ = client.read(&mut head).await?;
            let page = "<html>Please log in</html>";
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                page.len()
            );
            return client.write_all(format!("{head}{page}").as_bytes()).await;
        }
    }
    let Ok(mut hub) = TcpStream::connect(hub).await else { return reset(&client) };
    {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_hub, mut to_hub) = hub.split();
        tokio::select! {
            // When one side ends, so does the other.
            result = pump(&mut from_client, &mut to_hub, Duration::ZERO) => result?,
            result = pump(&mut from_hub, &mut to_client, plan.delay) => result?,
            () = tokio::time::sleep(plan.lifetime) => {}
        }
    }
    match plan.end {
        End::Finished => Ok(()),
        End::Reset => {
            reset(&client)?;
            reset(&hub)
        }
        End::Silent => {
            tokio::time::sleep(SILENCE).await;
            reset(&client)
        }
    }
}

async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    delay: Duration,
) -> std::io::Result<()> {
    let mut piece = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        tokio::time::sleep(delay).await;
        to.write_all(&piece[..length]).await?;
    }
}

/// Lets the kernel send RST instead of FIN when the socket is dropped.
fn reset(socket: &TcpStream) -> std::io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}
