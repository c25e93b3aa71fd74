//! The exchange of a probe with the cluster's store.

use std::time::Duration;

use deeperhub_cluster::{Message, ReadError, StreamRange, StreamRead};
use deeperhub_protocol::RawJson;

use crate::canary::StoreStep;
use crate::hub::Hub;
use crate::streams::ClusterStore;

/// Time before another attempt after a step has failed.
const RETRY_TIME: Duration = Duration::from_millis(250);

/// Sends a probe until it was read back. The caller drops this future if a later probe replaces it.
pub(super) async fn run(hub: &Hub, store: &ClusterStore, number: u64) {
    loop {
        match try_once(hub, store, number).await {
            Ok(()) => return hub.canary.on_store_probe_returned(number),
            // A single failure can be due to load, so the canary's deadline decides.
            Err(fault) => hub.canary.on_store_fault(number, fault),
        }
        tokio::time::sleep(RETRY_TIME).await;
    }
}

/// Follows the probes' topic, appends a message, and waits until it has come and was read back.
async fn try_once(hub: &Hub, store: &ClusterStore, number: u64) -> Result<(), String> {
    let step = |step| hub.canary.on_store_step(number, step);
    let probe = &store.probe;
    step(StoreStep::Follow);
    probe.follow(&store.broker);
    read(store, probe.read(None)).await.map_err(|error| error.to_string())?;

    step(StoreStep::Append);
    let text = number.to_string();
    let message = RawJson::parse(&text).map_err(|error| error.message.into_owned())?;
    let position = store.append_probe(message).await?.position;

    step(StoreStep::Receive);
    probe.wait_until_received(position).await;

    step(StoreStep::Read);
    let before = deeperhub_cluster::StorePosition { offset: position.offset - 1, ..position };
    let range = read(store, probe.read(Some(before))).await.map_err(|error| error.to_string())?;
    if range.messages.iter().any(|stored| is_probe(stored, &text)) {
        Ok(())
    } else {
        Err("the store no longer had it".to_owned())
    }
}

fn is_probe(stored: &deeperhub_cluster::StoredEnvelope, text: &str) -> bool {
    let envelope = stored.envelope();
    envelope.is_ok_and(
        |envelope| matches!(envelope.message, Message::Stored { payload, .. } if payload.as_str() == text),
    )
}

async fn read(store: &ClusterStore, read: StreamRead) -> Result<StreamRange, ReadError> {
    let ranges = store.broker.read_streams(vec![read])?.await?;
    ranges.into_iter().next().unwrap_or(Err(ReadError::Unavailable))
}
