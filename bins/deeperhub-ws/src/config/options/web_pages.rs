//! Web pages that may connect.

use clap::Args;

/// Options under the heading "Web pages".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Web pages")]
pub(crate) struct WebPageOptions {
    /// Let web pages of this origin connect; may be repeated
    ///
    /// Scheme, host and port, as in `https://app.example.com`; `https://*.example.com` for all
    /// subdomains; `*` for all origins. Clients that send no `Origin` header are not browsers and
    /// always pass.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) allowed_origin: Option<Vec<String>>,
}
