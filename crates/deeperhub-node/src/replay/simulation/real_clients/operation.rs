//! Operations of clients and their applications.

/// Clients of a simulation.
pub(in super::super) const CLIENTS: u8 = 5;

/// One operation.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum ClientOperation {
    /// Asks a client to publish messages.
    Publish { client: u8, topic: usize, bytes: usize, is_excluded: bool, count: u8 },
    /// Asks a client for a new handle.
    Subscribe { client: u8, topic: usize, history: u32 },
    /// Ends a handle.
    Unsubscribe { client: u8, handle: u8 },
    /// Takes events of a handle.
    Take { client: u8, handle: u8, count: u8 },
    /// Executes texts of a client on its node.
    Execute { client: u8, count: u8 },
    /// Gives texts of the node to a client.
    Receive { client: u8, count: u8 },
    /// Cuts a client's connection. Texts on their way are lost.
    Cut { client: u8 },
}

/// Returns the operations that give each client a handle.
pub(in super::super) fn first_operations() -> impl Iterator<Item = ClientOperation> {
    (0..CLIENTS).map(|client| ClientOperation::Subscribe {
        client,
        topic: usize::from(client) % 2,
        history: 0,
    })
}

/// Chooses a number of steps: all, or up to `few`.
pub(in super::super) fn choose_count(random: &mut fastrand::Rng, few: u8) -> u8 {
    if random.bool() { u8::MAX } else { random.u8(1..few) }
}

/// Chooses the history that a handle asks for.
pub(in super::super) fn choose_history(random: &mut fastrand::Rng) -> u32 {
    if random.bool() { 0 } else { random.u32(1..15) }
}
