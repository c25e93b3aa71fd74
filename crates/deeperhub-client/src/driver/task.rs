//! The task of a hub: it owns the socket, and does what the core wants.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::Token;
use super::connect::{Connector, Socket, close_of};
use super::shared::Shared;
use crate::core::{Action, Input};

/// Longest time that a closing handshake takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Attempt = Pin<Box<dyn Future<Output = Result<Socket, Input<'static>>> + Send>>;

/// Something that happened to the connection.
enum Event {
    Changed,
    Timeout,
    Token(Result<String, String>),
    Attempted(Result<Box<Socket>, Input<'static>>),
    Frame(Frame),
    Ended(String),
}

struct Task {
    shared: Arc<Shared>,
    connector: Connector,
    token: Option<Token>,
    token_call: Option<JoinHandle<Result<String, String>>>,
    attempt: Option<Attempt>,
    socket: Option<Box<Socket>>,
    outgoing: VecDeque<String>,
}

/// Ends the hub for its handles when the task ends, also by a panic or with the runtime.
struct Finish(Arc<Shared>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.lock().core.close(self.0.now());
        self.0.finished.send_replace(true);
        self.0.finish();
    }
}

/// Runs a hub until it is closed.
pub(super) async fn run(shared: Arc<Shared>, connector: Connector, token: Option<Token>) {
    let _finish = Finish(Arc::clone(&shared));
    let mut task = Task {
        shared,
        connector,
        token,
        token_call: None,
        attempt: None,
        socket: None,
        outgoing: VecDeque::new(),
    };
    loop {
        let mut closing = None;
        for action in task.shared.drain() {
            task.act(action, &mut closing);
        }
        if task.shared.lock().core.is_closed() {
            if let Some(call) = task.token_call.take() {
                call.abort();
            }
            if let Some(closing) = closing {
                // Nothing depends on the answer of the server.
                let _ = timeout(CLOSE_TIMEOUT, closing).await;
            }
            return;
        }
        if let Some(closing) = closing {
            tokio::spawn(timeout(CLOSE_TIMEOUT, closing));
        }
        let event = task.next_event().await;
        task.on_event(event);
    }
}

impl Task {
    fn act(&mut self, action: Action, closing: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
        match action {
            Action::RequestToken => {
                if let Some(call) = self.token_call.take() {
                    call.abort();
                }
                if let Some(token) = &self.token {
                    let token = token.call();
                    // A task of its own turns a panic into an error.
                    self.token_call =
                        Some(tokio::spawn(async move { token.await.map_err(|error| error.to_string()) }));
                }
            }
            Action::Connect { token } => {
                self.drop_connection();
                self.attempt = Some(Box::pin(self.connector.clone().connect(token)));
            }
            Action::Send(text) => self.outgoing.push_back(text),
            Action::Disconnect { code } => {
                let outgoing = std::mem::take(&mut self.outgoing);
                if let (Some(socket), Some(code)) = (self.socket.take(), code) {
                    *closing = Some(Box::pin(close(socket, outgoing, code)));
                }
                self.drop_connection();
            }
            Action::Store { topic, position } => self.shared.store(&topic, position.as_ref()),
            // The rest concerns the application.
            _ => {}
        }
    }

    fn drop_connection(&mut self) {
        self.attempt = None;
        self.socket = None;
        self.outgoing.clear();
    }

    async fn next_event(&mut self) -> Event {
        let due = self.shared.lock().core.next_timeout();
        let shared = Arc::clone(&self.shared);
        let due = due.and_then(|due| shared.start.checked_add(due));
        tokio::select! {
            () = shared.changed.notified() => Event::Changed,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Event::Timeout,
            event = poll_fn(|context| self.poll_io(context)) => event,
        }
    }

    fn poll_io(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Some(call) = &mut self.token_call
            && let Poll::Ready(result) = Pin::new(call).poll(context)
        {
            self.token_call = None;
            return Poll::Ready(Event::Token(result.unwrap_or_else(|error| Err(error.to_string()))));
        }
        if let Some(attempt) = &mut self.attempt
            && let Poll::Ready(result) = attempt.as_mut().poll(context)
        {
            self.attempt = None;
            return Poll::Ready(Event::Attempted(result.map(Box::new)));
        }
        if let Some(socket) = &mut self.socket {
            if let Poll::Ready(Err(error)) = poll_send(socket, &mut self.outgoing, context) {
                return Poll::Ready(Event::Ended(error));
            }
            return match socket.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(Event::Frame(frame)),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Event::Ended(error.to_string())),
                Poll::Ready(None) => Poll::Ready(Event::Ended(String::new())),
                Poll::Pending => Poll::Pending,
            };
        }
        Poll::Pending
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Changed => {}
            Event::Timeout => self.tell(Input::Timeout),
            Event::Token(token) => self.tell(Input::Token(token)),
            Event::Attempted(Ok(socket)) => {
                self.socket = Some(socket);
                self.tell(Input::Connected);
            }
            Event::Attempted(Err(input)) => self.tell(input),
            Event::Frame(Frame::Text(text)) => self.tell(Input::Text(text.as_str())),
            Event::Frame(Frame::Close(frame)) => {
                let (code, reason) = close_of(frame);
                self.end_of_socket(code, reason);
            }
            Event::Frame(_) => self.tell(Input::Activity),
            Event::Ended(reason) => self.end_of_socket(None, reason),
        }
    }

    fn end_of_socket(&mut self, code: Option<u16>, reason: String) {
        if let Some(mut socket) = self.socket.take()
            && code.is_some()
        {
            // The answer to the close frame leaves with the flush.
            tokio::spawn(timeout(
                CLOSE_TIMEOUT,
                async move { while let Some(Ok(_)) = socket.next().await {} },
            ));
        }
        self.drop_connection();
        self.tell(Input::Disconnected { code, reason });
    }

    fn tell(&self, input: Input<'_>) {
        self.shared.lock().core.handle(input, self.shared.now());
    }
}

/// Sends as much as the socket takes.
fn poll_send(
    socket: &mut Socket,
    outgoing: &mut VecDeque<String>,
    context: &mut Context<'_>,
) -> Poll<Result<(), String>> {
    while !outgoing.is_empty() {
        match socket.poll_ready_unpin(context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
            Poll::Pending => return Poll::Pending,
        }
        if let Some(text) = outgoing.pop_front() {
            socket.start_send_unpin(Frame::text(text)).map_err(|error| error.to_string())?;
        }
    }
    socket.poll_flush_unpin(context).map_err(|error| error.to_string())
}

/// Sends what waits and closes the socket.
async fn close(mut socket: Box<Socket>, outgoing: VecDeque<String>, code: u16) {
    for text in outgoing {
        if socket.feed(Frame::text(text)).await.is_err() {
            return;
        }
    }
    let frame = CloseFrame { code: code.into(), reason: "".into() };
    if socket.send(Frame::Close(Some(frame))).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}
