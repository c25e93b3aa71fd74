//! Protection against DNS rebinding.
//!
//! An attacker who owns a public name can point it to a loopback address after a browser has loaded
//! a page from it. For the browser, the page's requests then go to the page's own host, and a GET
//! has no `Origin`. Only the public name in `Host` reveals the attack.

use super::OriginPolicy;
use super::parts::{Authority, Host};

/// Suffixes of private names, which cannot be registered (RFC 6761, RFC 6762, RFC 8375, and
/// `internal`, which ICANN reserved).
const PRIVATE_SUFFIXES: [&str; 9] =
    [".localhost", ".local", ".internal", ".home.arpa", ".test", ".localdomain", ".lan", ".home", ".corp"];

impl OriginPolicy {
    /// Returns `false` if `Host` is a name that an attacker could have registered, or is malformed.
    /// A missing `Host`, an address, a name without a dot, a private name, and a host of the list
    /// are safe.
    ///
    /// Use it in servers that trust every caller that can connect. Behind a proxy that passes on
    /// public names, this check fails for legitimate callers, too. Such a server needs a key
    /// instead.
    #[must_use]
    pub fn is_rebinding_safe(&self, host: Option<&str>) -> bool {
        let Some(text) = host else { return true };
        let Some(Authority { host, .. }) = Authority::parse(text) else { return false };
        let is_local = match host {
            Host::Address(_) => true,
            Host::Name(name) => {
                // A trailing dot only marks the name as fully qualified.
                let name = name.strip_suffix('.').unwrap_or(name);
                !name.contains('.')
                    || PRIVATE_SUFFIXES.iter().any(|suffix| Host::Name(name).is_subdomain_of(suffix))
            }
        };
        is_local || self.allowed.iter().any(|allowed| allowed.allows_host(&host))
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
