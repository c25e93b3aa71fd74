//! The unit in which limits count client addresses.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the address that represents all addresses of one client.
///
/// For IPv6, that is the first address of the /64 (`2001:db8:1:2::`), because one machine can use
/// any address of its /64. An IPv4-mapped address (`::ffff:1.2.3.4`) becomes its IPv4 address.
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
