//! A network namespace with a link for each node, whose packets can be dropped or slowed.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Capability, try_install};

/// Number of links created by this process, so that each has its own addresses.
static LINK_COUNT: AtomicU8 = AtomicU8::new(0);

/// A network namespace; removed on drop, with its links and rules.
#[derive(Debug)]
pub(crate) struct Network {
    namespace: String,
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    /// Name of both ends, each on its side.
    name: String,
    /// Address of the end within the namespace.
    address: Ipv4Addr,
}

impl Network {
    /// Creates a namespace with `links` links. If that is impossible, the test is skipped.
    pub(crate) fn new(links: u8) -> Option<Self> {
        Capability::NetworkNamespaces.check(Self::create(links))
    }

    fn create(links: u8) -> Result<Self, String> {
        try_install(&["iproute2", "nftables"])?;
        let first = LINK_COUNT.fetch_add(links, Ordering::Relaxed);
        let namespace = format!("hub-{}-{first}", std::process::id());
        run("ip", &["netns", "add", &namespace])?;
        let mut network = Self { namespace, links: Vec::new() };
        network.link(first, links)?;
        Ok(network)
    }

    fn link(&mut self, first: u8, links: u8) -> Result<(), String> {
        self.within(&["ip", "link", "set", "lo", "up"])?;
        for number in first..first + links {
            // From the range reserved for benchmarks (RFC 2544); four addresses per link.
            let low = (number % 64) * 4;
            let third = (std::process::id() % 256) as u8;
            let here = Ipv4Addr::new(198, 18, third, low + 1);
            let address = Ipv4Addr::new(198, 18, third, low + 2);
            let name = format!("hub{}x{number}", std::process::id());
            let there = ["peer", "name", &name, "netns", &self.namespace];
            run("ip", &[&["link", "add", &name, "type", "veth"][..], &there].concat())?;
            run("ip", &["address", "add", &format!("{here}/30"), "dev", &name])?;
            run("ip", &["link", "set", &name, "up"])?;
            self.within(&["ip", "address", "add", &format!("{address}/30"), "dev", &name])?;
            self.within(&["ip", "link", "set", &name, "up"])?;
            self.links.push(Link { name, address });
        }
        self.within(&["nft", "add", "table", "ip", "hub"])?;
        for hook in ["input", "output"] {
            let chain = format!("{{ type filter hook {hook} priority 0; }}");
            self.within(&["nft", "add", "chain", "ip", "hub", hook, &chain])?;
        }
        Ok(())
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the address within the namespace that a link leads to.
    pub(crate) fn address(&self, link: usize) -> Ipv4Addr {
        self.links[link].address
    }

    /// Drops all packets of a link in both directions silently.
    pub(crate) fn drop_all(&self, link: usize) {
        let name = &self.links[link].name;
        self.must(&["nft", "add", "rule", "ip", "hub", "input", "iifname", name, "drop"]);
        self.must(&["nft", "add", "rule", "ip", "hub", "output", "oifname", name, "drop"]);
    }

    /// Drops a share of a link's packets in both directions at random, in percent.
    pub(crate) fn lose(&self, link: usize, percent: u8) {
        let (name, percent) = (&self.links[link].name, percent.to_string());
        for (hook, direction) in [("input", "iifname"), ("output", "oifname")] {
            let lost = ["numgen", "random", "mod", "100", "<", &percent, "drop"];
            self.must(&[&["nft", "add", "rule", "ip", "hub", hook, direction, name][..], &lost].concat());
        }
    }

    /// Lets packets of all links pass again.
    pub(crate) fn heal(&self) {
        self.must(&["nft", "flush", "chain", "ip", "hub", "input"]);
        self.must(&["nft", "flush", "chain", "ip", "hub", "output"]);
    }

    /// Limits a link's bandwidth in each direction, such as `400kbit`.
    pub(crate) fn limit(&self, link: usize, rate: &str) {
        let name = &self.links[link].name;
        let rule =
            ["qdisc", "add", "dev", name, "root", "tbf", "rate", rate, "burst", "4kb", "latency", "400ms"];
        run("tc", &rule).unwrap_or_else(|error| panic!("{error}"));
        self.must(&[&["tc"][..], &rule].concat());
    }

    /// Removes the limit of [`Self::limit`].
    pub(crate) fn unlimit(&self, link: usize) {
        let rule = ["qdisc", "del", "dev", &self.links[link].name, "root"];
        run("tc", &rule).unwrap_or_else(|error| panic!("{error}"));
        self.must(&[&["tc"][..], &rule].concat());
    }

    fn within(&self, command: &[&str]) -> Result<(), String> {
        run("ip", &[&["netns", "exec", &self.namespace][..], command].concat())
    }

    fn must(&self, command: &[&str]) {
        self.within(command).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Deleting the namespace also removes the link ends on this side.
        let _ = run("ip", &["netns", "delete", &self.namespace]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), output.trim()))
}
