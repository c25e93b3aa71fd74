//! Connections: list, one, disconnect.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use deeperhub_node::{ClientInfo, ClientNotFound};
use deeperhub_protocol::ClientId;
use serde_json::{Value, json};

use super::{PathText, answer, paging, path, told};
use crate::Api;
use crate::error::ApiError;

/// Connections of this node, a page at a time.
#[utoipa::path(
    get, path = "/v1/clients", tag = "clients",
    params(("limit" = Option<usize>, Query, description = "1 to 1000, default 100"), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "`{\"clients\": […], \"next_cursor\"}`"), (status = 400, body = ApiError))
)]
pub(crate) async fn clients(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response {
    let list = async || {
        let (limit, cursor) = paging(query.as_deref())?;
        let page = api.node.clients(cursor.as_deref(), limit).await?;
        let clients: Vec<_> = page.items.iter().map(shown).collect();
        Ok(match page.next_cursor {
            Some(next_cursor) => json!({ "clients": clients, "next_cursor": next_cursor }),
            None => json!({ "clients": clients }),
        })
    };
    answer(list().await)
}

/// One connection.
#[utoipa::path(
    get, path = "/v1/clients/{client_id}", tag = "clients",
    params(("client_id" = String, Path)),
    responses((status = 200, description = "`client_id`, `user`, `subscriptions`"), (status = 404, body = ApiError))
)]
pub(crate) async fn client(State(api): State<Arc<Api>>, client_id: PathText) -> Response {
    let find = async || {
        let client_id = ClientId::parse(&path(client_id)?).ok_or(ClientNotFound)?;
        Ok(shown(&api.node.client(&client_id).await?))
    };
    answer(find().await)
}

/// Closes a connection with 4003.
#[utoipa::path(
    delete, path = "/v1/clients/{client_id}", tag = "clients",
    params(("client_id" = String, Path)),
    responses((status = 200), (status = 404, body = ApiError))
)]
pub(crate) async fn disconnect(State(api): State<Arc<Api>>, client_id: PathText) -> Response {
    let disconnect = async || {
        let client_id = ClientId::parse(&path(client_id)?).ok_or(ClientNotFound)?;
        api.node.disconnect(&client_id).await?;
        Ok(json!({}))
    };
    answer(disconnect().await)
}

/// Closes every connection of a user with 4003.
#[utoipa::path(
    delete, path = "/v1/users/{user}", tag = "clients",
    params(("user" = String, Path, description = "Percent-encoded")),
    responses(
        (status = 200, description = "How many there were: `{\"clients\": n}`"), (status = 400, body = ApiError)
    )
)]
pub(crate) async fn disconnect_user(State(api): State<Arc<Api>>, user: PathText) -> Response {
    let disconnect = async || {
        let user = path(user)?;
        Ok(told(api.node.disconnect_user(&user).await, "clients"))
    };
    answer(disconnect().await)
}

fn shown(client: &ClientInfo) -> Value {
    json!({
        "client_id": client.client_id.as_str(),
        "user": client.user,
        "subscriptions": client.subscriptions,
    })
}
