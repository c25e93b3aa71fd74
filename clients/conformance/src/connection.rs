//! A WebSocket connection of the client, as the scripted server sees it.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::failure::{Failure, Result, ensure};
use crate::journal::Journal;
use crate::received::{Received, Subscribe};
use crate::topic::{Topic, merge};

/// An open connection.
pub(crate) struct Connection {
    socket: WebSocketStream<TcpStream>,
    journal: Journal,
    /// Whether `ping` messages are answered without the scene.
    pub(crate) answers_pings: bool,
}

impl Connection {
    pub(crate) fn new(socket: WebSocketStream<TcpStream>, journal: Journal) -> Self {
        Self { socket, journal, answers_pings: true }
    }

    /// Sends any text.
    pub(crate) async fn send_text(&mut self, text: &str) -> Result {
        self.journal.note("server →", text);
        self.socket
            .send(Frame::text(text))
            .await
            .map_err(|error| Failure::new(format!("the client takes no more messages: {error}")))
    }

    /// Sends a message without an `id`.
    pub(crate) async fn send(&mut self, kind: &str, data: Value) -> Result {
        self.send_text(&json!({"type": kind, "data": data}).to_string()).await
    }

    /// Sends `welcome` with the usual limits.
    pub(crate) async fn welcome(&mut self) -> Result {
        self.welcome_with(json!({}), json!({})).await
    }

    /// Sends `welcome` with changed keys and limits.
    pub(crate) async fn welcome_with(&mut self, keys: Value, limits: Value) -> Result {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let usual = json!({
            "client_id": "n1.0-1-2", "server": "deeperhub-ws", "version": "0.1.0", "features": ["history"],
            "server_time": u64::try_from(now.as_millis()).unwrap_or_default(),
        });
        let usual_limits = json!({
            "max_message_bytes": 65_536, "max_delivery_bytes": 66_560, "max_subscriptions": 128,
            "ping_interval_ms": 25_000,
        });
        let data = merge(merge(usual, json!({"limits": merge(usual_limits, limits)})), keys);
        self.send("welcome", data).await
    }

    /// Answers a message.
    pub(crate) async fn reply(&mut self, received: &Received, kind: &str, data: Value) -> Result {
        let id = received.id.clone().ok_or_else(|| {
            Failure::new(format!("the client's {} has no id, so it cannot be answered", received.kind))
        })?;
        self.send_text(&json!({"type": kind, "id": id, "data": data}).to_string()).await
    }

    /// Answers a message with an error. `more` has keys such as `retry_after_ms`.
    pub(crate) async fn reply_error(&mut self, received: &Received, code: &str, more: Value) -> Result {
        let data = merge(json!({"code": code, "message": format!("this is {code}")}), more);
        self.reply(received, "error", data).await
    }

    /// Answers a subscribe in its own form: each entry in the order of the request.
    pub(crate) async fn reply_subscribed(&mut self, subscribe: &Subscribe, answers: &[Value]) -> Result {
        let mut entries = Vec::new();
        for entry in &subscribe.entries {
            let answer = answers.iter().find(|answer| answer["topic"] == entry["topic"]);
            let answer =
                answer.ok_or_else(|| Failure::new(format!("the scene has no answer for {entry}")))?;
            entries.push(answer.clone());
        }
        let mut message = match entries.pop() {
            Some(only) if !subscribe.is_list && only.get("error").is_some() => {
                json!({"type": "error", "data": merge(only["error"].clone(), json!({"topic": only["topic"]}))})
            }
            Some(only) if !subscribe.is_list => json!({"type": "subscribed", "data": only}),
            last => {
                entries.extend(last);
                json!({"type": "subscribed", "data": {"topics": entries}})
            }
        };
        if let Some(id) = &subscribe.id {
            message["id"] = id.clone();
        }
        self.send_text(&message.to_string()).await
    }

    /// Sends a delivery of a topic with history.
    pub(crate) async fn deliver(&mut self, topic: &Topic, offset: u64) -> Result {
        self.send("message", topic.delivery(offset)).await
    }

    /// Sends several deliveries.
    pub(crate) async fn deliver_all(
        &mut self,
        topic: &Topic,
        offsets: std::ops::RangeInclusive<u64>,
    ) -> Result {
        for offset in offsets {
            self.deliver(topic, offset).await?;
        }
        Ok(())
    }

    /// Sends a delivery with more keys, such as `prev`.
    pub(crate) async fn deliver_with(&mut self, topic: &Topic, offset: u64, more: Value) -> Result {
        self.send("message", merge(topic.delivery(offset), more)).await
    }

