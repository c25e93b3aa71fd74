//! Messages that outlive the process which appended them.
//!
//! Run it with `cargo run -p deeperhub-store --example keep_messages`.

use deeperhub_store::{Epoch, Options, Record, Store, Wanted};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("keep-messages-{}", std::process::id()));
    let (store, _) = Store::open(&folder, &Options::default(), || fastrand::u64(..))?;
    let tea = store.create_stream("chat.tea", Epoch::from_bits(7))?;
    for (offset, text) in (1..).zip(["tea?", "yes", "milk?"]) {
        store.append(tea, Record { offset, time_ms: 1_796_000_000_000, bytes: text.as_bytes() })?;
    }
    store.close_clean()?;
    drop(store);

    let (_store, recovered) = Store::open(&folder, &Options::default(), || fastrand::u64(..))?;
    let wanted = |_topic: &str| Wanted { messages: 2, bytes: 1 << 20, since_ms: 0, overhead: 0 };
    recovered.load(256 << 20, wanted, |stream| {
        let texts = stream.records.iter().map(|record| String::from_utf8_lossy(&record.bytes));
        println!("{} is at {}: {:?}", stream.topic, stream.newest, texts.collect::<Vec<_>>());
    })?;
    Ok(std::fs::remove_dir_all(&folder)?)
}
