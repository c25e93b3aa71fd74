//! Nodes of the cluster.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::Api;
use crate::responses::Nodes;

/// Lists the nodes of the cluster, including this one. A node without a cluster lists itself.
#[cfg_attr(test, utoipa::path(
    get, path = "/v1/nodes", tag = "operations",
    responses((status = 200, body = Nodes, description = "The nodes"))
))]
pub(crate) async fn nodes(State(api): State<Arc<Api>>) -> Response {
    axum::Json(Nodes::from(api.node.nodes())).into_response()
}
