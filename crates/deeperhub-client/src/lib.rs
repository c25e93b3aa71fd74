//! A client of a DeeperHub hub.
//!
//! [`Hub`] stays connected: it reconnects when the server says so, renews its token, subscribes
//! again, and publishes again what was not answered. A [`Subscription`] is a stream that has each
//! message of a topic with history once and in order, and says what is missing.
//!
//! ```no_run
//! use deeperhub_client::{Event, Hub, Options, StreamExt};
//!
//! # async fn follow() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::connect("wss://hub.example/", Options::default().token("eyJhbGciOi…")).await?;
//! let mut chat = hub.subscribe("chat.42").history(50).await?;
//! hub.publish("chat.42", "hello").await?;
//! while let Some(event) = chat.next().await {
//!     match event {
//!         Event::Message(message) => println!("{}", message.message::<String>()?),
//!         Event::Gap(gap) => println!("messages are missing: {}", gap.reason),
//!         Event::State(state) => println!("{state:?}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The module [`core`] has the behaviour without I/O, for simulations and for other runtimes. The
//! feature `tokio` (on by default) adds [`Hub`].

pub mod core;
#[cfg(feature = "tokio")]
mod driver;
mod error;
mod event;
mod position;

#[cfg(feature = "tokio")]
pub use driver::{
    Errors, HistoryRequest, Hub, HubState, IntoToken, MemoryStorage, Options, Publish, States, Storage,
    Subscribe, Subscription, Token, TokenError, TokenResult,
};
pub use error::Error;
pub use event::{Event, Gap, HistoryPage, Message, Order, Published, SubscriptionState};
#[cfg(feature = "tokio")]
pub use futures_util::{Stream, StreamExt};
pub use position::Position;

/// Runs the README's examples as doc tests.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
mod readme {}
