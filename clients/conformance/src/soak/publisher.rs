//! The backend: publishes numbered messages over the server API.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::sync::watch;

use super::hub::Addresses;
use super::oracle::Oracle;
use super::{TOPICS, lock, topic};

/// Pause between two publishes, in milliseconds.
const PAUSE: std::ops::Range<u64> = 0..30;

/// Time for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes until it is aborted. A publish without an answer is not repeated: it may be stored.
pub(super) async fn run(
    addresses: watch::Receiver<Addresses>,
    oracle: Arc<Mutex<Oracle>>,
    mut random: fastrand::Rng,
) {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut numbers = [0_u64; TOPICS];
    loop {
        let index = random.usize(..TOPICS);
        let topic = topic(index);
        numbers[index] += 1;
        let n = numbers[index];
        let api = addresses.borrow().api;
        let body = json!({ "n": n, "pad": "x".repeat(random.usize(..600)) }).to_string();
        let request = http::Request::post(format!("http://{api}/v1/topics/{topic}/messages"));
        let answered = async {
            let answer = client.request(request.body(Full::from(body)).ok()?).await.ok()?;
            let is_published = answer.status().is_success();
            answer.into_body().collect().await.ok()?;
            Some(is_published)
        };
        if let Ok(Some(true)) = tokio::time::timeout(TIMEOUT, answered).await {
            lock(&oracle).published(&topic, n);
        }
        tokio::time::sleep(Duration::from_millis(random.u64(PAUSE))).await;
    }
}
