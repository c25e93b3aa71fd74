//! The client on tokio: sockets, TLS and the application's futures around [`crate::core`].

mod connect;
mod hub;
mod listeners;
mod options;
mod request;
mod shared;
mod storage;
mod subscription;
mod task;
mod token;

pub use hub::{Hub, HubState};
pub use listeners::{Errors, States};
pub use options::Options;
pub use request::{HistoryRequest, Publish};
pub use storage::{MemoryStorage, Storage};
pub use subscription::{Subscribe, Subscription};
pub use token::{IntoToken, Token, TokenError, TokenResult};