    /// Sends a delivery of a topic without history.
    pub(crate) async fn deliver_plain(&mut self, topic: &str, message: Value) -> Result {
        self.send("message", json!({"topic": topic, "message": message, "from": "n1.0-1-2"})).await
    }

    /// Returns the next message of the client.
    pub(crate) async fn receive(&mut self) -> Result<Received> {
        loop {
            let frame = self.next_frame("a message").await?;
            let Frame::Text(text) = frame else { continue };
            let value: Value = serde_json::from_str(&text).map_err(|error| {
                Failure::new(format!("the client sent {text:?}, which is not JSON: {error}"))
            })?;
            let kind = value["type"].as_str().unwrap_or_default().to_owned();
            ensure(!kind.is_empty(), || format!("the client sent a message without a type: {text}"))?;
            let id = value.get("id").cloned();
            let is_id = |id: &Value| id.as_str().is_some_and(|id| id.len() <= 64) || id.is_u64();
            ensure(id.as_ref().is_none_or(is_id), || format!("the client sent an id that is none: {text}"))?;
            let received = Received { kind, id, data: value["data"].clone(), length: text.len() };
            if received.kind == "ping" && self.answers_pings {
                self.pong(&received).await?;
                continue;
            }
            return Ok(received);
        }
    }

    /// Answers a `ping` message.
    pub(crate) async fn pong(&mut self, ping: &Received) -> Result {
        let mut pong = json!({"type": "pong"});
        if let Some(id) = &ping.id {
            pong["id"] = id.clone();
        }
        self.send_text(&pong.to_string()).await
    }

