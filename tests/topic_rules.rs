//! Rules for topics with history, as the operator writes them: flags, variables and files, their
//! errors, `config show`, `config check --for`, and reloads.

use serde_json::json;

use crate::cli::check_refused;
use crate::support::{Client, Server, TemporaryDir, run, text, wait_for};

/// Commands that read the settings.
const COMMANDS: [&[&str]; 4] = [&["config", "check"], &["config", "show"], &["serve"], &[]];

/// Checks that each command refuses a file, with these texts.
fn check_file_refused(file: &str, named: &[&str]) {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", file);
    for command in COMMANDS {
        check_refused(&[command, &["--config", text(&path)]].concat(), &[], named);
    }
}

#[test]
fn an_invalid_rule_exits_with_2_and_names_its_place_key_value_and_remedy() {
    let value = "'chat.>: history=many'";
    let remedy = "`history` is `many`; expected a whole number from 0 to 1000000";
    for command in COMMANDS {
        let flags = [command, &["--topic", "a:", "--topic", "chat.>: history=many"]].concat();
        check_refused(&flags, &[], &["--topic", value, remedy]);
        let variable = [("DEEPERHUB_TOPIC", "a:,chat.>: history=many")];
        check_refused(command, &variable, &[&format!("{value} for DEEPERHUB_TOPIC: {remedy}")]);
    }
    check_file_refused(
        "port = 0\ntopic = [\n  'a:',\n  'chat.>: history=many',\n]",
        &["hub.toml:4", &format!("{value} for topic in "), remedy],
    );
    check_file_refused(
        "[[topics]]\nmatch = 'a'\n\n[[topics]]\nmatch = 'chat.>'\nhistory = 'many'",
        &["hub.toml:6: [[topics]] 2 (chat.>): ", remedy],
    );
}

#[test]
fn every_key_of_a_rule_refuses_invalid_values() {
    let settings = [
        ("history", "-1", "expected a whole number from 0 to 1000000"),
        ("history_bytes", "0", "expected a size from 1 to 1GiB"),
        ("ttl", "8d", "expected a duration from 1s to 168h"),
        ("delivery", "newest", "expected lossless, drop_oldest, latest, sample or close"),
        ("keep", "0", "expected a whole number from 1 to 1000000"),
        ("every", "2h", "expected a duration from 10ms to 1h"),
        ("ack", "never", "expected memory or disk"),
        ("share", "1001", "expected a whole number from 1 to 1000"),
        ("max_streams", "1.5", "expected a whole number from 1 to 100000000"),
    ];
    let dir = TemporaryDir::new();
    let mut tables = String::new();
    for (key, value, expected) in settings {
        let named = format!("`{key}` is `{value}`; {expected}");
        check_refused(&["--topic", &format!("a: {key}={value}")], &[], &["--topic", &named]);
        tables += &format!("[[topics]]\nmatch = 'a'\n{key} = '{value}'\n");
    }
    // One run reports the errors of all rules.
    let path = dir.write("hub.toml", &tables);
    let named: Vec<_> = settings
        .iter()
        .zip(1..)
        .map(|((key, value, expected), number)| {
            let line = 3 * number;
            format!("hub.toml:{line}: [[topics]] {number} (a): `{key}` is `{value}`; {expected}")
        })
        .collect();
    let named: Vec<_> = named.iter().map(String::as_str).collect();
    check_refused(&["config", "check", "--config", text(&path)], &[], &named);
}

