//! All that a scene has at hand: a listening socket, a driver, and what the application saw.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::application::Application;
use crate::connection::Connection;
use crate::driver::Driver;
use crate::failure::{Failure, Result, ensure};
use crate::journal::Journal;
use crate::request::Request;
use crate::tls::{Authority, Certificate, Gate};
use crate::topic::{Topic, merge};

/// Limits of the backoff in scenes: short, so that scenes are.
pub(crate) const MIN_DELAY_MS: u64 = 20;
pub(crate) const MAX_DELAY_MS: u64 = 200;

/// The topic of most scenes.
pub(crate) const CHAT: Topic = Topic::new("chat.1", "e1");

/// One scene's server, driver and application.
pub(crate) struct Kit {
    listener: TcpListener,
    driver: Driver,
    application: Application,
    journal: Journal,
    authority: Option<Arc<Authority>>,
    settled: u32,
    /// Number from which random scenes take their seeds.
    pub(crate) seed: u64,
    pub(crate) skips: Vec<String>,
}

impl Kit {
    /// Listens on a port of its own and starts a driver.
    pub(crate) async fn start(
        command: &[String],
        seed: u64,
        authority: Option<Arc<Authority>>,
        journal: Journal,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let trusted = authority.as_deref().map(Authority::root);
        let (driver, lines) = Driver::start(command, trusted.as_deref(), journal.clone())?;
        let mut application = Application::new(lines, journal.clone());
        let skips = application.start().await?;
        Ok(Self { listener, driver, application, journal, authority, settled: 0, seed, skips })
    }

    /// Returns what the application saw.
    pub(crate) fn app(&mut self) -> &mut Application {
        &mut self.application
    }

    pub(crate) fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    /// Ends the driver's process.
    pub(crate) async fn stop(self) {
        self.driver.stop().await;
    }

    /// Gives the driver a command.
    pub(crate) async fn command(&mut self, name: &str, keys: Value) -> Result {
        self.journal.await_step(format!("the driver to take {name:?}"));
        self.driver.send(&merge(json!({"do": name}), keys)).await
    }

    /// Lets the driver create a hub with short delays and these options.
    pub(crate) async fn connect_with(&mut self, options: Value) -> Result {
        let url = format!("ws://{}/", self.listener.local_addr()?);
        self.connect_to(&url, options).await
    }

    /// Opens a port for TLS before the scripted server.
    pub(crate) async fn gate(&self, certificate: Certificate) -> Result<Gate> {
        let authority = self.authority.clone().ok_or_else(|| Failure::new("there is no authority"))?;
        Gate::open(authority, certificate, self.listener.local_addr()?).await
    }

    /// Lets the driver create a hub with another address.
    pub(crate) async fn connect_to(&mut self, url: &str, options: Value) -> Result {
        let usual = json!({"min_delay_ms": MIN_DELAY_MS, "max_delay_ms": MAX_DELAY_MS});
        self.command("connect", json!({"url": url, "options": merge(usual, options)})).await
    }

    /// Lets the driver create a hub.
    pub(crate) async fn connect(&mut self) -> Result {
        self.connect_with(json!({})).await
    }

    /// Subscribes the handle to a topic.
    pub(crate) async fn subscribe(&mut self, handle: &str, topic: &str) -> Result {
        self.command("subscribe", json!({"as": handle, "topic": topic})).await
    }

    /// Lets the application publish.
    pub(crate) async fn publish(&mut self, call: &str, topic: &str, message: Value) -> Result {
        self.command("publish", json!({"as": call, "topic": topic, "message": message})).await
    }

    /// Returns the next handshake.
    pub(crate) async fn request(&mut self) -> Result<Request> {
        self.journal.await_step("a handshake of the client");
        let (stream, _) = self.listener.accept().await?;
        Request::read(stream, self.journal.clone()).await
    }

    /// Returns the next connection, before its `welcome`.
    pub(crate) async fn accept(&mut self) -> Result<Connection> {
        self.request().await?.upgrade().await
    }

    /// Returns the next connection, after its `welcome`.
    pub(crate) async fn open(&mut self) -> Result<Connection> {
        let mut connection = self.accept().await?;
        connection.welcome().await?;
        Ok(connection)
    }

    /// Fails if the client connects within a while.
    pub(crate) async fn refute_connection(&mut self, while_ms: u64) -> Result {
        match tokio::time::timeout(Duration::from_millis(while_ms), self.listener.accept()).await {
            Err(_) => Ok(()),
            Ok(_) => Err(Failure::new("expected no further connection, but the client connected")),
        }
    }

    /// Fails if the present step came before a time that the client must wait for. Late is no fault.
    pub(crate) fn expect_not_before(&self, start: Instant, wait_ms: u64) -> Result {
        let elapsed = start.elapsed();
        ensure(elapsed >= Duration::from_millis(wait_ms), || {
            format!("expected this not before {wait_ms} ms, but it came after {} ms", elapsed.as_millis())
        })
    }

    /// Connects, and subscribes the handle `chat` to [`CHAT`] at an offset.
    pub(crate) async fn live_at(&mut self, offset: u64) -> Result<Connection> {
        self.live_with(json!({}), offset).await
    }

    /// As [`Self::live_at`], with options of the hub.
    pub(crate) async fn live_with(&mut self, options: Value, offset: u64) -> Result<Connection> {
        self.connect_with(options).await?;
        self.subscribe("chat", CHAT.name).await?;
        let mut connection = self.open().await?;
        let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
        subscribe.expect_no_recover(CHAT.name)?;
        connection.reply_subscribed(&subscribe, &[CHAT.at(offset, json!({}))]).await?;
        self.app().expect_ready("chat").await?;
        self.app().expect_live("chat").await?;
        Ok(connection)
    }

    /// Accepts the next connection and answers its subscribe to [`CHAT`], which must be recovered
    /// from an offset.
    pub(crate) async fn recover(&mut self, from: u64, replay: u64) -> Result<Connection> {
        let mut connection = self.open().await?;
        let subscribe = connection.expect_subscribe(&[CHAT.name]).await?;
        subscribe.expect_recover(&CHAT, from)?;
        let answer = CHAT.at(from, json!({"recovered": true, "replay": replay}));
        connection.reply_subscribed(&subscribe, &[answer]).await?;
        Ok(connection)
    }

    /// Waits until the client has processed what it was sent, and fails if the application saw more
    /// than the scene asked for. An echo proves the first: frames are processed in their order.
    pub(crate) async fn settle(&mut self, connection: &mut Connection) -> Result {
        self.await_echo(connection).await?;
        self.app().expect_nothing_more()
    }

    /// As [`Self::settle`], for a scene that did not look at the states of one handle.
    pub(crate) async fn settle_leaving(&mut self, connection: &mut Connection, handle: &str) -> Result {
        self.await_echo(connection).await?;
        self.app().skip_states(handle);
        self.app().expect_nothing_more()
    }

    /// Waits until the client has processed what it was sent.
    pub(crate) async fn await_echo(&mut self, connection: &mut Connection) -> Result {
        self.settled += 1;
        let call = format!("settle-{}", self.settled);
        self.command("echo", json!({"as": call, "data": call})).await?;
        let echo = connection.expect("echo").await?;
        connection.reply(&echo, "echo", echo.data.clone()).await?;
        let value = self.app().expect_value(&call).await?;
        ensure(value == call.as_str(), || format!("expected the echo {call:?}, not {value}"))?;
        // Handlers may run a moment after the result of the echo.
        tokio::time::sleep(Duration::from_millis(30)).await;
        Ok(())
    }
}
