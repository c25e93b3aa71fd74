//! A straightforward hub on tokio-tungstenite, with a task and a queue per connection:
//! `tungstenite-server PORT`. It implements the part of the protocol that the comparison needs.
//!
//! Not for production: it has no authentication and few limits, and drops messages to slow clients.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Capacity of the queue of one client, in messages.
const QUEUE_MESSAGES: usize = 1024;

#[derive(Deserialize)]
struct ClientMessage<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Topic<'a> {
    topic: &'a str,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

type Topics = Arc<Mutex<HashMap<String, HashMap<u64, mpsc::Sender<Utf8Bytes>>>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("usage: tungstenite-server PORT")?.parse()?;
    // One thread, because each server of the comparison has one core.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let topics = Topics::default();
        for client in 0.. {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let topics = Arc::clone(&topics);
            tokio::spawn(async move {
                // An error ends only this connection.
                let _ = serve(socket, client, &topics).await;
                for subscribers in lock(&topics).values_mut() {
                    subscribers.remove(&client);
                }
            });
        }
        Ok(())
    })
}

fn lock(
    topics: &Topics,
) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<u64, mpsc::Sender<Utf8Bytes>>>> {
    topics.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(socket: TcpStream, client: u64, topics: &Topics) -> Result<(), Box<dyn Error>> {
    let (mut sink, mut stream) = tokio_tungstenite::accept_async(socket).await?.split();
    let (sender, mut queue) = mpsc::channel::<Utf8Bytes>(QUEUE_MESSAGES);
    sender.try_send(r#"{"type":"welcome","data":{}}"#.into())?;
    let writing = tokio::spawn(async move {
        while let Some(text) = queue.recv().await {
            sink.feed(Message::Text(text)).await?;
            // Sends all queued messages with one flush.
            while let Ok(text) = queue.try_recv() {
                sink.feed(Message::Text(text)).await?;
            }
            sink.flush().await?;
        }
        sink.close().await
    });
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Text(text) => answer(&text, client, &sender, topics)?,
            Message::Close(_) => break,
            _ => {}
        }
    }
    for subscribers in lock(topics).values_mut() {
        subscribers.remove(&client);
    }
    drop(sender);
    writing.await??;
    Ok(())
}

fn answer(
    text: &str,
    client: u64,
    sender: &mpsc::Sender<Utf8Bytes>,
    topics: &Topics,
) -> Result<(), Box<dyn Error>> {
    let ClientMessage { kind, data } = serde_json::from_str(text)?;
    match kind {
        "echo" => sender.try_send(format!(r#"{{"type":"echo","data":{data}}}"#).into())?,
        "subscribe" => {
            let Topic { topic, .. } = serde_json::from_str(data.get())?;
            lock(topics).entry(topic.to_owned()).or_default().insert(client, sender.clone());
            sender.try_send(format!(r#"{{"type":"subscribed","data":{{"topic":"{topic}"}}}}"#).into())?;
        }
        "publish" => {
            let Topic { topic, message } = serde_json::from_str(data.get())?;
            let message = message.map_or("null", RawValue::get);
            let delivery =
                format!(r#"{{"type":"message","data":{{"topic":"{topic}","message":{message}}}}}"#);
            let delivery = Utf8Bytes::from(delivery);
            for subscriber in lock(topics).get(topic).into_iter().flat_map(HashMap::values) {
                let _ = subscriber.try_send(delivery.clone());
            }
        }
        _ => {}
    }
    Ok(())
}
