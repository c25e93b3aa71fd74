//! Clients: list, describe, disconnect, unsubscribe.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use deeperhub_node::Target;

use super::query::{Scope, paging, scope, text_parameter};
use super::{PathParameter, PathParameters, json_response, path_parameter, path_parameters};
use crate::error::ApiError;
use crate::responses::{Client, Clients};
use crate::search::search;
use crate::{Api, calls};

/// Lists the clients of this node, or of all nodes, one page at a time.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/clients", tag = "clients",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum items of the page, default 100", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
        ("scope" = Option<String>, Query, description = "`node`, the default, or `cluster`"),
        ("search" = Option<String>, Query, description = "Only clients whose ID, user or address contains this text. A page may then be shorter than the limit, or empty, and have a `next_cursor`"),
    ),
    responses((status = 200, body = Clients, description = "A page"), (status = 400, body = ApiError, description = "`invalid_message`"))
))]
pub(crate) async fn clients(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let list = async || {
        let query = query.as_deref();
        let ((limit, cursor), scope) = (paging(query)?, scope(query)?);
        let page = |cursor, limit| clients_page(&api, scope, cursor, limit);
        match text_parameter(query, "search")? {
            None => page(cursor, limit).await,
            Some(text) => search(limit, cursor, |client: &Client| client.contains(&text), page).await,
        }
    };
    json_response(list().await)
}

async fn clients_page(
    api: &Api,
    scope: Scope,
    cursor: Option<String>,
    limit: usize,
) -> Result<Clients, ApiError> {
    let cursor = cursor.as_deref();
    Ok(match scope {
        Scope::Node => Clients::from(api.node.clients(cursor, limit).await?),
        Scope::Cluster => Clients::from(api.node.cluster_clients(cursor, limit).await?),
    })
}

/// Describes one client, with the positions of its subscriptions.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/clients/{client_id}", tag = "clients",
    params(("client_id" = String, Path)),
    responses((status = 200, body = Client, description = "The client"), (status = 404, body = ApiError, description = "`client_not_found`"))
))]
pub(crate) async fn client(State(api): State<Arc<Api>>, client_id: PathParameter) -> Response {
    let find = async || calls::client(&api, &path_parameter(client_id)?).await;
    json_response(find().await)
}

/// Disconnects a client with close code 4003.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/clients/{client_id}", tag = "clients",
    params(("client_id" = String, Path)),
    responses((status = 200, body = crate::responses::Done, description = "Done"), (status = 404, body = ApiError, description = "`client_not_found`"))
))]
pub(crate) async fn disconnect(State(api): State<Arc<Api>>, client_id: PathParameter) -> Response {
    let disconnect = async || calls::disconnect(&api, Target::Client(&path_parameter(client_id)?)).await;
    json_response(disconnect().await)
}

/// Disconnects all connections of a user with close code 4003.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/users/{user}", tag = "clients",
    params(("user" = String, Path, description = "Percent-encoded")),
    responses((status = 200, body = crate::responses::Sent, description = "Number of connections"))
))]
pub(crate) async fn disconnect_user(State(api): State<Arc<Api>>, user: PathParameter) -> Response {
    let disconnect = async || calls::disconnect(&api, Target::User(path_parameter(user)?.into())).await;
    json_response(disconnect().await)
}

/// Disconnects all clients with close code 4003.
///
/// Connections that open after the call stay open.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/clients", tag = "clients",
    responses((status = 200, body = crate::responses::Sent, description = "Number of connections"))
))]
pub(crate) async fn disconnect_all(State(api): State<Arc<Api>>) -> Response {
    json_response(calls::disconnect(&api, Target::All).await)
}

/// Ends a client's subscription to a topic or pattern.
///
/// The client gets an `unsubscribed` without an `id`. It may subscribe again unless its token
/// forbids it.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/clients/{client_id}/subscriptions/{topic}", tag = "clients",
    params(
        ("client_id" = String, Path),
        ("topic" = String, Path, description = "Topic or pattern exactly as subscribed to, percent-encoded"),
    ),
    responses(
        (status = 200, body = crate::responses::Unsubscribed, description = "Whether the client had the subscription"),
        (status = 400, body = ApiError, description = "`invalid_topic`"),
        (status = 404, body = ApiError, description = "`client_not_found`")
    )
))]
pub(crate) async fn unsubscribe_client(State(api): State<Arc<Api>>, texts: PathParameters) -> Response {
    let unsubscribe = async || {
        let (client_id, topic) = path_parameters(texts)?;
        calls::unsubscribe(&api, Target::Client(&client_id), &topic).await
    };
    json_response(unsubscribe().await)
}

/// Ends the subscriptions of all connections of a user to a topic or pattern.
///
/// Each client with the subscription gets an `unsubscribed` without an `id`.
#[cfg_attr(test, utoipa::path(
    delete, path = "/v1/users/{user}/subscriptions/{topic}", tag = "clients",
    params(
        ("user" = String, Path, description = "Percent-encoded"),
        ("topic" = String, Path, description = "Topic or pattern exactly as subscribed to, percent-encoded"),
    ),
    responses((status = 200, body = crate::responses::Sent, description = "Number of connections whose subscription was ended"), (status = 400, body = ApiError, description = "`invalid_topic`"))
))]
pub(crate) async fn unsubscribe_user(State(api): State<Arc<Api>>, texts: PathParameters) -> Response {
    let unsubscribe = async || {
        let (user, topic) = path_parameters(texts)?;
        calls::unsubscribe(&api, Target::User(user.into()), &topic).await
    };
    json_response(unsubscribe().await)
}