#[test]
fn malformed_rules_and_tables_are_refused_with_advice() {
    for (rule, named) in [
        ("", "`` is not a pattern with a colon"),
        ("chat.> history=1", "`chat.>` is not a pattern with a colon; write a rule as `chat.>: history=1000"),
        ("chat..>: history=1", "`chat..>` is not a topic or pattern: topic has an empty level"),
        ("$sys: history=1", "topics that start with `$` are reserved"),
        ("a: history", "`history` is not a setting; write it as `key=value`, without spaces"),
        ("a: history=1 history=2", "`history` stands twice; remove one of them"),
        ("a: presence=counts", "unknown key `presence`; a rule has the keys history, history_bytes, ttl,"),
        ("a: ttl=1m", "`ttl` has no effect without `history`; add"),
        ("a: history=0 delivery=latest", "`delivery` is `latest`; expected close, because `history` is 0"),
        ("a: history=5 delivery=drop_oldest keep=6", "`keep` is `6`; expected at most `history`, which is 5"),
    ] {
        check_refused(&["config", "check", "--topic", rule], &[], &["--topic", named]);
    }
    for (file, named) in [
        ("[[topics]]\nhistory = 5", "hub.toml:1: [[topics]] 1: `match` is missing; add a topic or pattern"),
        ("[[topics]]\nmatch = 5", "hub.toml:2: [[topics]] 1: `match` is `5`; expected a topic or pattern in"),
        ("[[topics]]\nmatch = 'a'\nttl = [1]", "hub.toml:3: [[topics]] 1 (a): `ttl` is `[1]`; expected one"),
        (
            "[[topics]]\nmatch = 'a'\npresence = 'off'",
            "hub.toml:3: unknown key 'presence'; a rule has the keys",
        ),
        (
            "[[topics]]\nmatch = 'a'\nhistroy = 1",
            "hub.toml:3: unknown key 'histroy'; did you mean 'history'?",
        ),
        (
            "[[topics]]\nmatch = 'a'\nport = 1",
            "hub.toml:3: unknown key 'port'; it is not part of a rule; move",
        ),
        ("[topics]\nmatch = 'a'", "expected two brackets, [[topics]]"),
        ("topics = ['a: history=1']", "expected tables, written [[topics]]"),
        ("[[topic]]\nmatch = 'a'", "tables are written [[topics]]"),
    ] {
        check_file_refused(file, &[named]);
    }
}

#[test]
fn invalid_limits_of_all_topics_are_refused() {
    for (flag, value, expected) in [
        ("--history-bytes", "0", "expected more than 0"),
        ("--history-bytes", "-1", "expected a size such as 64KiB, 256MiB or 1GiB, or a number of bytes"),
        ("--history-bytes", "64MB", "expected a size such as"),
        ("--max-streams", "0", "expected a whole number from 1 to 100000000"),
        ("--max-streams", "many", "expected a whole number from 1 to 100000000"),
        ("--history-forget", "1500ms", "expected whole seconds such as 90s, 10m or 1h, at most 168h"),
        ("--history-forget", "8d", "expected whole seconds such as"),
    ] {
        check_refused(&["config", "check", flag, value], &[], &[flag, value, expected]);
        let key = flag.trim_start_matches('-').replace('-', "_");
        let variable = format!("DEEPERHUB_{}", key.to_uppercase());
        check_refused(&["config", "show"], &[(&variable, value)], &[&variable, value, expected]);
        check_file_refused(&format!("{key} = '{value}'"), &[&format!("'{value}' for {key} in "), expected]);
    }
}

/// A file with a rule as text and two as tables.
const RULES_OF_A_FILE: &str = "topic = 'game.*: history=1'\n\n[[topics]]\nmatch = 'chat.42'\nhistory = 5\n\
                               [[topics]]\nmatch = 'chat.>'\nhistory = 100\nhistory_bytes = 4194304\nttl = '1h'";

