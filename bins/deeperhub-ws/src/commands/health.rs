//! Asks a running server whether it is ready, as container health checks do.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::commands::http_get::get;
use crate::config::effective::defaults;
use deeperhub_args::{Address, Switchable};

/// For connecting, asking and reading together.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the server whose API listens as `listen` says, and tells the answer.
pub(crate) fn check(listen: Option<Switchable<Address>>) -> ExitCode {
    let address = match to_ask(listen) {
        Ok(address) => address,
        Err(reason) => return not_ready(reason),
    };
    match get(&address, "/health/ready", None, TIMEOUT) {
        Ok(answer) if answer.status == 200 => {
            let _ = writeln!(io::stdout(), "ready");
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let why = body.pointer("/error/message").and_then(Value::as_str);
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            not_ready(&format!("{address} answered {}{why}", answer.status))
        }
        Err(error) => not_ready(&format!("{address}: {error}")),
    }
}

/// Where a server's API is that listens as `listen` says, or why it cannot be asked.
pub(crate) fn to_ask(listen: Option<Switchable<Address>>) -> Result<Address, &'static str> {
    match listen.unwrap_or(Switchable::On(defaults::API_ADDRESS)) {
        Switchable::Off => Err("the server API is off (api_listen), so there is nothing to ask"),
        Switchable::On(Address { port: 0, .. }) => {
            Err("the server API's port is 0 (api_listen); give the port that the server printed")
        }
        Switchable::On(address) => Ok(address),
    }
}

fn not_ready(reason: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "not ready: {reason}");
    ExitCode::from(crate::exit::FAILED)
}
