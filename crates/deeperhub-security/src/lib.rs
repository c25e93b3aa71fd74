//! Access decisions for WebSocket servers: origins, rate limits, tokens, TLS, client addresses.
//!
//! The decisions take everything they need as arguments, including the time, and use no sockets and
//! no runtime. Only `files`, and functions named `load` or `read`, access the file system.
//!
//! - [`OriginPolicy`] decides which web pages may connect.
//! - [`RateLimiter`] limits the messages of a connection. [`AddressLimiter`] limits the connections
//!   of an address, and [`BurstPool`] the bursts of an address's new connections.
//! - [`Grants`] decides which topics the bearer of a token may use.
//! - [`Secret`] holds a key and compares it in constant time.
//! - The modules `auth` (JWTs), `tls` (a rustls configuration from PEM files) and `proxy` (clients
//!   behind proxies) are features, off by default.
//!
#![cfg_attr(feature = "rate-limit", doc = "```")]
#![cfg_attr(not(feature = "rate-limit"), doc = "```ignore")]
//! use deeperhub_security::{OriginPolicy, RateLimit, RateLimiter, RetryAfter, Secret};
//! use std::num::NonZeroU32;
//! use std::time::Duration;
//!
//! // A page of the server's own host may connect, a page of another host may not.
//! let origins = OriginPolicy::default();
//! assert!(origins.check(Some("https://hub.net"), Some("hub.net"), true).is_ok());
//! assert!(origins.check(Some("https://evil.example"), Some("hub.net"), true).is_err());
//!
//! // At most one event per second, and no bursts.
//! let limit = RateLimit::new(NonZeroU32::MIN, NonZeroU32::MIN);
//! let (mut limiter, now) = (RateLimiter::default(), Duration::from_secs(5));
//! assert_eq!(limiter.check(&limit, now), Ok(()));
//! assert_eq!(limiter.check(&limit, now), Err(RetryAfter(Duration::from_secs(1))));
//!
//! let key = Secret::new("hunter2");
//! assert!(key.matches(b"hunter2"));
//! assert_eq!(format!("{key:?}"), "Secret(…)");
//! ```

mod address;
#[cfg(feature = "auth")]
pub mod auth;
#[cfg(any(feature = "auth", feature = "tls"))]
mod byte_order_mark;
#[cfg(any(feature = "auth", feature = "tls"))]
pub mod files;
mod grants;
pub mod origin;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "rate-limit")]
mod rate;
mod secret;
#[cfg(feature = "tls")]
pub mod tls;

pub use address::client_network;
pub use deeperhub_types::{Subscription, Topic, TopicError, TopicPattern};
pub use grants::{Claims, Grants, MAX_USER_BYTES};
pub use origin::{OriginError, OriginPolicy, OriginPolicyError};
#[cfg(feature = "rate-limit")]
pub use rate::{
    AddressLimiter, BurstAllowance, BurstPool, DrawOutcome, LimitMode, MAX_ADDRESSES, RateLimit, RateLimiter,
    RetryAfter,
};
pub use secret::Secret;

/// Runs the README's example as a doc test.
#[cfg(all(doctest, feature = "rate-limit"))]
#[doc = include_str!("../README.md")]
mod readme {}