#[test]
fn the_rule_of_a_topic_is_named_with_its_place_and_origin() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", RULES_OF_A_FILE);
    let config = ["config", "check", "--config", text(&path), "--topic", "chat.staff: history=0"];
    let variables = [("DEEPERHUB_TOPIC", "news.sports: history=7, news.>: history=9 delivery=latest")];
    let rule_of = |topic: &str| {
        let checked = run(&[&config[..], &["--for", topic]].concat(), &variables);
        assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
        let lines: Vec<_> = checked.stdout.lines().map(str::to_owned).collect();
        assert_eq!((lines[0].as_str(), lines.len()), ("The configuration is valid.", 2), "{checked:?}");
        lines[1].replace(text(&path), "hub.toml")
    };
    for (topic, expected) in [
        ("chat.staff", "Topic chat.staff gets rule 1 of 6 (--topic): chat.staff: history=0"),
        ("news.sports", "Topic news.sports gets rule 2 of 6 (DEEPERHUB_TOPIC): news.sports: history=7"),
        ("news.art", "Topic news.art gets rule 3 of 6 (DEEPERHUB_TOPIC): news.>: history=9 delivery=latest"),
        ("game.1", "Topic game.1 gets rule 4 of 6 (hub.toml:1): game.*: history=1"),
        ("chat.42", "Topic chat.42 gets rule 5 of 6 (hub.toml:3): chat.42: history=5"),
        ("chat.43", "Topic chat.43 gets rule 6 of 6 (hub.toml:6): chat.>: history=100 ttl=1h"),
        ("game.1.2", "Topic game.1.2 matches none of 6 rules; no messages are kept."),
    ] {
        assert_eq!(rule_of(topic), expected);
    }
    let none = run(&["config", "check", "--for", "a"], &[]);
    assert!(
        none.stdout.ends_with("\nTopic a matches no rule, because there are none; no messages are kept.\n")
    );
}

#[test]
fn an_invalid_topic_has_no_rule() {
    for (topic, expected) in [
        ("", "topic is empty"),
        ("a..b", "topic has an empty level"),
        ("a b", "topic contains white space"),
        ("chat.>", "wildcards are not allowed here; name one topic"),
        ("$sys", "topics that start with `$` are reserved"),
    ] {
        check_refused(&["config", "check", "--for", topic], &[], &["--for", topic, expected]);
    }
    // An invalid configuration has no rules to choose from.
    check_refused(&["config", "check", "--for", "a", "--topic", "a"], &[], &["--topic"]);
    check_refused(&["config", "show", "--for", "a"], &[], &["--for"]);
    check_refused(&["--for", "a"], &[], &["--for"]);
}

#[test]
fn rules_are_shown_with_their_origins_as_an_equivalent_file() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", RULES_OF_A_FILE);
    let flags =
        ["config", "show", "--config", text(&path), "--topic", "a,b: history=0", "--history-bytes", "1GiB"];
    let variables =
        [("DEEPERHUB_TOPIC", "c: history=7,d: history=8 ttl=600s"), ("DEEPERHUB_MAX_STREAMS", "9")];
    let shown = run(&flags, &variables);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let lines = |shown: &str| {
        let lines: Vec<_> = shown.lines().map(str::to_owned).collect();
        let start = lines.iter().position(|line| line.starts_with("topic = ")).expect("rules are shown");
        let words = lines[start..].iter().take(11).map(|line| {
            let (value, origin) = line.split_once("  # ").unwrap_or((line, ""));
            (value.trim().to_owned(), origin.replace(text(&path), "hub.toml"))
        });
        words.collect::<Vec<_>>()
    };
    let first = lines(&shown.stdout);
    let pairs: Vec<_> = first.iter().map(|(value, origin)| (value.as_str(), origin.as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("topic = [", ""),
            ("\"a,b: history=0\",", "--topic"),
            ("\"c: history=7\",", "DEEPERHUB_TOPIC"),
            ("\"d: history=8\",", "DEEPERHUB_TOPIC"),
            ("\"game.*: history=1\",", "hub.toml:1"),
            ("\"chat.42: history=5\",", "hub.toml:3"),
            ("\"chat.>: history=100 ttl=1h\",", "hub.toml:6"),
            ("]", ""),
            ("history_bytes = \"1GiB\"", "--history-bytes"),
            ("max_streams = 9", "DEEPERHUB_MAX_STREAMS"),
            ("history_forget = \"1h\"", "default"),
        ]
    );
    let equivalent = dir.write("shown.toml", &shown.stdout);
    let second = lines(&run(&["config", "show", "--config", text(&equivalent)], &[]).stdout);
    let values =
        |lines: &[(String, String)]| lines.iter().map(|(value, _)| value.clone()).collect::<Vec<_>>();
    assert_eq!(values(&first), values(&second));
}

