//! Origin policy, rate limits, secrets and grants for WebSocket servers.

mod grants;
pub mod origin;
#[cfg(feature = "rate-limit")]
mod rate;
mod secret;

pub use grants::{Claims, Grants};
pub use origin::{OriginError, OriginPolicy, OriginPolicyError};
#[cfg(feature = "rate-limit")]
pub use rate::{AddressLimiter, RateLimit, RateLimiter, RetryAfter};
pub use secret::Secret;
