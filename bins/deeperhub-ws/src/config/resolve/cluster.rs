//! Resolves the options under "Cluster".

use std::path::Path;

use deeperhub_cluster::{BrokerUrl, Engine, StreamStorage};
use deeperhub_node::ClusterConfig;

use super::Resolver;
use crate::config::effective::{OnReload, defaults};
use crate::config::options::{ClusterOptions, flag, variable};
use crate::config::values::{ClusterUrl, HistoryStorage, UnavailableReadiness};

/// Returns the configuration of the cluster, or `None` if no cluster is set.
pub(super) fn resolve(resolver: &mut Resolver, options: ClusterOptions) -> Option<ClusterConfig> {
    let ClusterOptions {
        cluster,
        cluster_prefix,
        cluster_queue_bytes,
        cluster_unavailable,
        cluster_credentials,
        cluster_ca,
        history_replicas,
        history_storage,
    } = options;
    let url = take!(resolver, fixed cluster);
    let prefix = take!(resolver, fixed cluster_prefix, defaults::CLUSTER_PREFIX.to_owned());
    let queue_bytes = take!(resolver, fixed cluster_queue_bytes, defaults::CLUSTER_QUEUE_BYTES);
    let readiness = take!(resolver, fixed cluster_unavailable, UnavailableReadiness::Unready);
    let credentials = take!(resolver, fixed cluster_credentials);
    let ca = take!(resolver, fixed cluster_ca);
    let for_jetstream = [
        history_replicas.is_some().then_some("history_replicas"),
        history_storage.is_some().then_some("history_storage"),
    ];
    let replicas = take!(resolver, fixed history_replicas, 1);
    let storage = take!(resolver, fixed history_storage, HistoryStorage::File);

    let is_prefix = deeperhub_cluster::is_prefix(&prefix);
    resolver.require("cluster_prefix", &prefix, is_prefix, "expected 1 to 64 of A-Z, a-z, 0-9, _ and -");
    let is_odd = replicas % 2 == 1;
    resolver.require("history_replicas", &replicas, is_odd, "expected 1, 3 or 5");
    let Some(ClusterUrl { url, .. }) = url else {
        warn_of_unused(resolver, for_jetstream);
        refuse_without_cluster(resolver, "cluster_credentials", credentials.as_deref());
        refuse_without_cluster(resolver, "cluster_ca", ca.as_deref());
        return None;
    };
    let url = match url {
        Ok(url) => url,
        Err(error) => {
            resolver.invalid_secret("cluster", error.to_string());
            return None;
        }
    };
    if url.engine() != Engine::Nats {
        warn_of_unused(resolver, for_jetstream);
    }
    if let Some(file) = &credentials {
        check_credentials(resolver, &url, file);
    }
    if let Some(file) = &ca {
        check_ca(resolver, file);
    }
    let mut broker = deeperhub_cluster::Config::new(url);
    (broker.prefix, broker.queue_bytes) = (prefix, queue_bytes);
    (broker.credentials, broker.ca) = (credentials, ca);
    broker.stream_replicas = replicas;
    broker.stream_storage = match storage {
        HistoryStorage::Memory => StreamStorage::Memory,
        HistoryStorage::File => StreamStorage::File,
    };
    let mut config = ClusterConfig::new(broker);
    config.ready_alone = readiness == UnavailableReadiness::Ready;
    Some(config)
}

/// Warns of settings that only NATS uses.
fn warn_of_unused(resolver: &mut Resolver, keys: [Option<&'static str>; 2]) {
    for key in keys.into_iter().flatten() {
        let name = resolver.name_of(key);
        resolver.warnings.push(format!("{name} has no effect without a cluster of NATS"));
    }
}

/// Reports an error if a file is set that only a cluster uses.
fn refuse_without_cluster(resolver: &mut Resolver, key: &str, file: Option<&Path>) {
    if file.is_some() {
        resolver.conflict(format!(
            "{} is set and there is no cluster; expected a broker in {}, {} or cluster as well",
            resolver.name_of(key),
            flag("cluster"),
            variable("cluster"),
        ));
    }
}

fn check_credentials(resolver: &mut Resolver, url: &BrokerUrl, file: &Path) {
    let key = "cluster_credentials";
    if url.engine() != Engine::Nats {
        let expected = "expected none with a broker that is not NATS: put user and password in the URL";
        resolver.invalid(key, file.display().to_string(), expected.to_owned());
    } else if let Err(expected) = read(file).and_then(|text| deeperhub_cluster::check_credentials(&text)) {
        resolver.invalid(key, file.display().to_string(), expected);
    }
}

fn check_ca(resolver: &mut Resolver, file: &Path) {
    let check = |_| {
        deeperhub_telemetry::certificates(file)
            .map_err(|error| format!("expected one or more certificates in PEM ({error})"))
    };
    if let Err(expected) = read(file).and_then(check) {
        resolver.invalid("cluster_ca", file.display().to_string(), expected);
    }
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("expected a file that can be read ({error})"))
}
