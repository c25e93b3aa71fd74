use super::*;
use proptest::prelude::*;

fn policy(values: &[&str]) -> OriginPolicy {
    OriginPolicy::parse(values).unwrap()
}

fn passes(policy: &OriginPolicy, origin: &str, host: &str, tls: bool) -> bool {
    policy.check(Some(origin), Some(host), tls).is_ok()
}

#[test]
fn a_request_without_origin_passes() {
    for tls in [false, true] {
        assert_eq!(OriginPolicy::default().check(None, Some("example.com"), tls), Ok(()));
        assert_eq!(policy(&["https://example.com"]).check(None, None, tls), Ok(()));
    }
}

#[test]
fn the_host_that_the_request_was_made_to_passes() {
    let own = OriginPolicy::default();
    for (origin, host, tls) in [
        ("http://example.com", "example.com", false),
        ("http://example.com", "example.com:80", false),
        ("http://example.com:80", "example.com", false),
        ("http://example.com:8080", "example.com:8080", false),
        ("HTTP://Example.COM", "eXample.com", false),
        ("https://example.com", "example.com", true),
        ("https://example.com", "example.com:443", true),
        ("https://example.com:8443", "example.com:8443", true),
        ("http://[2001:DB8::1]:8080", "[2001:db8:0::1]:8080", false),
        ("http://192.0.2.1", "192.0.2.1", false),
        // The following requests pass through a proxy that terminates TLS.
        ("https://example.com", "example.com", false),
        ("https://example.com", "example.com:443", false),
    ] {
        assert!(passes(&own, origin, host, tls), "{origin} at {host}, tls {tls}");
    }
}

#[test]
fn where_only_the_own_host_passes_another_port_of_loopback_does_not() {
    let passes = |policy: &OriginPolicy, origin, host| {
        policy.check_same_origin(Some(origin), Some(host), false).is_ok()
    };
    let own = OriginPolicy::default();
    assert!(passes(&own, "http://127.0.0.1:8081", "127.0.0.1:8081"));
    assert!(passes(&own, "http://localhost:8081", "localhost:8081"));
    assert!(!passes(&own, "http://localhost:3000", "localhost:8081"));
    assert!(!passes(&own, "http://localhost:8081", "127.0.0.1:8081"));
    assert!(passes(&policy(&["http://localhost:3000"]), "http://localhost:3000", "localhost:8081"));
}

#[test]
fn another_host_or_port_does_not_pass() {
    let own = OriginPolicy::default();
    for (origin, host, tls) in [
        ("http://example.com", "example.org", false),
        ("http://example.com:8080", "example.com", false),
        ("http://example.com", "example.com:8080", false),
        ("http://example.com", "example.com", true),
        ("https://example.com", "example.com:80", false),
        ("http://www.example.com", "example.com", false),
        ("http://example.com.evil.org", "example.com", false),
        ("http://evilexample.com", "example.com", false),
        ("http://[2001:db8::2]", "[2001:db8::1]", false),
        ("http://192.0.2.1", "192.0.2.2", false),
        ("custom://example.com", "example.com", false),
        ("null", "null", false),
        ("http://localhost", "example.com", false),
        ("http://example.com", "localhost", false),
    ] {
        assert_eq!(
            own.check(Some(origin), Some(host), tls),
            Err(OriginError::NotAllowed),
            "{origin} at {host}"
        );
    }
    assert_eq!(own.check(Some("http://example.com"), None, false), Err(OriginError::NotAllowed));
    assert_eq!(own.check(Some("http://localhost"), Some(""), false), Err(OriginError::NotAllowed));
}

#[test]
fn loopback_names_pass_on_any_port_among_each_other() {
    let own = OriginPolicy::default();
    let names = ["localhost", "LOCALHOST", "app.localhost", "127.0.0.1", "127.200.3.4", "[::1]"];
    for origin in names {
        for host in names {
            for tls in [false, true] {
                assert!(passes(&own, &format!("http://{origin}:3000"), &format!("{host}:8080"), tls));
                assert!(passes(&own, &format!("https://{origin}"), host, tls));
            }
        }
    }
    assert!(passes(&own, "app://localhost", "127.0.0.1:8080", false), "pages of desktop programs");
    for origin in [
        "http://localhost.evil.org",
        "http://notlocalhost",
        "http://.localhost",
        "http://128.0.0.1",
        "http://[::2]",
    ] {
        assert!(!passes(&own, origin, "localhost", false), "{origin}");
        assert!(
            !passes(&own, "http://localhost", origin.strip_prefix("http://").unwrap(), false),
            "{origin}"
        );
    }
}

#[test]
fn an_allowed_origin_passes_with_its_scheme_host_and_port() {
    let list = policy(&[
        "https://Example.com",
        "http://[2001:db8::1]:8080",
        "http://192.0.2.7:80",
        "capacitor://app",
    ]);
    for origin in [
        "https://example.com",
        "https://EXAMPLE.com:443",
        "http://[2001:db8:0:0::1]:8080",
        "http://192.0.2.7",
        "capacitor://app",
    ] {
        assert!(passes(&list, origin, "hub.net", true), "{origin}");
        assert_eq!(list.check(Some(origin), None, true), Ok(()));
    }
    for origin in [
        "http://example.com",
        "https://example.com:8443",
        "https://www.example.com",
        "https://example.co",
        "http://[2001:db8::1]",
        "https://192.0.2.7",
        "capacitor://app:1",
        "null",
    ] {
        assert!(!passes(&list, origin, "hub.net", true), "{origin}");
    }
}

