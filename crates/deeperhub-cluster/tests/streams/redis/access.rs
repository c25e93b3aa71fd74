//! Rights that a server must grant, and the check of them.

use deeperhub_cluster::{AppendError, BrokerUrl, Config, StoreFinding, check_broker, check_store};

use super::server::{Admin, Reply, Server};
use crate::node::{Node, message};
use crate::scenarios::use_every_operation;
use crate::store::Store;
use crate::{eventually, wait};

/// Returns the rights of a user that the crate's README lists.
fn documented_rights() -> Vec<&'static str> {
    let readme = include_str!("../../../README.md");
    let rights = readme
        .split("ACL SETUSER hub on '>PASSWORD' resetchannels ")
        .nth(1)
        .expect("the README lists rights");
    let rights = rights.split("```").next().unwrap_or_default();
    rights.split_whitespace().filter(|right| *right != "\\").map(|right| right.trim_matches('\'')).collect()
}

fn start(rights: &[&str]) -> Option<(Server, String)> {
    let server = Server::start_with(&[])?;
    let command = [&["ACL", "SETUSER", "hub", "on", ">secret", "resetchannels"], rights].concat();
    assert_eq!(server.run(&command), Reply::Status("OK".to_owned()));
    // Nothing works without a password.
    server.run(&["ACL", "SETUSER", "default", "resetpass", ">other"]);
    let url = format!("redis://hub:secret@{}", server.address());
    Some((server, url))
}

fn check(url: &str) -> Vec<StoreFinding> {
    wait(check_store(&Config::new(BrokerUrl::parse(url).unwrap()))).unwrap()
}

#[test]
fn the_documented_rights_are_enough() {
    let Some((_server, url)) = start(&documented_rights()) else { return };
    assert_eq!(check(&url), []);
    use_every_operation(&url);
}

#[test]
fn each_documented_right_is_needed() {
    // Checks know less without these.
    let optional = ["+role", "+info"];
    let rights = documented_rights();
    let Some((server, url)) = start(&rights) else { return };
    assert_eq!(check(&url), []);
    for right in &rights {
        if optional.contains(right) {
            continue;
        }
        let revoked = match right.split_at(1) {
            ("+", command) => format!("-{command}"),
            ("~", _) => "resetkeys".to_owned(),
            _ => "resetchannels".to_owned(),
        };
        let mut stream = server_as_admin(&server);
        stream.command(&["ACL", "SETUSER", "hub", &revoked]);
        let findings = check(&url);
        assert_eq!(findings, [StoreFinding::MissingRights(vec![(*right).to_owned()])]);
        assert!(findings[0].is_error() && findings[0].to_string().ends_with(right));
        stream.command(&["ACL", "SETUSER", "hub", right]);
        assert_eq!(check(&url), [], "{right}");
    }
}

#[test]
fn what_an_access_list_forbids_is_told() {
    let rights = ["~*", "&*", "+publish", "+subscribe", "+psubscribe", "+unsubscribe", "+punsubscribe"];
    let Some((_server, url)) = start(&rights) else { return };
    let findings = check(&url);
    assert!(
        matches!(&findings[..], [StoreFinding::Unknown(info), StoreFinding::MissingRights(rights)]
            if info.contains("info") && rights.first().is_some_and(|right| right == "+script|load")
                && rights.len() == 16),
        "{findings:?}"
    );
    // Messages that are not stored still pass, and appends tell the reason.
    let node = Node::join(&url, "a");
    node.append(1, message("t", "1")).unwrap();
    let Err(AppendError::Refused(reason)) = node.outcome(1) else { panic!("scripts are forbidden") };
    assert!(reason.contains("NOPERM"), "{reason}");
    assert!(node.broker.is_up());
}

#[test]
fn policies_that_evict_are_told() {
    let Some(server) = Server::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"])
    else {
        return;
    };
    let findings = check(&server.url());
    assert_eq!(findings, [StoreFinding::Evicts("allkeys-lru".to_owned())]);
    assert!(!findings[0].is_error());
    assert_eq!(server.run(&["DBSIZE"]), Reply::Number(0), "the check leaves nothing");
    server.run(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    assert_eq!(check(&server.url()), []);
}

#[test]
fn a_replica_is_told_unless_its_primary_is_named_too() {
    let Some(primary) = Server::start_with(&[]) else { return };
    let port = primary.address().port().to_string();
    let Some(replica) = Server::start_with(&["--replicaof", "127.0.0.1", &port]) else { return };
    assert_eq!(check(&replica.url()), [StoreFinding::Replica]);
    let config = Config::new(BrokerUrl::parse(&replica.url()).unwrap());
    assert_eq!(wait(check_broker(&config)), Ok(vec![StoreFinding::Replica]));
    eventually("the replica", || {
        let Reply::Bytes(info) = primary.run(&["INFO", "replication"]) else { return false };
        String::from_utf8_lossy(&info).contains("connected_slaves:1")
    });
    let both = format!("{},{}", replica.url(), primary.address());
    assert_eq!(check(&both), [StoreFinding::UnguardedReplicas]);
    primary.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    eventually("the replica's acknowledgement", || check(&both).is_empty());
}

#[test]
fn a_node_without_streams_needs_few_rights() {
    let rights = ["&*", "+publish", "+subscribe", "+psubscribe", "+unsubscribe", "+punsubscribe"];
    let Some((server, url)) = start(&rights) else { return };
    let wrong = Config::new(BrokerUrl::parse(&url.replace("secret", "wrong")).unwrap());
    assert!(matches!(&wait(check_broker(&wrong)).unwrap()[..], [StoreFinding::LoginRefused(_)]));
    let check = || wait(check_broker(&Config::new(BrokerUrl::parse(&url).unwrap()))).unwrap();
    assert_eq!(check(), []);
    let mut admin = server_as_admin(&server);
    admin.command(&["ACL", "SETUSER", "hub", "-publish", "-psubscribe", "resetchannels"]);
    let missing = ["+publish", "&*", "+psubscribe"].map(str::to_owned).to_vec();
    assert_eq!(check(), [StoreFinding::MissingRights(missing)]);
}

fn server_as_admin(server: &Server) -> Admin {
    server.admin("other")
}
