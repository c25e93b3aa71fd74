//! The stores as scenarios see them.

use std::net::SocketAddr;

use deeperhub_cluster::{BrokerUrl, Config};

use crate::broker_process::BrokerProcess;

/// A server that keeps streams.
pub(crate) trait Store: Sized {
    /// Scheme of the server's URL.
    const SCHEME: &str;

    /// `true` if the topics of a rule share their offsets, so that those of one topic have holes.
    const SHARES_OFFSETS: bool;

    /// Length of a message that is larger than an answer to a read, and that the server takes.
    const LARGE_MESSAGE_BYTES: usize;

    /// Starts a server that keeps its messages when it is killed. Without the program, returns
    /// `None`: the test is skipped.
    fn start() -> Option<Self>;

    fn process(&self) -> &BrokerProcess;

    fn process_mut(&mut self) -> &mut BrokerProcess;

    /// Returns the number of messages that the server keeps. All of them are on the topic `t`.
    fn stored(&self) -> u64;

    /// Removes all that the server has stored. The server must have been killed.
    fn remove_files(&self);

    fn address(&self) -> SocketAddr {
        self.process().address()
    }

    fn url(&self) -> String {
        format!("{}://{}", Self::SCHEME, self.address())
    }

    fn config(&self) -> Config {
        Config::new(BrokerUrl::parse(&self.url()).unwrap())
    }

    fn kill(&mut self) {
        self.process_mut().kill();
    }

    /// Starts the server again on the same port.
    fn start_again(&mut self) {
        self.process_mut().restart();
    }

    /// Stops the process. It keeps its connections, and answers nothing.
    fn pause(&self) {
        self.process().signal("STOP");
    }

    fn resume(&self) {
        self.process().signal("CONT");
    }

    /// Returns the offset of the message that is number `in_topic` of its topic, and number
    /// `in_rule` of all topics.
    fn offset(in_topic: u64, in_rule: u64) -> u64 {
        if Self::SHARES_OFFSETS { in_rule } else { in_topic }
    }
}
