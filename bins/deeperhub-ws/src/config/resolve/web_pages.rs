//! Resolves the options under "Web pages".

use deeperhub_security::OriginPolicy;

use super::Resolver;
use crate::config::effective::OnReload;
use crate::config::options::WebPageOptions;

/// Returns the policy for the `Origin` header.
pub(super) fn resolve(resolver: &mut Resolver, options: WebPageOptions) -> OriginPolicy {
    let WebPageOptions { allowed_origin } = options;
    let allowed = take!(resolver, live allowed_origin, Vec::new());
    OriginPolicy::parse(&allowed).unwrap_or_else(|error| {
        let expected = format!("expected {}", error.expected());
        resolver.invalid("allowed_origin", error.value().to_owned(), expected);
        OriginPolicy::default()
    })
}
