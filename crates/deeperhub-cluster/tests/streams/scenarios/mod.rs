//! Behaviour that all stores have in common. Each scenario is a test on each store.

/// Makes a test of each scenario on each store.
macro_rules! on_each_store {
    ($($scenario:ident),+ $(,)?) => {
        #[cfg(feature = "nats")]
        mod on_jetstream {
            $(
                #[test]
                fn $scenario() {
                    super::$scenario::<crate::jetstream::Server>();
                }
            )+
        }

        #[cfg(feature = "redis")]
        mod on_redis {
            $(
                #[test]
                fn $scenario() {
                    super::$scenario::<crate::redis::Server>();
                }
            )+
        }
    };
}

mod access;
mod appends;
mod losses;
mod once;
mod reads;
mod requests;
mod resends;

pub(crate) use access::use_every_operation;
pub(crate) use losses::{append_known, payloads, reset};
pub(crate) use once::with_once;
pub(crate) use reads::keep_the_last_200_of_300;
pub(crate) use resends::{append_numbers, append_on_the_next_connection, append_while, check_numbers};
