//! Errors that end a server, with texts for the operator.

use std::io;
use std::net::SocketAddr;

use deeperhub_args::Address;

use crate::exit::with_causes;

/// Error that ends the program with exit code 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} for {purpose}: {}", listen_advice(source, flag))]
    Listen {
        address: SocketAddr,
        purpose: &'static str,
        /// Flag that sets the address.
        flag: &'static str,
        source: io::Error,
    },

    /// A host name cannot be resolved.
    #[error("cannot resolve {address}: {source}")]
    Lookup { address: Address, source: io::Error },

    /// Another node of the cluster has the same ID.
    #[error("{0} (--node-id, DEEPERHUB_NODE_ID or node_id)")]
    NodeIdTaken(deeperhub_node::NodeIdTaken),

    /// A rule keeps messages, and the cluster's broker cannot keep them.
    #[error("the broker of the cluster cannot keep history: {0}")]
    Broker(deeperhub_cluster::StoreFinding),

    /// The node did not start, for a reason that has no variant of its own here.
    #[error("{}", with_causes(.0))]
    Node(deeperhub_node::StartError),

    /// The control thread panicked; the log shows the location.
    #[error("the server panicked; the log has the location")]
    Panic,

    /// A system call, a task or the server API failed.
    #[error("{what}: {source}")]
    System {
        /// The failure as a sentence, such as `cannot handle signals`.
        what: &'static str,
        source: io::Error,
    },
}

impl ServeError {
    pub(crate) fn system(what: &'static str, source: io::Error) -> Self {
        Self::System { what, source }
    }
}

/// Returns the error's cause, with advice if the operator can fix it with `flag`.
fn listen_advice(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "the port is in use, perhaps by another server; choose another with {flag} (0 picks a free one)"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("permission denied; choose a port from 1024 up with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("not an address of this machine ({error})")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_reported_with_the_flag_that_changes_it() {
        let error = ServeError::Listen {
            address: "127.0.0.1:8080".parse().unwrap(),
            purpose: "clients",
            flag: "--port",
            source: io::ErrorKind::AddrInUse.into(),
        };
        assert_eq!(
            error.to_string(),
            "cannot listen on 127.0.0.1:8080 for clients: the port is in use, perhaps by another server; choose \
             another with --port (0 picks a free one)"
        );
    }
}
