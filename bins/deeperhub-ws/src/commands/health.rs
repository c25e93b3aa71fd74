//! `health`: checks whether a running server is ready, for health checks of containers.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

use deeperhub_top::ApiClient;

use super::api::api_address;
use crate::config::options::ApiOptions;
use crate::exit::FAILED;

/// Requests `/health/ready` from the server whose API has these options, and prints the result.
pub(crate) fn check(api: ApiOptions) -> ExitCode {
    match require_ready(api) {
        Ok(()) => {
            let _ = writeln!(io::stdout(), "ready");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            let _ = writeln!(io::stderr(), "not ready: {reason}");
            ExitCode::from(FAILED)
        }
    }
}

/// Returns an error with the reason if the server is not ready.
fn require_ready(api: ApiOptions) -> Result<(), String> {
    let address = api_address(api.api_listen)?;
    let client = ApiClient::new(address.clone(), None, api.api_tls_cert.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot create a runtime: {error}"))?;
    let response = runtime.block_on(client.get("/health/ready")).map_err(|error| error.to_string())?;
    if response.status() == 200 {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    let message = body.pointer("/error/message").and_then(Value::as_str);
    let message = message.map(|message| format!(": {message}")).unwrap_or_default();
    Err(format!("{address} answered {}{message}", response.status().as_u16()))
}
