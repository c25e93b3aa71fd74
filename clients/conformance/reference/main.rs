//! A small client with planted faults: it proves that the scenes of the kit can be passed, and that
//! they fail. It follows the behaviour in `docs/client-behaviour.md` where scenes look at it.

mod attempt;
mod client;
mod delivery;
mod fault;
mod handle;
mod joining;
mod publish;
mod subscription;
mod timers;

use std::pin::Pin;
use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::client::{Action, Client, Ended};
use crate::fault::Fault;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Handshake = Pin<Box<dyn Future<Output = Result<Socket, tungstenite::Error>>>>;

/// Writes an event for the kit.
fn emit(event: &Value) {
    println!("{event}");
}

fn handshake(url: &str, token: Option<&str>) -> Handshake {
    let url = url.to_owned();
    let authorization = token.map(|token| format!("Bearer {token}"));
    Box::pin(async move {
        let mut request = url.into_client_request()?;
        if let Some(value) = authorization.and_then(|text| text.parse().ok()) {
            request.headers_mut().insert("Authorization", value);
        }
        tokio_tungstenite::connect_async(request).await.map(|(socket, _)| socket)
    })
}

/// Returns how a handshake was refused.
fn refusal(error: &tungstenite::Error) -> Ended {
    let tungstenite::Error::Http(response) = error else { return Ended::Lost };
    let retry_after =
        response.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.parse().ok());
    Ended::Refused { status: response.status().as_u16(), retry_after_s: retry_after }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let fault = Fault::parse(std::env::args().nth(1).as_deref());
    emit(&json!({"event": "ready", "client": "reference", "skips": ["page", "blind", "tls"]}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut client = Client::new(fault);
    let mut socket: Option<Socket> = None;
    let mut opening: Option<Handshake> = None;
    loop {
        let deadline =
            client.deadline().unwrap_or_else(|| Instant::now() + std::time::Duration::from_secs(3600));
        tokio::select! {
            biased;
            frame = async { socket.as_mut().expect("guarded").next().await }, if socket.is_some() => match frame {
                Some(Ok(Message::Text(text))) => client.on_text(&text),
                Some(Ok(Message::Close(close))) => {
                    socket = None;
                    client.on_end(close.map_or(Ended::Lost, |close| Ended::Closed(close.code.into())));
                }
                Some(Ok(_)) => client.on_frame(),
                Some(Err(_)) | None => {
                    socket = None;
                    client.on_end(Ended::Lost);
                }
            },
            result = async { opening.as_mut().expect("guarded").await }, if opening.is_some() => {
                opening = None;
                match result {
                    Ok(opened) => {
                        socket = Some(opened);
                        client.on_frame();
                    }
                    Err(error) => client.on_end(refusal(&error)),
                }
            },
            line = lines.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(command) => client.on_command(&command),
                    Err(error) => eprintln!("not a command: {line}: {error}"),
                },
                _ => return,
            },
            () = tokio::time::sleep_until(deadline.into()) => client.on_timer(),
        }
        for action in client.take_actions() {
            match action {
                Action::Connect { url, token } => {
                    socket = None;
                    opening = Some(handshake(&url, token.as_deref()));
                }
                Action::Send(text) => {
                    if let Some(socket) = &mut socket {
                        // A failed write shows as the end of the connection.
                        let _ = socket.send(Message::text(text)).await;
                    }
                }
                Action::Drop => {
                    socket = None;
                    opening = None;
                }
                Action::Close => {
                    opening = None;
                    if let Some(mut socket) = socket.take() {
                        let frame = CloseFrame { code: 1000.into(), reason: "".into() };
                        let _ = socket.close(Some(frame)).await;
                    }
                    emit(&json!({"event": "closed"}));
                }
            }
        }
    }
}