    async fn next_frame(&mut self, expected: &str) -> Result<Frame> {
        loop {
            let frame = match self.socket.next().await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.journal.note("client →", &format!("(end: {error})"));
                    return Err(Failure::new(format!(
                        "expected {expected}, but the connection broke: {error}"
                    )));
                }
                None => {
                    return Err(Failure::new(format!(
                        "expected {expected}, but the connection is at its end"
                    )));
                }
            };
            match &frame {
                Frame::Text(text) => self.journal.note("client →", text),
                Frame::Close(close) => {
                    self.journal.note("client →", &format!("(close {close:?})"));
                    return Err(Failure::new(format!(
                        "expected {expected}, but the client closed with {close:?}"
                    )));
                }
                _ => continue,
            }
            return Ok(frame);
        }
    }

    /// Expects a message of a type as the next one.
    pub(crate) async fn expect(&mut self, kind: &str) -> Result<Received> {
        self.journal.await_step(format!("the client's {kind:?}"));
        let received = self.receive().await?;
        ensure(received.kind == kind, || {
            format!("expected the client's {kind:?}, but it sent {:?} with {}", received.kind, received.data)
        })?;
        Ok(received)
    }

    /// Expects one subscribe for exactly these topics.
    pub(crate) async fn expect_subscribe(&mut self, topics: &[&str]) -> Result<Subscribe> {
        self.journal.await_step(format!("one subscribe for {topics:?}"));
        let received = self.receive().await?;
        let subscribe = self.as_subscribe(received)?;
        let mut expected = topics.to_vec();
        expected.sort_unstable();
        ensure(subscribe.topics() == expected, || {
            format!(
                "expected one subscribe for {expected:?}, but the client asked for {:?}",
                subscribe.topics()
            )
        })?;
        Ok(subscribe)
    }

    /// Takes a message that was received as a subscribe.
    pub(crate) fn as_subscribe(&self, received: Received) -> Result<Subscribe> {
        ensure(received.kind == "subscribe", || {
            format!("expected a subscribe, but the client sent {:?}", received.kind)
        })?;
        Subscribe::new(received)
    }

    /// Expects any subscribe.
    pub(crate) async fn expect_any_subscribe(&mut self) -> Result<Subscribe> {
        Subscribe::new(self.expect("subscribe").await?)
    }

    /// Expects subscribes for the topics of these answers, in one message or in several.
    pub(crate) async fn serve_subscribes(&mut self, answers: &[Value]) -> Result {
        let mut served = 0;
        while served < answers.len() {
            let subscribe = Subscribe::new(self.expect("subscribe").await?)?;
            served += subscribe.entries.len();
            self.reply_subscribed(&subscribe, answers).await?;
        }
        Ok(())
    }

    /// Expects a publish with this topic and payload.
    pub(crate) async fn expect_publish(&mut self, topic: &str, message: Value) -> Result<Received> {
        let publish = self.expect("publish").await?;
        ensure(publish.data["topic"] == topic && publish.data["message"] == message, || {
            format!("expected a publish of {message} to {topic}, but the client sent {}", publish.data)
        })?;
        Ok(publish)
    }

    /// Answers a publish to a topic with history.
    pub(crate) async fn reply_published(&mut self, publish: &Received, topic: &Topic, offset: u64) -> Result {
        self.reply(publish, "published", topic.at(offset, json!({"subscribers": 1}))).await
    }

    /// Fails if the client sends a message that passes a filter within a while.
    pub(crate) async fn refute(
        &mut self,
        text: &str,
        while_ms: u64,
        filter: impl Fn(&Received) -> bool,
    ) -> Result {
        let while_ms = std::time::Duration::from_millis(while_ms);
        let forbidden = async {
            loop {
                let received = self.receive().await?;
                if filter(&received) {
                    return Err(Failure::new(format!(
                        "{text}, but the client sent {} with {}",
                        received.kind, received.data
                    )));
                }
            }
        };
        tokio::time::timeout(while_ms, forbidden).await.unwrap_or(Ok(()))
    }

    /// Sends `goodbye`. `retry_after_ms` is left out if it is `None`.
    pub(crate) async fn goodbye(
        &mut self,
        code: u16,
        reconnect: bool,
        retry_after_ms: Option<u64>,
    ) -> Result {
        let mut data = json!({"code": code, "reason": "the scene says so", "reconnect": reconnect});
        if let Some(retry_after_ms) = retry_after_ms {
            data["retry_after_ms"] = retry_after_ms.into();
        }
        self.send("goodbye", data).await
    }

    /// Closes with a code and waits for the client's close frame.
    pub(crate) async fn close(mut self, code: u16) -> Result {
        self.journal.note("server →", &format!("(close {code})"));
        self.journal.await_step(format!("the client's answer to close {code}"));
        let frame = CloseFrame { code: code.into(), reason: "scene".into() };
        // The client may have closed already.
        let _ = self.socket.send(Frame::Close(Some(frame))).await;
        while let Some(Ok(_)) = self.socket.next().await {}
        Ok(())
    }

    /// Waits until the client ends the connection, and returns its close code if it sent one.
    pub(crate) async fn expect_end(mut self) -> Result<Option<u16>> {
        self.journal.await_step("the end of the connection by the client");
        let mut code = None;
        while let Some(Ok(frame)) = self.socket.next().await {
            match frame {
                Frame::Close(close) => {
                    self.journal.note("client →", &format!("(close {close:?})"));
                    code = close.map(|close| u16::from(close.code));
                }
                Frame::Text(text) => self.journal.note("client →", &text),
                _ => {}
            }
        }
        self.journal.note("client →", "(end of the connection)");
        Ok(code)
    }

    /// Resets the TCP connection without a close frame.
    pub(crate) fn cut(self) {
        self.journal.note("server →", "(cut)");
        // Without it the kernel would end the connection in an orderly way, which is another scene.
        let _ = self.socket.get_ref().set_zero_linger();
    }

    /// Ends the TCP connection in an orderly way, but without a close frame.
    pub(crate) async fn end(mut self) -> Result {
        self.journal.note("server →", "(end of the TCP connection)");
        self.socket.get_mut().shutdown().await?;
        Ok(())
    }

    /// Sends bytes beside the WebSocket protocol.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> Result {
        self.journal.note("server →", &format!("({} raw bytes)", bytes.len()));
        self.socket.get_mut().write_all(bytes).await?;
        Ok(())
    }

    /// Sends a WebSocket ping and expects its pong. Messages before it are left out.
    pub(crate) async fn ping(&mut self, payload: &'static [u8]) -> Result {
        self.journal.note("server →", "(ping)");
        self.journal.await_step("the pong to a WebSocket ping");
        let sent = self.socket.send(Frame::Ping(payload.into())).await;
        sent.map_err(|error| Failure::new(format!("the client takes no more frames: {error}")))?;
        while let Some(Ok(frame)) = self.socket.next().await {
            if matches!(frame, Frame::Pong(answer) if answer[..] == *payload) {
                return Ok(());
            }
        }
        Err(Failure::new("expected a pong, but the connection is at its end"))
    }

    /// Sends a binary frame.
    pub(crate) async fn send_binary(&mut self, bytes: &'static [u8]) -> Result {
        self.journal.note("server →", &format!("(binary frame of {} bytes)", bytes.len()));
        self.socket
            .send(Frame::binary(bytes))
            .await
            .map_err(|error| Failure::new(format!("the client takes no more frames: {error}")))
    }
}