#[test]
fn a_wildcard_allows_what_is_below_and_not_itself() {
    let list = policy(&["https://*.example.com", "http://*.dev.net:3000"]);
    for origin in [
        "https://a.example.com",
        "https://a.b.EXAMPLE.com",
        "https://a.example.com:443",
        "http://x.dev.net:3000",
    ] {
        assert!(passes(&list, origin, "hub.net", true), "{origin}");
    }
    for origin in [
        "https://example.com",
        "https://.example.com",
        "https://evilexample.com",
        "http://a.example.com",
        "https://a.example.com:8443",
        "https://a.example.com.evil.org",
        "http://x.dev.net",
    ] {
        assert!(!passes(&list, origin, "hub.net", true), "{origin}");
    }
}

#[test]
fn a_star_allows_everything() {
    let any = policy(&["https://example.com", "*"]);
    for origin in ["http://evil.org", "null", "custom://page", "", "what?"] {
        assert!(passes(&any, origin, "hub.net", false), "{origin:?}");
    }
}

#[test]
fn an_origin_that_cannot_be_read_is_refused() {
    let list = policy(&["https://example.com"]);
    for origin in [
        "",
        "example.com",
        "https://",
        "://example.com",
        "https://example.com/",
        "https://example.com/path",
        "https://user@example.com",
        "https://example.com:",
        "https://example.com:+443",
        "https://example.com:65536",
        "https://example.com:443 https://evil.org",
        "https://[::1",
        "https://[::1]x",
        "https://[example]",
        "https://exämple.com",
        "Null",
    ] {
        assert_eq!(
            list.check(Some(origin), Some("example.com"), true),
            Err(OriginError::Malformed),
            "{origin:?}"
        );
    }
}

#[test]
fn invalid_values_are_refused_with_what_is_expected() {
    for (value, hint) in [
        ("", "https://example.com"),
        ("null", "*"),
        ("example.com", "https://example.com"),
        ("example.com:8443/", "https://example.com:8443"),
        ("https://example.com/", "no path: https://example.com"),
        ("https://example.com/ws?a#b", "no path: https://example.com"),
        ("https://user:pw@example.com", "no user"),
        ("https://", "a host"),
        ("https://example.com:port", "a host and optionally a port"),
        ("https://example.com:99999", "a host and optionally a port"),
        ("https://*", "* alone"),
        ("https://*example.com", "* alone"),
        ("https://a.*.com", "* alone"),
        ("*.example.com", "scheme, host and port"),
        ("https://*.192.0.2.1", "a name after *."),
        ("https://exämple.com", "xn--"),
        ("1a://example.com", "a scheme"),
        ("https://example.com, https://example.org", "a host"),
    ] {
        let error = OriginPolicy::parse(["https://fine.org", value]).unwrap_err();
        assert_eq!(error.value(), value);
        assert!(error.expected().contains(hint), "{value:?}: {error}");
        assert!(error.to_string().contains(&format!("{value:?}")), "{error}");
    }
}

proptest! {
    #[test]
    fn any_header_is_decided(origin in "\\PC{0,40}|[a-z]{0,6}://[\\[\\]a-z0-9.:*/@]{0,30}", host in "[\\[\\]a-z0-9.:]{0,20}", tls: bool) {
        let own = OriginPolicy::default().check(Some(&origin), Some(&host), tls);
        prop_assert!(policy(&["*"]).check(Some(&origin), Some(&host), tls).is_ok());
        // A list of allowed origins never refuses an origin that passes without the list.
        let listed = policy(&["https://*.example.com"]).check(Some(&origin), Some(&host), tls);
        prop_assert!(own.is_err() || listed.is_ok());
    }

    #[test]
    fn any_value_is_read_or_refused_by_name(value in "\\PC{0,30}|[a-z]{0,6}://[\\[\\]a-z0-9.:*/@]{0,30}") {
        match OriginPolicy::parse([&value]) {
            Ok(list) if !value.contains('*') => prop_assert_eq!(list.check(Some(&value), None, true), Ok(())),
            Ok(_) => {}
            Err(error) => prop_assert_eq!(error.value(), value),
        }
    }

    #[test]
    fn an_origin_passes_at_its_own_host(name in "[a-z][a-z0-9-]{0,8}(\\.[a-z]{2,4}){1,2}", port in proptest::option::of(1..=u16::MAX), tls: bool) {
        let authority = port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"));
        let scheme = if tls { "https" } else { "http" };
        let origin = format!("{scheme}://{authority}");
        prop_assert!(passes(&OriginPolicy::default(), &origin, &authority.to_uppercase(), tls));
        let other = format!("x{authority}");
        prop_assert!(!passes(&OriginPolicy::default(), &origin, &other, tls));
        prop_assert!(passes(&policy(&[&origin]), &origin, &other, tls));
    }
}
