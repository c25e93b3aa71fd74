//! Networks: an address, and how many of its bits count.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A network such as `10.0.0.0/8`; an address alone is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// Not IPv4 written as IPv6.
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether the address is one of the network's. IPv4 written as IPv6 (`::ffff:1.2.3.4`) counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let host_bits = 32 - u32::from(self.prefix);
                (network.to_bits() ^ address.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let host_bits = 128 - u32::from(self.prefix);
                (network.to_bits() ^ address.to_bits()).checked_shr(host_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// `prefix` must fit the address.
    fn new(address: IpAddr, prefix: u8) -> Self {
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), canonical @ IpAddr::V4(_)) if prefix >= 96 => {
                Self { address: canonical, prefix: prefix - 96 }
            }
            _ => Self { address, prefix },
        }
    }

    /// The address with the bits that do not count set to 0.
    fn first(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((address.to_bits() & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((address.to_bits() & mask).into())
            }
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = |problem| NetworkError { text: text.to_owned(), problem };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong(NetworkProblem::Address))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|&prefix| prefix <= longest)
                .ok_or(wrong(NetworkProblem::Prefix { longest }))?,
            Some(_) => return Err(wrong(NetworkProblem::Prefix { longest })),
        };
        let network = Self::new(address, prefix);
        let first = Self { address: network.first(), ..network };
        if first == network { Ok(network) } else { Err(wrong(NetworkProblem::HostBits { network: first })) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// A text is not a network. Whoever wrote it can mend it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{text:?} is not a network: {problem}")]
pub struct NetworkError {
    /// The text.
    pub text: String,
    /// What is wrong with it, and what would be right.
    pub problem: NetworkProblem,
}

/// What is wrong with a text that should be a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkProblem {
    /// What stands before the slash is no address.
    #[error("it starts with an IP address, as in 10.0.0.0/8 or ::1")]
    Address,
    /// What stands after the slash is no number of bits.
    #[error("after the slash stands a number from 0 to {longest}")]
    Prefix {
        /// The bits of an address of this kind.
        longest: u8,
    },
    /// The address has bits set that do not count.
    #[error("its network is {network}; an address alone has no slash")]
    HostBits {
        /// The network that the address is in.
        network: Network,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contains(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
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
    fn what_is_no_network_is_refused_with_what_would_be_right() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.starts_with(&format!("{text:?}")), "{error}");
        };
        for text in ["", "/8", "10.0.0/8", "localhost", " 10.0.0.0/8", "[::1]", "10.0.0.0:1", "1.2.3.4.5"] {
            check(text, "it starts with an IP address");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.0/256"]
        {
            check(text, "a number from 0 to 32");
        }
        check("::/129", "a number from 0 to 128");
        check("10.0.0.1/8", "its network is 10.0.0.0/8");
        check("2001:db8::1/64", "its network is 2001:db8::/64");
    }

    proptest! {
        #[test]
        fn a_network_is_written_as_it_is_read(bits: u32, prefix in 0..=32_u8) {
            let first = Network { address: IpAddr::V4(bits.into()), prefix }.first();
            let network: Network = format!("{first}/{prefix}").parse().unwrap();
            prop_assert!(network.contains(IpAddr::V4(bits.into())));
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
        }
    }
}
