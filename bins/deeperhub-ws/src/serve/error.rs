//! Errors that end a server, for the operator.

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

    /// A host name that cannot be resolved.
    #[error("cannot resolve {address}: {source}")]
    Lookup { address: Address, source: io::Error },

    /// Another node of the cluster has the same ID.
    #[error("{0} (--node-id, DEEPERHUB_NODE_ID or node_id)")]
    NodeIdTaken(deeperhub_node::NodeIdTaken),

    /// The node did not start for another reason.
    #[error("{}", with_causes(.0))]
    Node(deeperhub_node::StartError),

    /// A panic; the log shows its location.
    #[error("the server panicked; the log has the location")]
    Panic,

    /// The system refused a resource.
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl ServeError {
    pub(crate) fn system(what: &'static str, source: io::Error) -> Self {
        Self::System { what, source }
    }
}

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
        let failure = ServeError::Listen {
            address: "127.0.0.1:8080".parse().unwrap(),
            purpose: "clients",
            flag: "--port",
            source: io::ErrorKind::AddrInUse.into(),
        };
        assert_eq!(
            failure.to_string(),
            "cannot listen on 127.0.0.1:8080 for clients: the port is in use, perhaps by another server; choose \
             another with --port (0 picks a free one)"
        );
    }
}