#[test]
fn there_are_at_most_64_rules_of_all_sources_together() {
    let list = |name: &str, count: usize| {
        (0..count).map(|number| format!("{name}{number}: history=1")).collect::<Vec<_>>().join(",")
    };
    let dir = TemporaryDir::new();
    let tables = (0..30).map(|number| format!("[[topics]]\nmatch = 'f{number}'\nhistory = 1\n"));
    let path = dir.write("hub.toml", &tables.collect::<String>());
    let checked = |of_variable: usize| {
        let flags = [
            "config",
            "check",
            "--config",
            text(&path),
            "--topic",
            "a: history=1",
            "--topic",
            "b: history=1",
        ];
        run(&flags, &[("DEEPERHUB_TOPIC", &list("v", of_variable))])
    };
    assert_eq!(checked(32).code, Some(0));
    let refused = checked(33);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let expected = "there are 65 rules; keep at most 64, in --topic, DEEPERHUB_TOPIC, topic and [[topics]]";
    assert!(refused.stderr.contains(expected), "{refused:?}");
}

#[test]
fn history_is_allowed_with_either_broker() {
    for cluster in ["nats://127.0.0.1:1", "redis://127.0.0.1:1"] {
        let checked = run(&["config", "check", "--cluster", cluster, "--topic", "a.>: history=1"], &[]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        // Nothing listens on port 1.
        assert!(checked.stderr.contains("it was not checked whether it can keep history"), "{checked:?}");
    }
}

#[test]
fn acknowledging_on_disk_without_a_disk_is_refused_with_advice() {
    let named = [
        "the rule `a: history=1 ack=disk` (",
        "has ack=disk, and the history is not on a disk; use ack=memory, or set --history-store to disk",
    ];
    for command in COMMANDS {
        check_refused(&[command, &["--topic", "a: history=1 ack=disk"]].concat(), &[], &named);
    }
    check_file_refused("[[topics]]\nmatch = 'a'\nhistory = 1\nack = 'disk'", &named);
}

#[test]
fn a_disk_without_a_folder_is_refused_with_advice() {
    let named = ["is disk and there is no folder; expected one in --history-dir, DEEPERHUB_HISTORY_DIR or"];
    for command in COMMANDS {
        check_refused(&[command, &["--history-store", "disk"]].concat(), &[], &named);
        check_refused(command, &[("DEEPERHUB_HISTORY_STORE", "disk")], &named);
    }
    check_file_refused("history_store = 'disk'", &named);
    let store = ["config", "check", "--history-store", "disk", "--history-dir", "/tmp/history"];
    for (more, named) in [
        (["--history-sync", "5ms"], "expected a time from 10ms"),
        (["--history-disk-bytes", "1000"], "expected at least 1MiB"),
    ] {
        check_refused(&[&store[..], &more].concat(), &[], &[named]);
    }
    let cluster = ["--cluster", "redis://127.0.0.1:1", "--topic", "a: history=1 ack=disk"];
    let named = "has ack=disk, and the cluster's broker keeps the history; use ack=memory";
    check_refused(&[&store[..], &cluster].concat(), &[], &[named]);
    let file = "history_store = 'disk'\nhistory_dir = '/tmp/history'\nhistory_sync = 'always'\n\
                history_disk_bytes = '1GiB'\n[[topics]]\nmatch = 'a'\nhistory = 1\nack = 'disk'";
    let files = TemporaryDir::new();
    let path = files.write("hub.toml", file);
    let checked = run(&["config", "check", "--config", text(&path)], &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let environment = [
        ("DEEPERHUB_HISTORY_STORE", "disk"),
        ("DEEPERHUB_HISTORY_DIR", "/tmp/history"),
        ("DEEPERHUB_HISTORY_SYNC", "1s"),
        ("DEEPERHUB_HISTORY_DISK_BYTES", "2GiB"),
        ("DEEPERHUB_TOPIC", "a: history=1 ack=disk"),
    ];
    let checked = run(&["config", "check"], &environment);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn a_rule_that_no_topic_gets_is_warned_about() {
    let flags = ["config", "check", "--topic", "chat.>: history=5", "--topic", "chat.staff: history=0"];
    let checked = run(&flags, &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let expected =
        "warning: no topic gets the rule `chat.staff: history=0` (--topic), because `chat.>: history=5`";
    assert!(checked.stderr.contains(expected), "{checked:?}");
    Server::start(&flags[2..]).wait_for_stderr("no topic gets the rule");
}

/// Sends SIGHUP, and waits until the log has one more line with `text`.
async fn reload(server: &Server, text: &str) {
    let before = server.stderr().matches(text).count();
    server.signal("HUP");
    wait_for(text, async {
        while server.stderr().matches(text).count() == before {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_broken_rule_changes_nothing_on_sighup_and_is_reported() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "[[topics]]\nmatch = 'chat.>'\nhistory = 1000");
    let server = Server::start(&["--config", text(&path), "--topic", "flag: history=1"]);
    let expected = ["1 rule for history", "2 rules for history"].map(|text| server.start_line.contains(text));
    assert_eq!(expected, [false, true], "{}", server.start_line);

    dir.write("hub.toml", "max_streams = 5\n[[topics]]\nmatch = 'chat.>'\nhistory = 5\nttl = '8d'");
    reload(&server, "Reload failed; previous values stay in effect").await;
    let log = server.stderr();
    assert!(log.contains("hub.toml:5: [[topics]] 1 (chat.>): `ttl` is `8d`; expected"), "{log}");
    assert!(!log.contains("Setting changed"), "{log}");
    dir.write("hub.toml", "[[topics]]\nmatch = 'chat.>'\nhistory = 5\nack = 'disk'");
    reload(&server, "Reload failed; previous values stay in effect").await;
    assert!(server.stderr().contains("use ack=memory"), "{}", server.stderr());

    // The rules before the broken ones are those that change now.
    dir.write("hub.toml", "max_streams = 5\n[[topics]]\nmatch = 'chat.>'\nhistory = 5\nttl = '8h'");
    reload(&server, "Reloaded").await;
    let log = server.stderr();
    let changed = |key: &str| {
        let setting = format!("setting=\"{key}\"");
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&setting)).collect();
        assert!(lines.len() == 1 && !lines[0].contains("restart required"), "{key}: {log}");
        lines[0].to_owned()
    };
    let rules = changed("topic");
    let places = ["from=", "chat.>: history=1000", "to=", "flag: history=1", "chat.>: history=5 ttl=8h"]
        .map(|text| rules.rfind(text));
    assert!(places.is_sorted() && places[0].is_some(), "{places:?} {rules}");
    changed("max_streams");
}

#[tokio::test]
async fn subscribers_are_told_the_new_epoch_of_a_history_that_comes_back() {
    let dir = TemporaryDir::new();
    let rule = "[[topics]]\nmatch = 'chat.>'\nhistory = 10";
    let path = dir.write("hub.toml", rule);
    let server = Server::start(&["--config", text(&path)]);
    let mut client = Client::connect(&server).await;
    let mut publisher = Client::connect(&server).await;
    client.request(&json!({"type": "subscribe", "data": {"topic": "chat.1"}})).await;
    let publish = |number: u32| json!({"type": "publish", "id": number, "data": {"topic": "chat.1", "message": number}});
    publisher.request(&publish(1)).await;
    let first = client.receive().await["data"].clone();
    assert_eq!((&first["message"], &first["offset"]), (&json!(1), &json!(1)));

    dir.write("hub.toml", "");
    reload(&server, "Reloaded").await;
    publisher.request(&publish(2)).await;
    let without = client.receive().await["data"].clone();
    assert_eq!((&without["message"], without.get("offset")), (&json!(2), None), "{without}");

    dir.write("hub.toml", rule);
    reload(&server, "Reloaded").await;
    publisher.request(&publish(3)).await;
    let gap = client.receive().await;
    assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("epoch")), "{gap}");
    let (epoch, offset) = (&gap["data"]["epoch"], &gap["data"]["offset"]);
    assert_eq!((*epoch != first["epoch"], offset), (true, &json!(0)), "{gap}");
    let next = client.receive().await["data"].clone();
    assert_eq!((&next["message"], &next["epoch"], &next["offset"]), (&json!(3), epoch, &json!(1)));
}
