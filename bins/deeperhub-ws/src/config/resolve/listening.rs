//! Resolves the options under "Listening".

use deeperhub_args::{Address, Host, Switchable, UrlPath};
use deeperhub_listener::Config;
use deeperhub_security::proxy::TrustedProxies;

use super::Resolver;
use crate::config::effective::{OnReload, defaults};
use crate::config::options::ListeningOptions;
use crate::config::values::{ForwardedHeader, ProxyProtocol};

/// Returns the address that clients connect to.
pub(super) fn resolve(resolver: &mut Resolver, options: ListeningOptions, listener: &mut Config) -> Address {
    let ListeningOptions { host, port, path, probe_path, trusted_proxy, forwarded_header, proxy_protocol } =
        options;
    let host = take!(resolver, fixed host, Host::localhost());
    let address = Address { host, port: take!(resolver, fixed port, defaults::PORT) };
    let paths = take!(resolver, fixed path, listener.paths.iter().cloned().map(UrlPath).collect());
    listener.paths = paths.into_iter().map(|path| path.0).collect();
    listener.probe_path = match take!(resolver, fixed probe_path, Switchable::Off) {
        Switchable::On(path) => Some(path.0),
        Switchable::Off => None,
    };
    let networks = take!(resolver, fixed trusted_proxy, Vec::new());
    listener.trusted_proxies = TrustedProxies::parse(&networks).unwrap_or_else(|error| {
        resolver.invalid("trusted_proxy", error.text, error.problem.to_string());
        TrustedProxies::default()
    });
    listener.forwarded_header = take!(resolver, fixed forwarded_header, ForwardedHeader::Auto).into();
    listener.proxy_protocol = take!(resolver, fixed proxy_protocol, ProxyProtocol::Detect).into();
    address
}

/// Warns if the hub is open to everyone who can connect to the port.
pub(super) fn warn_of_open_address(resolver: &mut Resolver, address: &Address, token_required: bool) {
    if !address.host.is_loopback() && !token_required {
        let warning = format!(
            "{} is {}, which is not loopback, and clients need no token: anyone who reaches port {} may \
             subscribe and publish; --auth-required prevents that",
            resolver.name_of("host"),
            address.host,
            address.port,
        );
        resolver.warnings.push(warning);
    }
}
