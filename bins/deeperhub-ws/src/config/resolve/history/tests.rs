//! Tests of rules for topics and their limits.

use deeperhub_cluster::StreamStorage;
use std::time::Duration;

use crate::config::effective::Settings;
use crate::config::layers::Layers;
use crate::config::options::Options;
use crate::config::resolve::resolve;

fn settings(flags: &[&str]) -> Result<Settings, String> {
    let matches = Options::parser().get_matches_from(flags);
    Layers::read([&matches], []).and_then(resolve).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

fn bytes(flags: &[&str]) -> u64 {
    settings(flags).unwrap().node.history.budget.bytes
}

#[test]
fn defaults_are_as_documented() {
    let history = settings(&["--max-memory=0"]).unwrap().node.history;
    assert!(history.rules.is_empty());
    assert_eq!((history.budget.bytes, history.budget.streams), (256 << 20, 1_000_000));
    assert_eq!(history.budget.forget, Duration::from_secs(3600));
}

#[test]
fn the_default_of_the_bytes_is_at_most_an_eighth_of_the_memory() {
    assert_eq!(bytes(&["--max-memory=800000"]), 100_000);
    assert_eq!(bytes(&["--max-memory=2147483647"]), (256 << 20) - 1);
    assert_eq!(bytes(&["--max-memory=4294967296"]), 256 << 20);
    assert_eq!(bytes(&["--max-memory=1"]), 1);
    assert_eq!(bytes(&["--max-memory=800000", "--history-bytes=1GiB"]), 1 << 30);
}

#[test]
fn limits_of_all_topics_reach_the_node() {
    let flags =
        ["--history-bytes=64KiB", "--max-streams=7", "--history-forget=90s", "--topic=a.>: history=5"];
    let history = settings(&flags).unwrap().node.limits().history;
    assert_eq!((history.budget.bytes, history.budget.streams), (65_536, 7));
    assert_eq!(history.budget.forget, Duration::from_secs(90));
    assert_eq!(history.rules.iter().next().map(|(_, rule)| rule.to_string()).unwrap(), "a.>: history=5");
    let error = settings(&["--history-bytes=0KiB"]).unwrap_err();
    assert_eq!(error, "invalid value '0' for --history-bytes: expected more than 0");
}

#[test]
fn invalid_values_are_refused() {
    for flag in [
        "--history-bytes=-1",
        "--history-bytes=",
        "--history-bytes=1.5GiB",
        "--history-bytes=4MB",
        "--history-bytes=99999999999999999999",
        "--max-streams=0",
        "--max-streams=100000001",
        "--max-streams=1MiB",
        "--history-forget=1d",
        "--history-forget=3600",
        "--history-forget=1500ms",
        "--topic=",
        "--topic=a",
        "--topic=a history=1",
        "--topic=a: history=1 history=2",
        "--topic=a: match=b",
    ] {
        let matches = Options::parser().try_get_matches_from([flag]);
        assert!(matches.is_err(), "{flag}");
    }
}

#[test]
fn there_are_at_most_64_rules() {
    let flags: Vec<_> = (0..65).map(|number| format!("--topic=a{number}: history=1")).collect();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    assert_eq!(settings(&flags[1..]).unwrap().node.history.rules.len(), 64);
    let error = settings(&flags).unwrap_err();
    assert_eq!(
        error,
        "there are 65 rules; keep at most 64, in --topic, DEEPERHUB_TOPIC, topic and [[topics]] together"
    );
}

#[test]
fn acknowledging_on_disk_needs_a_disk() {
    let rules = ["--topic=a:", "--topic=b.>: history=5 ack=disk"];
    assert_eq!(
        settings(&rules).unwrap_err(),
        "the rule `b.>: history=5 ack=disk` (--topic) has ack=disk, and the history is not on a disk; \
         use ack=memory, or set --history-store to disk"
    );
}

#[cfg(feature = "disk")]
#[test]
fn the_store_on_disk_has_a_folder_and_takes_its_settings() {
    use deeperhub_node::HistoryStore;

    let disk = |flags: &[&str]| match settings(flags).unwrap().node.history_store {
        HistoryStore::Disk(disk) => disk,
        other => panic!("{other:?}"),
    };
    let store = ["--history-store=disk", "--history-dir=/tmp/history"];
    let defaults = disk(&[&store, &["--topic=b: history=5 ack=disk"][..]].concat());
    assert_eq!(defaults.folder.to_str(), Some("/tmp/history"));
    assert_eq!((defaults.sync_interval, defaults.max_bytes), (Some(Duration::from_millis(100)), None));
    let set = disk(&[&store, &["--history-sync=always", "--history-disk-bytes=1GiB"][..]].concat());
    assert_eq!((set.sync_interval, set.max_bytes), (None, Some(1 << 30)));

    assert_eq!(
        settings(&["--history-store=disk"]).unwrap_err(),
        "--history-store is disk and there is no folder; expected one in --history-dir, \
         DEEPERHUB_HISTORY_DIR or history_dir as well"
    );
    let small = settings(&[&store, &["--history-disk-bytes=1000000"][..]].concat()).unwrap_err();
    assert!(small.ends_with("expected at least 1MiB"), "{small}");
    let cluster = settings(&[&store, &["--cluster=nats://h"][..]].concat()).unwrap();
    assert_eq!(cluster.node.history_store, HistoryStore::Memory);
    assert_eq!(
        cluster.warnings,
        ["--history-store has no effect with --cluster, because the cluster's broker keeps the history"]
    );
    let kept = [&store, &["--cluster=redis://h", "--topic=a: history=1 ack=disk"][..]].concat();
    assert_eq!(
        settings(&kept).unwrap_err(),
        "the rule `a: history=1 ack=disk` (--topic) has ack=disk, and the cluster's broker keeps the history; \
         use ack=memory, which waits for the broker"
    );
    let unused = settings(&["--history-dir=/tmp/history", "--history-sync=1s"]).unwrap().warnings;
    assert_eq!(
        unused,
        [
            "--history-dir has no effect without --history-store disk",
            "--history-sync has no effect without --history-store disk"
        ]
    );
}

#[test]
fn a_cluster_of_either_broker_keeps_history() {
    for cluster in ["--cluster=nats://h", "--cluster=redis://h"] {
        let settings = settings(&[cluster, "--topic=a:", "--topic=b: history=5"]).unwrap();
        assert_eq!((settings.warnings, settings.node.history.rules.len()), (Vec::new(), 2));
    }
    let replicas = |flags: &[&str]| {
        let settings = settings(flags)?;
        let stream = settings
            .node
            .cluster
            .map(|cluster| (cluster.broker.stream_replicas, cluster.broker.stream_storage));
        Ok::<_, String>((stream, settings.warnings))
    };
    let nats = ["--cluster=nats://h", "--history-replicas=3", "--history-storage=memory"];
    assert_eq!(replicas(&nats), Ok((Some((3, StreamStorage::Memory)), Vec::new())));
    assert_eq!(replicas(&nats[..1]), Ok((Some((1, StreamStorage::File)), Vec::new())));
    let unused = |name: &str| format!("{name} has no effect without a cluster of NATS");
    let warnings = vec![unused("--history-replicas"), unused("--history-storage")];
    assert_eq!(replicas(&nats[1..]), Ok((None, warnings.clone())));
    let redis = ["--cluster=redis://h", nats[1], nats[2]];
    assert_eq!(replicas(&redis).unwrap().1, warnings);
    let even = replicas(&["--cluster=nats://h", "--history-replicas=2"]).unwrap_err();
    assert!(even.contains("expected 1, 3 or 5"), "{even}");
}

#[test]
fn a_rule_that_no_topic_gets_is_warned_about() {
    let flags = ["--topic=a.>: history=5", "--topic=b.*:", "--topic=a.b:", "--topic=>: history=1"];
    let warnings = settings(&flags).unwrap().warnings;
    assert_eq!(
        warnings,
        ["no topic gets the rule `a.b: history=0` (--topic), because `a.>: history=5` (--topic) comes first"]
    );
}

#[test]
fn a_history_as_large_as_the_memory_is_warned_about() {
    let warnings = |bytes: &str, rule: &str| {
        let bytes = format!("--history-bytes={bytes}");
        settings(&["--max-memory=1000000", &bytes, rule]).unwrap().warnings
    };
    let expected =
        "--history-bytes is 800000, and connections are refused from 800000 on (80 % of --max-memory)";
    assert_eq!(warnings("800000", "--topic=a: history=1"), [expected]);
    assert_eq!(warnings("799999", "--topic=a: history=1"), [""; 0]);
    assert_eq!(warnings("800000", "--topic=a: history=0"), [""; 0]);
}

#[test]
fn rules_that_leave_no_topics_to_others_are_warned_about() {
    let warnings = |streams: &str| {
        let rules =
            ["--topic=a.>: history=1 max_streams=7", "--topic=b.>: history=1", "--topic=c: history=0"];
        settings(&[&[streams], &rules[..]].concat()).unwrap().warnings
    };
    let expected =
        "rules with max_streams may use all 7 of --max-streams, so each rule without it gets one topic";
    assert_eq!(warnings("--max-streams=7"), [expected]);
    assert_eq!(warnings("--max-streams=8"), [""; 0]);
}

#[test]
fn each_rule_is_shown_with_its_origin() {
    let shown = |flags: &[&str]| settings(flags).unwrap().show().to_string();
    let rules = shown(&["--topic=say.\"hi\": history=5 delivery=lossless", "--topic=b.>: history=7 ttl=60s"]);
    let lines: Vec<_> = rules.lines().skip_while(|line| !line.starts_with("topic = ")).take(4).collect();
    let parts: Vec<_> =
        lines.iter().map(|line| line.split("  #").map(str::trim).collect::<Vec<_>>()).collect();
    assert_eq!(
        parts,
        [
            vec!["topic = ["],
            vec![r#"'say."hi": history=5',"#, "--topic"],
            vec![r#""b.>: history=7 ttl=1m","#, "--topic"],
            vec!["]"],
        ]
    );
    let toml: toml::Table = rules.parse().unwrap();
    assert_eq!(toml["topic"].as_array().map(Vec::len), Some(2));
    let none = shown(&[]);
    let line = none.lines().find(|line| line.starts_with("topic = "));
    assert!(
        line.is_some_and(|line| line.starts_with("topic = [] ") && line.ends_with("# default")),
        "{none}"
    );
}
