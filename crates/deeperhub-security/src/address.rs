//! What counts as one address.

use std::net::{IpAddr, Ipv6Addr};

/// The address that limits and lists count `address` as: an IPv6 address is its /64 (`2001:db8:1:2::`), which is what
/// one household or one machine has to choose from; an IPv4 address written as IPv6 (`::ffff:1.2.3.4`) is that IPv4
/// address, and any other IPv4 address is itself.
#[must_use]
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_is_its_network_of_64_bits_and_ipv4_is_itself() {
        let check = |address: &str, network: &str| {
            assert_eq!(
                client_network(address.parse().unwrap()),
                network.parse::<IpAddr>().unwrap(),
                "{address}"
            );
        };
        check("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::");
        check("::1", "::");
        check("192.0.2.1", "192.0.2.1");
        check("::ffff:192.0.2.1", "192.0.2.1");
    }
}
