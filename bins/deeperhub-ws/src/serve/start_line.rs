//! The line that a server prints to standard output when it is ready.

use std::fmt;
use std::net::SocketAddr;

use deeperhub_node::HistoryStore;
use deeperhub_security::tls::ClientAuth;

use crate::cli::{NAME, VERSION};
use crate::config::effective::Settings;
use crate::reload::tls::Tls;
use deeperhub_args::Time;

/// Returns one line with the version, the bound addresses, TLS and the limits.
pub(crate) fn start_line(
    settings: &Settings,
    client_addresses: &[SocketAddr],
    api_address: Option<SocketAddr>,
) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let node = &settings.node;
        let (listener, session) = (&node.listener, &node.session);
        let limits = &listener.limits;
        write!(f, "{NAME} {VERSION} listening on ")?;
        for (index, address) in client_addresses.iter().enumerate() {
            let separator = if index == 0 { "" } else { " and " };
            write!(f, "{separator}{}://{address}", settings.scheme())?;
        }
        f.write_str(" (API ")?;
        match api_address {
            Some(address) => {
                let has_tls = settings.api.as_ref().is_some_and(|api| api.tls.is_some());
                write!(f, "{}://{address}", if has_tls { "https" } else { "http" })?;
            }
            None => f.write_str("off")?,
        }
        f.write_str(match settings.tls.as_ref().map(Tls::client_auth) {
            None => ") · TLS off",
            Some(None) => ") · TLS on",
            Some(Some(ClientAuth::Required)) => ") · TLS on, client certificates required",
            Some(Some(ClientAuth::Optional)) => ") · TLS on, client certificates optional",
        })?;
        write!(f, " · up to {} connections", limits.max_connections)?;
        if let Some(per_ip) = limits.max_connections_per_ip {
            write!(f, ", {per_ip} per address")?;
        }
        write!(f, " · messages up to {}", bytes(limits.max_message_bytes))?;
        match session.rate_limit {
            Some(rate) => write!(f, ", {}/s (burst {})", rate.per_second, rate.burst)?,
            None => f.write_str(", no rate limit")?,
        }
        if let Some(rate) = session.byte_rate_limit {
            write!(f, ", {}/s", bytes(rate.per_second.get() as usize))?;
        }
        write!(
            f,
            " · {} subscriptions and {} of queue per connection",
            session.max_subscriptions,
            bytes(limits.max_queue_bytes)
        )?;
        if !listener.ping_interval.is_zero() {
            write!(f, " · ping every {}", Time(listener.ping_interval))?;
        }
        let rules = &node.history.rules;
        if rules.keep_history() {
            let keeping = rules.iter().filter(|(_, rule)| rule.policy().keeps_history()).count();
            let plural = if keeping == 1 { "" } else { "s" };
            let max_bytes = usize::try_from(node.history.budget.bytes).unwrap_or(usize::MAX);
            write!(f, " · {keeping} rule{plural} for history, up to {}", bytes(max_bytes))?;
            if node.history_store != HistoryStore::Memory {
                f.write_str(" in memory, and more on disk")?;
            } else if node.cluster.is_some() {
                f.write_str(" in memory, and in the cluster's broker")?;
            }
        }
        Ok(())
    })
}

/// Formats a size in the largest unit that needs no fraction, such as `64 KiB`.
fn bytes(count: usize) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        if count.is_multiple_of(1 << 20) {
            write!(f, "{} MiB", count >> 20)
        } else if count.is_multiple_of(1 << 10) {
            write!(f, "{} KiB", count >> 10)
        } else {
            write!(f, "{count} bytes")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layers::Layers;
    use crate::config::options::Options;
    use crate::config::resolve::resolve;

    fn check(flags: &[&str], api: Option<&str>, expected: &str) {
        let matches = Options::parser().get_matches_from(flags);
        let settings = Layers::read([&matches], []).and_then(resolve).unwrap();
        let clients = ["127.0.0.1:8080", "[::1]:8080"].map(|address| address.parse().unwrap());
        let line = start_line(&settings, &clients, api.map(|api| api.parse().unwrap())).to_string();
        assert_eq!(line, format!("deeperhub-ws {VERSION} {expected}"));
    }

    #[test]
    fn the_line_names_addresses_tls_limits_and_version() {
        check(
            &[],
            Some("127.0.0.1:8081"),
            "listening on ws://127.0.0.1:8080 and ws://[::1]:8080 (API http://127.0.0.1:8081) · TLS off · up to 1000 connections · \
             messages up to 64 KiB, 100/s (burst 200) · 128 subscriptions and 1 MiB of queue per connection · \
             ping every 25s",
        );
    }

    #[test]
    fn history_is_named_if_a_rule_keeps_any() {
        let line = |rules: &[&str]| {
            let flags = [&["--ping-interval=0", "--history-bytes=64MiB"], rules].concat();
            let matches = Options::parser().get_matches_from(flags);
            let settings = Layers::read([&matches], []).and_then(resolve).unwrap();
            start_line(&settings, &[], None).to_string()
        };
        assert!(line(&["--topic=a: history=0"]).ends_with(" of queue per connection"));
        let kept = line(&["--topic=a: history=0", "--topic=b: history=5"]);
        assert!(kept.ends_with(" per connection · 1 rule for history, up to 64 MiB"), "{kept}");
        let kept = line(&["--topic=a: history=1", "--topic=b.>: history=5"]);
        assert!(kept.ends_with(" · 2 rules for history, up to 64 MiB"), "{kept}");
    }

    #[test]
    fn disabled_features_are_named() {
        check(
            &[
                "--rate-limit=0",
                "--max-connections-per-ip=5",
                "--ping-interval=0",
                "--max-message-bytes=1000",
            ],
            None,
            "listening on ws://127.0.0.1:8080 and ws://[::1]:8080 (API off) · TLS off · up to 1000 connections, 5 per address · \
             messages up to 1000 bytes, no rate limit · 128 subscriptions and 1 MiB of queue per connection",
        );
    }
}
