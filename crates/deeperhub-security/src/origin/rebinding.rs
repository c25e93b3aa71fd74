//! Protection against DNS rebinding.
//!
//! The owner of a public name can point it to a loopback address after a page was loaded from it. For
//! the browser, that page then talks to its own host and sends no `Origin` with a GET. Only the name in
//! `Host` reveals it.

use super::OriginPolicy;
use super::parts::{Authority, Host};

/// Suffixes that nobody can register: private names of a network (RFC 6761, RFC 6762, RFC 8375, and
/// `internal`, which ICANN reserved).
const PRIVATE_SUFFIXES: [&str; 9] =
    [".localhost", ".local", ".internal", ".home.arpa", ".test", ".localdomain", ".lan", ".home", ".corp"];

impl OriginPolicy {
    /// Returns `true` unless `Host` is a name that a stranger can register. Safe are: no `Host`, an
    /// address, a name without a dot, a private name, and the hosts of the list.
    ///
    /// For servers that trust every caller that reaches them. Behind a proxy that passes public names,
    /// this check fails for legitimate callers, and the server needs a key instead.
    #[must_use]
    pub fn is_rebinding_safe(&self, host: Option<&str>) -> bool {
        let Some(text) = host else { return true };
        let Some(Authority { host, .. }) = Authority::parse(text) else { return false };
        let is_local = match host {
            Host::Address(_) => true,
            Host::Name(name) => {
                // A trailing dot only marks the name as fully qualified.
                let name = Host::Name(name.strip_suffix('.').unwrap_or(name));
                let Host::Name(whole) = name else { return false };
                !whole.contains('.') || PRIVATE_SUFFIXES.iter().any(|end| name.is_subdomain_of(end))
            }
        };
        is_local || self.allowed.iter().any(|allowed| allowed.is_at(&host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(allowed: &[&str], host: &str, expected: bool) {
        let policy = OriginPolicy::parse(allowed).unwrap();
        assert_eq!(policy.is_rebinding_safe(Some(host)), expected, "{host} with {allowed:?}");
    }

    #[test]
    fn addresses_and_names_that_nobody_can_register_are_known() {
        for host in [
            "localhost",
            "LOCALHOST:8081",
            "localhost.",
            "api.localhost:8081",
            "127.0.0.1",
            "127.0.0.1:8081",
            "[::1]:8081",
            "192.0.2.1:8081",
            "hub",
            "hub:8081",
            "hub.local",
            "hub.INTERNAL:8081",
            "hub.default.svc.cluster.local",
        ] {
            check(&[], host, true);
        }
        assert!(OriginPolicy::default().is_rebinding_safe(None));
    }

    #[test]
    fn public_names_are_not() {
        for host in [
            "evil.example",
            "evil.example:8081",
            "evil.example.",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:8081@localhost",
            "notlocal",
            "xlocalhost.example",
            "",
            "a b",
            "localhost, evil.example",
        ] {
            check(&[], host, host == "notlocal");
        }
    }

    #[test]
    fn hosts_of_the_list_are_known_on_every_port() {
        let allowed = ["https://app.example", "https://*.apps.example"];
        for (host, expected) in [
            ("app.example", true),
            ("APP.example:8081", true),
            ("a.apps.example", true),
            ("apps.example", false),
            ("evil.example", false),
        ] {
            check(&allowed, host, expected);
        }
        check(&["*"], "evil.example", true);
    }
}
