//! Value types that the crates of a realtime hub share. This crate has no dependencies and does no
//! I/O.
//!
//! - [`Topic`], [`TopicPattern`] and [`Subscription`] are always valid, because their constructors
//!   check the text.
//! - [`ClientId`] identifies a connection.
//! - [`ErrorCode`] and [`CloseCode`] list the codes that clients and backends see. [`CloseReason`]
//!   is a close code with its text.
//! - [`Position`] is a position in the stream of a topic with history, and [`Epoch`] identifies the
//!   stream. [`GapReason`] and [`NotRecovered`] say why a subscriber misses messages.
//!
//! ```
//! use deeperhub_types::{Topic, TopicError, TopicPattern};
//!
//! let goals = Topic::parse("sports.football.goals")?;
//! assert!(TopicPattern::parse("sports.>")?.matches(&goals));
//! assert_eq!(Topic::parse("sports..goals"), Err(TopicError::EmptyLevel));
//! # Ok::<(), TopicError>(())
//! ```

mod client_id;
pub mod code;
mod stream;
mod topic;

pub use client_id::ClientId;
pub use code::{CloseCode, CloseReason, ErrorCode};
pub use stream::{Epoch, GapReason, NotRecovered, Position};
pub use topic::{Subscription, Topic, TopicError, TopicPattern};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
