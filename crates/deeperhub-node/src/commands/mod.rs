//! Handlers of client messages, with one file for each message type.

mod authenticate;
mod echo;
mod history;
mod ping;
mod publish;
mod subscribe;
mod unsubscribe;

pub(crate) use authenticate::authenticate;
pub(crate) use echo::echo;
#[cfg(test)]
pub(crate) use history::answer_later;
pub(crate) use history::history;
pub(crate) use ping::ping;
pub(crate) use publish::{Publish, publish};
pub(crate) use subscribe::{check_subscribe, start, start_each, subscribe, subscribe_error, subscribe_list};
pub(crate) use unsubscribe::unsubscribe;
