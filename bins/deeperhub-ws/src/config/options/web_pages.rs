//! Web pages that may connect.

use clap::Args;

/// Options under the heading "Web pages".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Web pages")]
pub(crate) struct WebPageOptions {
    /// Web origin whose pages may connect; may be repeated [default: the server's own]
    ///
    /// Scheme, host and port as in `https://app.example.com`, `https://*.example.com` for all below it, or `*` for
    /// all. Clients that send no `Origin` are no browsers and always pass.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) allowed_origin: Option<Vec<String>>,
}
