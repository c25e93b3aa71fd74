//! `top`: watches a running server in a terminal.

use std::io;
use std::process::ExitCode;

use deeperhub_top::{ApiClient, TopArgs};

use super::api::api_address;
use crate::config::options::ApiOptions;
use crate::exit::failed;
use crate::process::signals::{self, Signals};

/// Watches the server API of `options` until the user or a signal ends `top`.
pub(crate) fn run(options: ApiOptions, args: &TopArgs) -> ExitCode {
    let watched = api_address(options.api_listen)
        .map_err(str::to_owned)
        .and_then(|address| ApiClient::new(address, options.api_key, options.api_tls_cert.as_deref()))
        .and_then(|client| deeperhub_top::run(client, args, stop_signal));
    match watched {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Returns a future that is ready when a signal asks `top` or `tail` to end. The system sends SIGHUP when the
/// terminal is closed.
pub(super) fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let Signals { mut stops, mut reload_signals, .. } = signals::listen()?;
    Ok(async move {
        tokio::select! {
            _ = stops.recv() => {}
            () = reload_signals.recv() => {}
        }
    })
}
