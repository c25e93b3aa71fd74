//! The plan of the scenario `recover`.

use deeperhub_args::Address;

use super::Plan;
use crate::args::{PublisherArgs, RecoverArgs};
use crate::scenario::{LoadModel, StopCondition};
use crate::stamp::MAX_STREAMS;

/// The clients that are cut and return. They have the lowest numbers of all clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecoverPlan {
    pub(crate) clients: usize,
    pub(crate) topics_per_client: usize,
    /// Messages of each topic that are published while the clients are away.
    pub(crate) missed: u64,
    /// Clients that return per second.
    pub(crate) rate: u64,
    /// Where the clients return, if not where they were.
    pub(crate) return_to: Option<Address>,
}

impl Plan {
    /// Adds the clients and the load of `recover`.
    pub(super) fn with_recover(self, args: &RecoverArgs) -> Self {
        let PublisherArgs { publishers } = args.publishers;
        Self {
            clients: args.clients + args.subscribers,
            recover: Some(RecoverPlan {
                clients: args.clients,
                topics_per_client: args.topics_per_client,
                missed: args.missed,
                rate: args.rate,
                return_to: args.return_to.clone(),
            }),
            publishers,
            topics: args.topics,
            size: args.size,
            load: LoadModel::OpenLoop(args.publish_rate),
            stop: StopCondition::AllReturned { warmup: args.warmup.0 },
            ..self
        }
    }

    /// Checks the numbers of `recover` against each other.
    pub(super) fn check_recover(&self) -> Result<(), String> {
        let Some(RecoverPlan { clients, topics_per_client, .. }) = &self.recover else { return Ok(()) };
        let (clients, topics_per_client) = (*clients, *topics_per_client);
        let Self { topics, publishers, .. } = *self;
        if topics_per_client > topics {
            return Err(format!(
                "--topics-per-client {topics_per_client} is more than --topics {topics}: use at least \
                 {topics_per_client} topics"
            ));
        }
        if publishers > topics {
            return Err(format!(
                "--publishers {publishers} is more than --topics {topics}: each topic has one publisher, so use at \
                 most {topics} publishers"
            ));
        }
        let trackers = clients.saturating_mul(topics_per_client);
        if trackers > MAX_STREAMS {
            return Err(format!(
                "--clients {clients} with --topics-per-client {topics_per_client} needs {trackers} sequence trackers; \
                 the maximum is {MAX_STREAMS}: use fewer topics per client"
            ));
        }
        Ok(())
    }

    /// Returns the first topic of a returning client. Its topics are consecutive, and the first
    /// topic follows the last one.
    pub(crate) fn first_topic_of(&self, client: u32) -> u32 {
        let per_client = self.topics_of_returning_client() as u64;
        (u64::from(client) * per_client % self.topics.max(1) as u64) as u32
    }

    /// Returns the number of topics of a returning client.
    pub(crate) fn topics_of_returning_client(&self) -> usize {
        self.recover.as_ref().map_or(1, |recover| recover.topics_per_client)
    }

    /// Returns the topics of a returning client whose first one is `first`.
    pub(crate) fn topics_from(&self, first: u32) -> impl Iterator<Item = u32> + use<> {
        let topics = self.topics.max(1) as u32;
        (0..self.topics_of_returning_client() as u32).map(move |at| (first + at) % topics)
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::tests::{plan, try_plan};
    use crate::scenario::Role;

    #[test]
    fn returning_clients_come_first_and_share_the_topics() {
        let plan = plan("recover --clients 2 --topics 3 --topics-per-client 2 --subscribers 1");
        let roles: Vec<_> = plan.connection_specs().map(|spec| spec.role).collect();
        assert_eq!(roles, [Role::Returner, Role::Returner, Role::Subscriber, Role::Publisher]);
        let topics = |client| plan.topics_from(plan.first_topic_of(client)).collect::<Vec<_>>();
        assert_eq!([topics(0), topics(1), topics(2)], [vec![0, 1], vec![2, 0], vec![1, 2]]);
    }

    #[test]
    fn errors_name_the_flags_that_contradict_each_other() {
        for (flags, named) in [
            ("recover --topics 5 --topics-per-client 6", ["--topics 5", "--topics-per-client 6"]),
            ("recover --topics 5 --publishers 6", ["--topics 5", "--publishers 6"]),
            (
                "recover --clients 1000000 --topics 1000 --topics-per-client 1000",
                ["--clients 1000000", "--topics-per-client 1000"],
            ),
            ("recover --clients 1 --subscribers 0 --threads 3", ["--threads 3", "2 connections"]),
        ] {
            let message = try_plan(flags).unwrap_err().to_string();
            for text in named {
                assert!(message.contains(text), "{text:?} is not in: {message}");
            }
        }
    }
}
