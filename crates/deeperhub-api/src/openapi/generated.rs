//! Generates the OpenAPI document from the calls and their responses. Tests only: the generator and
//! its schemas would take a tenth of a release build.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::client_script;
use crate::error::ApiError;
use crate::guard;
use crate::routes::{batch, clients, cluster, events, history, messages, operations, tail, topics};

/// Name of the API key's security scheme.
const API_KEY_SCHEME: &str = "api_key";

/// Description of a 503 that concerns workers or nodes.
const DELIVERY_503: &str = "`delivery_stalled`: a worker did not answer in time; the call may still take effect. \
    `cluster_unavailable`: the client is on another node, which cannot be reached";

/// Description of a 503 that concerns the API itself, with `Retry-After`.
const OVERLOAD_503: &str = "`too_many_connections`: `--max-api-connections` are busy. `overloaded`: bodies and \
    responses hold `--max-api-bytes`";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "deeperhub-ws server API",
        description = "API of a hub node for backends and operators. Every body is JSON, whatever its `Content-Type`. \
                       Messages are delivered byte for byte as they arrived. Every error is \
                       `{\"error\":{\"code\",\"message\"}}`, with a `field` if one key or parameter is at fault. \
                       Unknown paths get 404 `not_found`, unsupported methods 405 `method_not_allowed`. In a cluster, \
                       sends and disconnects reach the clients of all nodes. Counts and lists cover this node, or all \
                       nodes with `scope=cluster` if the call has that parameter.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
        contact()
    ),
    tags(
        (name = "messages", description = "Publish and send"),
        (name = "batch", description = "Many calls in one request"),
        (name = "clients", description = "Connections and their subscriptions"),
        (name = "topics", description = "Subscribed topics and patterns"),
        (name = "history", description = "Kept messages of topics"),
        (name = "events", description = "Stream of events"),
        (name = "operations", description = "Statistics, metrics, health, this document"),
    ),
    components(schemas(ApiError, batch::Call)),
    modifiers(&CommonResponses),
    paths(
        messages::publish,
        messages::send_to_client,
        messages::send_to_user,
        messages::broadcast,
        batch::batch,
        clients::clients,
        clients::client,
        clients::disconnect,
        clients::disconnect_all,
        clients::disconnect_user,
        clients::unsubscribe_client,
        clients::unsubscribe_user,
        topics::topics,
        topics::topic,
        topics::unsubscribe_all,
        history::history,
        history::clear_history,
        tail::tail,
        events::events,
        cluster::nodes,
        operations::stats,
        operations::stats_samples,
        operations::top,
        operations::metrics,
        operations::live,
        operations::ready,
        operations::openapi_json,
        client_script::client_script,
    )
)]
struct ApiDoc;

/// Generates the document.
fn generate() -> utoipa::openapi::OpenApi {
    ApiDoc::openapi()
}

/// Adds responses that many calls share: key, origin, sizes, limits.
struct CommonResponses;

impl Modify for CommonResponses {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let mut key = Http::new(HttpAuthScheme::Bearer);
        key.description = Some("Key of `--api-key`; without that option, calls need no key".to_owned());
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme(API_KEY_SCHEME, SecurityScheme::Http(key));

        for (path, item) in &mut openapi.paths.paths {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                let error = |operation: &mut Operation, status: &str, description: &str| {
                    let content =
                        ContentBuilder::new().schema(Some(Ref::from_schema_name("ApiError"))).build();
                    let response = ResponseBuilder::new()
                        .description(description)
                        .content("application/json", content)
                        .build();
                    operation.responses.responses.entry(status.to_owned()).or_insert(response.into());
                };
                if !guard::needs_no_key(path) {
                    let required = SecurityRequirement::new::<_, [&str; 0], &str>(API_KEY_SCHEME, []);
                    operation.security = Some(vec![required]);
                    error(operation, "401", "`unauthorized`: the key is missing or wrong");
                }
                if waits_for_worker(path) {
                    error(operation, "503", &format!("{DELIVERY_503}. {OVERLOAD_503}"));
                } else if !path.starts_with("/health/") {
                    error(operation, "503", OVERLOAD_503);
                }
                if !guard::is_public(path) {
                    error(
                        operation,
                        "403",
                        "`origin_not_allowed`: the origin or host of the call is not allowed",
                    );
                }
                if operation.request_body.is_some() {
                    error(operation, "400", "`invalid_json`, `invalid_message` or `invalid_topic`");
                    error(operation, "408", "`request_timeout`: the body did not arrive in time");
                    error(
                        operation,
                        "415",
                        "`unsupported_encoding`: a `Content-Encoding` other than `identity`",
                    );
                    error(operation, "501", "`unsupported_encoding`: a transfer coding other than `chunked`");
                    let limit =
                        if path == guard::BATCH_PATH { "--max-batch-bytes" } else { "--max-message-bytes" };
                    error(operation, "413", &format!("`message_too_big`: the body is over `{limit}`"));
                }
            }
        }
    }
}

/// Returns `true` if calls of a path wait for a worker's answer.
fn waits_for_worker(path: &str) -> bool {
    path.starts_with("/v1/clients")
        || path.starts_with("/v1/users/")
        || path.ends_with("/subscriptions")
        || path == "/v1/broadcast"
}

mod tests {
    use super::*;

    fn generated() -> serde_json::Value {
        serde_json::from_str(&generate().to_pretty_json().unwrap()).unwrap()
    }

    #[test]
    fn the_document_is_the_committed_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let generated = generate().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert_eq!(generated, committed, "openapi.json is outdated; UPDATE_SNAPSHOTS=1 rewrites it");
    }

    #[test]
    fn every_response_is_described_and_every_reference_resolves() {
        fn check(value: &serde_json::Value, whole: &serde_json::Value) {
            match value {
                serde_json::Value::Object(object) => {
                    if let Some(reference) = object.get("$ref").and_then(serde_json::Value::as_str) {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(whole.pointer(pointer).is_some(), "{reference} does not resolve");
                    }
                    object.values().for_each(|value| check(value, whole));
                }
                serde_json::Value::Array(items) => items.iter().for_each(|value| check(value, whole)),
                _ => {}
            }
        }
        let whole = generated();
        check(&whole, &whole);
        for (path, item) in whole["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let has_body = response["content"].is_object();
                    let may_have_body = !["204", "304"].contains(&status.as_str());
                    assert_eq!(has_body, may_have_body, "{method} {path} {status}: body {has_body}");
                    let described = response["description"].as_str().is_some_and(|text| !text.is_empty());
                    assert!(described, "{method} {path} {status} is not described");
                }
                let open = guard::needs_no_key(path);
                assert_eq!(operation["security"].is_array(), !open, "{method} {path}");
            }
        }
    }
}
