//! History on disk, with a folder or a disk that is not as it should be.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::disk_history::{Disk, history, kill, offsets, publish, subscribe};
use crate::support::{Client, Server, TemporaryDir, http, metric, run, text, wait_for};

const RULE: &str = "feed.>: history=10000 ttl=1h ack=disk";

/// Starts a program that must fail, and returns its code and standard error.
fn refused(folder: &str, flags: &[&str]) -> (Option<i32>, String) {
    let store = ["--port", "0", "--api-listen", "off", "--history-store", "disk", "--history-dir", folder];
    let finished = run(&[&store, flags].concat(), &[]);
    (finished.code, finished.stderr)
}

#[tokio::test]
async fn a_second_process_on_the_folder_is_refused_and_the_first_goes_on() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", RULE]);
    publish(&server, "feed.1", 1, 3).await;
    let (code, stderr) = refused(text(&disk.path()), &[]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("is in use by another process; stop it, or choose another folder"), "{stderr}");
    publish(&server, "feed.1", 4, 5).await;
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), [1, 2, 3, 4, 5]);
}

#[test]
fn folders_that_cannot_be_used_are_refused_with_advice() {
    let folder = TemporaryDir::new();
    let file = folder.write("file", "");
    // The proc file system takes no files, not even those of root.
    for path in ["/proc/deeperhub-history", text(&file)] {
        let (code, stderr) = refused(path, &[]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("choose a folder that this user may write to"), "{stderr}");
    }
    let newer = folder.path("newer");
    std::fs::create_dir(&newer).unwrap();
    std::fs::write(newer.join("VERSION"), "deeperhub-store 9\n").unwrap();
    let (code, stderr) = refused(text(&newer), &[]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("has format \"deeperhub-store 9\""), "{stderr}");
    assert_eq!(std::fs::read_to_string(newer.join("VERSION")).unwrap(), "deeperhub-store 9\n");
}

/// Returns the paths of the files of messages in a folder, oldest first.
fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    segments.sort();
    segments
}

#[tokio::test]
async fn a_torn_write_costs_nothing_that_was_acknowledged() {
    let disk = Disk::new();
    for round in 0..4_u64 {
        let server = disk.start(&["--topic", RULE]);
        assert_eq!(offsets(&history(&server, "feed.1", "asc").await), Vec::from_iter(1..=10 * round));
        let last = publish(&server, "feed.1", 10 * round + 1, 10 * round + 10).await;
        assert_eq!(last["offset"], 10 * round + 10);
        kill(server);
        let newest = segments(&disk.path()).pop().unwrap();
        let mut file = std::fs::File::options().append(true).open(newest).unwrap();
        file.write_all(&b"a record that is not whole"[..5 + 7 * round as usize]).unwrap();
    }
}

/// Limits the size of files that a server may write.
fn limit_files(server: &Server, bytes: &str) {
    let pid = server.process_id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}")]).status();
    assert!(limited.expect("prlimit runs").success());
}

async fn readiness(server: &Server) -> (u16, Value) {
    let answer = http(server.api(), "GET /health/ready", &[], "").await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_full_disk_refuses_publishes_and_the_hub_goes_on() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", RULE, "--topic", "fast.>: history=1000 ttl=1h", "--workers", "1"]);
    let mut client = Client::connect(&server).await;
    client.request(&subscribe("feed.1", json!({}))).await;
    publish(&server, "feed.1", 1, 3).await;
    for offset in 1..=3 {
        assert_eq!(client.receive().await["data"]["offset"], offset);
    }
    for round in 0..3_u64 {
        limit_files(&server, "0:unlimited");
        // The first message finds out. It was delivered, but nobody may count on it.
        let data = json!({ "topic": "fast.1", "message": "lost?" });
        client.send(&json!({ "type": "publish", "data": data })).await;
        wait_for("the store to be unavailable", async {
            while readiness(&server).await.0 == 200 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        let (_, reasons) = readiness(&server).await;
        assert!(reasons.to_string().contains("history_unavailable"), "{reasons}");
        assert_eq!(metric(&server, "deeperhub_store_available").await, 0);

        for topic in ["feed.1", "fast.1"] {
            let data = json!({ "topic": topic, "message": 0 });
            let refused = client.request(&json!({ "type": "publish", "id": 5, "data": data })).await;
            let data = &refused["data"];
            assert_eq!((&refused["id"], &data["code"]), (&json!(5), &json!("unavailable")), "{refused}");
            assert_eq!((&data["topic"], &data["retry_after_ms"]), (&json!(topic), &json!(1000)));
            let path = format!("POST /v1/topics/{topic}/messages");
            let refused = http(server.api(), &path, &[], "0").await;
            assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.body);
            assert_eq!(refused.json()["error"]["code"], "unavailable");
            let path = format!("DELETE /v1/topics/{topic}/messages");
            assert_eq!(http(server.api(), &path, &[], "").await.status, 503);
        }
        // Topics without history and reads go on.
        publish(&server, "other", 0, 1).await;
        let before = offsets(&history(&server, "feed.1", "asc").await);
        assert_eq!(before, Vec::from_iter(1..=3 + round));

        limit_files(&server, "unlimited:unlimited");
        wait_for("the store to be available", async {
            while readiness(&server).await.0 != 200 {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await;
        let next = publish(&server, "feed.1", 4 + round, 4 + round).await;
        assert_eq!(next["offset"], 4 + round, "refused messages have no offsets");
        assert_eq!(client.receive().await["data"]["offset"], 4 + round);
    }
    kill(server);
    let server = disk.start(&["--topic", RULE, "--topic", "fast.>: history=1000 ttl=1h"]);
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), Vec::from_iter(1..=6));
    assert_eq!(offsets(&history(&server, "fast.1", "asc").await), Vec::from_iter(1..=3));
}

#[tokio::test]
async fn a_message_that_waits_for_a_full_disk_is_answered() {
    let disk = Disk::new();
    let server = disk.start(&["--topic", RULE, "--workers", "1"]);
    publish(&server, "feed.1", 1, 1).await;
    limit_files(&server, "0:unlimited");
    let mut client = Client::connect(&server).await;
    let data = json!({ "topic": "feed.1", "message": 2, "once": "a" });
    let message = json!({ "type": "publish", "id": 1, "data": data });
    let refused = client.request(&message).await;
    assert_eq!(refused["data"]["code"], "unavailable", "{refused}");
    limit_files(&server, "unlimited:unlimited");
    // A retry with the same `once` is not stored twice.
    let published = wait_for("the retry", async {
        loop {
            let answer = client.request(&message).await;
            if answer["type"] == "published" {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(published["data"]["offset"], 2);
    assert_eq!(offsets(&history(&server, "feed.1", "asc").await), [1, 2]);
}
