use deeperhub_security::{OriginPolicy, Secret};

/// What the server API allows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ApiConfig {
    /// The key that every call but health checks must bring as `Authorization: Bearer KEY`. `None`: none is needed,
    /// the default; fit only for a listener on loopback.
    pub api_key: Option<std::sync::Arc<Secret>>,
    /// Web pages that may call, besides those of the API's own host.
    pub allowed_origins: OriginPolicy,
    /// Bytes of a request's body. Default 65536.
    pub max_body_bytes: usize,
    /// Where the page to try the hub connects to. `None`: port 8080 of the page's own host.
    pub websocket_url: Option<String>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            allowed_origins: OriginPolicy::default(),
            max_body_bytes: 65_536,
            websocket_url: None,
        }
    }
}
