//! Operations on clients: send, unsubscribe, disconnect.

use deeperhub_cluster::{ClientRequest, EnqueueError, Message, RequestError, WakeUp};
use deeperhub_protocol::message::check_server_object;
use deeperhub_protocol::{ClientId, RawJson, Subscription};
use serde::Serialize;

use super::{NodeHandle, to_json};
use crate::cluster::query;
use crate::operation::{Action, Operation, Target};
use crate::types::{ClientNotFound, Delivered, PayloadError, SendError, WorkerTimeout};

impl NodeHandle {
    /// Sends a message to one client, on any node. The message must be a JSON object whose `type`
    /// is a string.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn send_to_client<M>(&self, client: &ClientId, message: &M) -> Result<(), SendError>
    where
        M: Serialize + ?Sized,
    {
        let text = to_json(message)?;
        let message = check_server_object(&text).map_err(PayloadError::from)?;
        self.send_to_client_raw(client, message).await
    }

    /// Sends a JSON object that [`check_server_object`] accepted to one client, on any node.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn send_to_client_raw(&self, client: &ClientId, message: RawJson<'_>) -> Result<(), SendError> {
        let operation = Operation::new(Target::Client(client.clone()), Action::Send(message));
        self.execute(&operation).await.map(drop)
    }

    /// Sends a message to every connection of a user on all nodes. The message must be a JSON
    /// object whose `type` is a string. The returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Payload`], or [`SendError::WorkerTimeout`] as
    /// [`send_to_user_raw`](Self::send_to_user_raw) does.
    pub async fn send_to_user<M>(&self, user: &str, message: &M) -> Result<Delivered, SendError>
    where
        M: Serialize + ?Sized,
    {
        let text = to_json(message)?;
        let message = check_server_object(&text).map_err(PayloadError::from)?;
        Ok(self.send_to_user_raw(user, message).await?)
    }

    /// Sends a JSON object that [`check_server_object`] accepted to every connection of a user on
    /// all nodes. The returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its connections may get the
    /// message later. All other connections got it.
    pub async fn send_to_user_raw(
        &self,
        user: &str,
        message: RawJson<'_>,
    ) -> Result<Delivered, WorkerTimeout> {
        self.execute_on_several(Target::User(user.into()), Action::Send(message)).await
    }

    /// Sends a message to every connected client on all nodes. The message must be a JSON object
    /// whose `type` is a string. If tokens are required, clients without a token are left out. The
    /// returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Payload`], or [`SendError::WorkerTimeout`] as
    /// [`broadcast_raw`](Self::broadcast_raw) does.
    pub async fn broadcast<M>(&self, message: &M) -> Result<Delivered, SendError>
    where
        M: Serialize + ?Sized,
    {
        let text = to_json(message)?;
        let message = check_server_object(&text).map_err(PayloadError::from)?;
        Ok(self.broadcast_raw(message).await?)
    }

    /// Sends a JSON object that [`check_server_object`] accepted to every connected client on all
    /// nodes. If tokens are required, clients without a token are left out. The returned count
    /// covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its clients may get the
    /// message later. All other clients got it.
    pub async fn broadcast_raw(&self, message: RawJson<'_>) -> Result<Delivered, WorkerTimeout> {
        self.execute_on_several(Target::All, Action::Send(message)).await
    }

    /// Ends a client's subscription to a topic or a pattern, on any node. The client gets an
    /// `unsubscribed` message without an `id`.
    ///
    /// Returns `false` if the client was not subscribed to exactly this topic or pattern. In this
    /// case the client gets no message.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn unsubscribe_client(
        &self,
        client: &ClientId,
        topic: &Subscription<'_>,
    ) -> Result<bool, SendError> {
        let action = Action::Unsubscribe(topic.borrow());
        let reached = self.execute(&Operation::new(Target::Client(client.clone()), action)).await?;
        Ok(reached.count > 0)
    }

    /// Ends the subscriptions of a user's connections to a topic or a pattern, on all nodes. The
    /// returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Subscriptions on this worker
    /// may end later. All other subscriptions have ended.
    pub async fn unsubscribe_user(
        &self,
        user: &str,
        topic: &Subscription<'_>,
    ) -> Result<Delivered, WorkerTimeout> {
        self.execute_on_several(Target::User(user.into()), Action::Unsubscribe(topic.borrow())).await
    }

    /// Ends all clients' subscriptions to exactly this topic or pattern, on all nodes. The returned
    /// count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Subscriptions on this worker
    /// may end later. All other subscriptions have ended.
    pub async fn unsubscribe_all(&self, topic: &Subscription<'_>) -> Result<Delivered, WorkerTimeout> {
        self.execute_on_several(Target::All, Action::Unsubscribe(topic.borrow())).await
    }

    /// Closes a connection with 4003, on any node.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn disconnect(&self, client: &ClientId) -> Result<(), SendError> {
        let operation = Operation::new(Target::Client(client.clone()), Action::Disconnect);
        self.execute(&operation).await.map(drop)
    }

    /// Closes every connection of a user with 4003, on all nodes. The returned count covers this
    /// node only.
    ///
    /// The user can reconnect with a token that is still valid.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its connections may close
    /// later. All other connections are closed.
    pub async fn disconnect_user(&self, user: &str) -> Result<Delivered, WorkerTimeout> {
        self.execute_on_several(Target::User(user.into()), Action::Disconnect).await
    }

    /// Closes every connection with 4003, on all nodes. The returned count covers this node only.
    /// Connections that open after the call stay open.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its connections may close
    /// later. All other connections are closed.
    pub async fn disconnect_all(&self) -> Result<Delivered, WorkerTimeout> {
        self.execute_on_several(Target::All, Action::Disconnect).await
    }

    /// Executes an operation on all nodes. The other methods that send, unsubscribe or disconnect
    /// are short forms of this one.
    ///
    /// The count covers this node only, unless the operation names a client. Then it is 1, or 0 if
    /// the client had no such subscription.
    ///
    /// ```no_run
    /// # async fn example(hub: deeperhub_node::NodeHandle) -> Result<(), Box<dyn std::error::Error>> {
    /// use deeperhub_node::{Action, Operation, Target};
    ///
    /// let operation = Operation::new(Target::User("ada".into()), Action::Disconnect);
    /// println!("{} connections closed", hub.execute(&operation).await?.count);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found. An operation on a user or on all clients fails only with
    /// [`SendError::WorkerTimeout`], and is executed on all other workers and nodes.
    pub async fn execute(&self, operation: &Operation<'_>) -> Result<Delivered, SendError> {
        let Operation { target, action } = operation;
        if let Target::Client(client) = target
            && let Some(node) = self.remote_node(client)
        {
            return self.execute_on_node(node, client, action).await;
        }
        let local_target = target.try_map_client(|client| self.local_connection(client))?.into_owned();
        let reached = self.hub.execute(&local_target, action).await;
        // The other nodes get the operation even if a worker of this node did not answer.
        let cluster = match target.try_map_client(|_| Err(())) {
            Ok(target) => {
                let message = Message::Operation(Operation::new(target, action.clone()));
                self.hub.send_to_other_nodes(message, WakeUp::Immediate)
            }
            // The client is on this node.
            Err(()) => None,
        };
        Ok(Delivered {
            count: reached?.ok_or(ClientNotFound)?,
            cluster,
            position: None,
            ticket: None,
            append: None,
        })
    }

    /// Executes an operation on a user or on all clients, which fails only with a timeout.
    async fn execute_on_several(
        &self,
        target: Target<'_>,
        action: Action<'_>,
    ) -> Result<Delivered, WorkerTimeout> {
        self.execute(&Operation::new(target, action)).await.map_err(|_| WorkerTimeout)
    }

    /// Executes an action on a client of another node.
    async fn execute_on_node(
        &self,
        node: &str,
        client: &ClientId,
        action: &Action<'_>,
    ) -> Result<Delivered, SendError> {
        let Some(broker) = &self.hub.broker else { return Err(ClientNotFound.into()) };
        let make_message = |request| {
            let target = Target::Client(ClientRequest { request, client: client.clone() });
            Message::Operation(Operation::new(target, action.clone()))
        };
        match broker.request(node, query::QUERY_TIMEOUT, make_message).await {
            Ok(reply) => {
                let count = query::parse_operation_reply(&reply).ok_or(ClientNotFound)?;
                Ok(Delivered { count, cluster: None, position: None, ticket: None, append: None })
            }
            Err(RequestError::NotSent(EnqueueError::TooLarge)) => Err(SendError::TooLarge),
            Err(RequestError::NotSent(_)) => Err(SendError::ClusterUnavailable),
            Err(_) => Err(ClientNotFound.into()),
        }
    }
}
