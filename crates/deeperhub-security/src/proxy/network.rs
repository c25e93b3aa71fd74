//! Parsing of networks, with errors for people.

use ipnet::IpNet;
use std::net::IpAddr;

/// Parses a network such as `10.0.0.0/8`, or an address, which is a network of one.
///
/// An IPv4-mapped network (`::ffff:10.0.0.0/104`) becomes that IPv4 network.
///
/// # Errors
///
/// [`NetworkError`] names the text and what is expected.
pub fn parse_network(text: &str) -> Result<IpNet, NetworkError> {
    let invalid = |problem| NetworkError { text: text.to_owned(), problem };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| invalid(NetworkProblem::Address))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => Some(longest),
        // `parse` would accept a sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
    };
    let (address, prefix) = match (address.to_canonical(), prefix) {
        (IpAddr::V4(mapped), Some(prefix @ 96..)) if address.is_ipv6() => (mapped.into(), Some(prefix - 96)),
        (_, prefix) => (address, prefix),
    };
    let network = prefix.and_then(|prefix| IpNet::new(address, prefix).ok());
    let network = network.ok_or(invalid(NetworkProblem::Prefix { longest }))?;
    if network.trunc() == network {
        Ok(network)
    } else {
        Err(invalid(NetworkProblem::HostBits { network: network.trunc() }))
    }
}

/// Error for a text that is not a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{text:?} is not a network: {problem}")]
pub struct NetworkError {
    /// The text.
    pub text: String,
    /// The problem, and the expected text.
    pub problem: NetworkProblem,
}

/// Problem of a text that should be a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkProblem {
    /// The part before the slash is not an address.
    #[error("expected an IP address first, as in 10.0.0.0/8 or ::1")]
    Address,
    /// The part after the slash is not a prefix length.
    #[error("expected a number from 0 to {longest} after the slash")]
    Prefix {
        /// Maximum prefix length for the address.
        longest: u8,
    },
    /// The address has bits set beyond the prefix.
    #[error("bits are set beyond the prefix; expected {network}, or an address without a slash")]
    HostBits {
        /// The network that contains the address.
        network: IpNet,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contains(network: &str, address: &str) -> bool {
        crate::proxy::TrustedProxies(vec![parse_network(network).unwrap()]).trusts(address.parse().unwrap())
    }

    #[test]
    fn a_network_has_the_addresses_that_share_its_first_bits() {
        for (network, address) in [
            ("10.0.0.0/8", "10.255.255.255"),
            ("0.0.0.0/0", "255.255.255.255"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.2/31", "192.0.2.3"),
            ("::/0", "ffff::"),
            ("2001:db8::/33", "2001:db8:7fff::1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3"),
            ("::1", "::1"),
        ] {
            assert!(contains(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.0.0.0/8", "11.0.0.0"),
            ("192.0.2.1", "192.0.2.0"),
            ("0.0.0.0/0", "::1"),
            ("::/0", "192.0.2.1"),
            ("2001:db8::/33", "2001:db8:8000::"),
            ("::1", "::2"),
        ] {
            assert!(!contains(network, address), "{network} {address}");
        }
    }

    #[test]
    fn invalid_networks_are_refused_with_what_is_expected() {
        let check = |text: &str, expected: &str| {
            let error = parse_network(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.starts_with(&format!("{text:?}")), "{error}");
        };
        for text in ["", "/8", "10.0.0/8", "localhost", " 10.0.0.0/8", "[::1]", "10.0.0.0:1", "1.2.3.4.5"] {
            check(text, "expected an IP address first");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.0/256"]
        {
            check(text, "a number from 0 to 32");
        }
        check("::/129", "a number from 0 to 128");
        check("10.0.0.1/8", "expected 10.0.0.0/8");
        check("2001:db8::1/64", "expected 2001:db8::/64");
    }

    proptest! {
        #[test]
        fn a_network_parses_from_its_display(bits: u32, prefix in 0..=32_u8) {
            let network = IpNet::new(IpAddr::V4(bits.into()), prefix).unwrap().trunc();
            prop_assert_eq!(parse_network(&network.to_string()), Ok(network));
        }
    }
}
