//! Answers to clients that waited until the store was read.

use deeperhub_protocol::message::{
    ClientMessage, Command, ServerMessage, SubscribeRequest, SubscribedError, SubscriptionStart,
};

use super::parked::ParkedClient;
use crate::commands;
use crate::replay::SubscribeStep;

/// Continues and answers the subscribes of a parked connection.
pub(crate) trait AnswerParked {
    /// Subscribes the client to one topic.
    fn start(
        &mut self,
        request: &SubscribeRequest<'_>,
        step: SubscribeStep,
    ) -> Result<SubscriptionStart, SubscribedError>;

    /// Sends the reply.
    fn reply(&mut self, reply: &ServerMessage<'_>);
}

impl ParkedClient {
    /// Executes the client's message.
    pub(crate) fn answer(self, max_depth: usize, answerer: &mut impl AnswerParked) {
        let Self { text, mut topics, .. } = self;
        let mut start = |request: &SubscribeRequest<'_>, answerer: &mut dyn AnswerParked| {
            let name = request.subscription.as_str();
            let held = topics.iter_mut().find(|topic| topic.is_new && *topic.name == *name);
            // A list can name a topic twice.
            let step = match held {
                Some(held) => {
                    held.is_new = false;
                    SubscribeStep::Resume
                }
                None => SubscribeStep::Begin,
            };
            answerer.start(request, step)
        };
        // The message was valid when the client was parked. Only these messages wait.
        match ClientMessage::parse_within(&text, max_depth) {
            Ok(ClientMessage { id, command: Command::Subscribe(request), .. }) => {
                let topic = request.subscription.as_str();
                match start(&request, answerer) {
                    Ok(start) => answerer.reply(&ServerMessage::Subscribed { id, topic, start }),
                    Err(error) => answerer.reply(&commands::subscribe_error(id, topic, &error)),
                }
            }
            Ok(ClientMessage { id, command: Command::SubscribeList { topics }, .. }) => {
                let entries = commands::start_each(topics, |request| start(request, answerer));
                answerer.reply(&ServerMessage::SubscribedList { id, topics: &entries });
            }
            _ => debug_assert!(false, "another message was parked"),
        }
    }
}
