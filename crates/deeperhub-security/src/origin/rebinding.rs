//! Names that a stranger can make to mean this machine.
//!
//! Whoever owns a public name can let it point to a loopback address after its page was loaded (DNS rebinding): to the
//! browser the page then asks its own host, and sends no `Origin` with a GET. All that shows is the name in `Host`.

use super::OriginPolicy;
use super::parts::{Authority, Host};

/// Ends of names that nobody can register: names of a network's own (RFC 6761, RFC 6762, RFC 8375, `internal` as
/// reserved by ICANN).
const PRIVATE_SUFFIXES: [&str; 9] =
    [".localhost", ".local", ".internal", ".home.arpa", ".test", ".localdomain", ".lan", ".home", ".corp"];

impl OriginPolicy {
    /// Whether a request with this header `Host` can have been meant for a server that only this machine reaches: it
    /// names none, an address, a name without a dot, one that cannot be registered, or a host of the list.
    ///
    /// For a server that trusts whoever reaches it. Behind a proxy that passes public names on this is no use, and such a
    /// server should trust nobody without a key.
    #[must_use]
    pub fn is_rebinding_safe(&self, host: Option<&str>) -> bool {
        let Some(text) = host else { return true };
        let Some(Authority { host, .. }) = Authority::parse(text) else { return false };
        let is_local = match host {
            Host::Address(_) => true,
            Host::Name(name) => {
                // A dot at the end only says that the name is whole.
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
