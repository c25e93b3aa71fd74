//! Streams on NATS JetStream, 2.11 or later.
//!
//! # One stream for each rule
//! All topics of a rule share a stream of JetStream. A message of a topic goes to a subject of its
//! own, below `PREFIX.h.RULE.m.`. The stream limits each subject to the rule's number of messages,
//! and all messages to the rule's age. It republishes each message to the subject that nodes follow
//! for the topic, so nodes need no consumers for it. A stream or a consumer for each topic would cost
//! the server far more memory than the messages do.
//!
//! # Positions
//! The offset of a message is its sequence in the stream. JetStream changes no message: sequence,
//! stream, and the sequence of the topic's message before it are headers of the republished message.
//! The receiver writes them into the envelope. The time is that of the node that publishes,
//! because acknowledgements tell none.
//!
//! The epoch is the number at the end of the stream's name. The server adds the name to whatever it
//! sends: acknowledgements, republished messages, answers of reads. So the epoch needs no look-up,
//! and cannot be mistaken. Each append names the stream that it expects (`Nats-Expected-Stream`), so
//! a message of an old epoch does not get into a new stream.
//!
//! A stream that was lost is created under a new name with a larger number. If several nodes create it
//! at once, a server without others can let all of them succeed. So nodes use no stream that is younger
//! than 0.3 seconds, and remove all but the one with the largest number.
//!
//! A stream that has lost its newest messages gives their sequences again, so it must not live on: a
//! node that notices it deletes the stream, and creates one with a larger number. A node notices it
//! when it connects (its newest known message is gone or is another one, or a mark is gone), when it
//! looks at the newest sequence, and when an append gets a sequence that the node has seen already.
//! Reads, live messages and looks at the stream tell the time of the newest message, and appends have
//! an identity. Limits can have removed the message: then no earlier sequence may have a later time.
//! Between the loss and the first node that knows better, other nodes can append. A server that
//! writes each message to disk at once (`sync_interval: always`), or three replicas, exclude such
//! losses.
//!
//! # Cleared topics
//! A cleared topic begins an epoch of its own in the same stream. A *mark* names it: a message
//! below `PREFIX.h.RULE.c.` that no limit removes. Messages of the topic after the mark have its
//! epoch. Sequences go on, so even a node that does not know the mark gives each message a position
//! of its own. A second message, to the topic's own subject, removes the messages before it
//! (`Nats-Rollup`) and tells the followers in the order of the stream. A topic whose epoch at a node
//! is larger than that of the stream gets a mark, too. That happens if a rule changes.
//!
//! # Messages that are sent again
//! Each append has an identity (`Nats-Msg-Id`): that of the `once` of the publish, or else the
//! node's incarnation and the envelope's sequence. JetStream stores one message of an identity within
//! two minutes, and acknowledges the others with the sequence of the first. This also holds for a
//! message of a lost connection that the server takes later than its repetition. A node that marks
//! its messages in the stream instead, and conditions its appends on the mark, costs the server less
//! memory. But replicated streams accept one conditional append at a time.
//!
//! # When is a read whole?
//! Sequences have holes, and an answer does not tell what was removed before its first message. Only
//! two limits remove messages: the age, which concerns no message younger than the stream's
//! `max_age`, and the number of messages of a topic, which concerns nothing after a position while
//! the topic has fewer messages after it. So an answer has all messages after a position, if the
//! position is later than all messages that are almost as old as `max_age`, and the topic has fewer
//! messages after it than the limit. Otherwise it has all of them after its own first message. A
//! topic without messages is whole up to the stream's newest sequence at a look before the read.
//! Limits that grow do not bring back what smaller ones have removed, so the stream's metadata has its
//! newest sequence at that time: no answer vouches for anything before. Operators must not purge these
//! streams or limit them by bytes.
//!
//! Replicas answer reads, and can be late. With replicas, the leader's newest message of the topic
//! is compared with each answer.
//!
//! # Many reads at once
//! The server finds the messages of a topic by looking at each message of the stream after the start
//! of the read. So one pass that brings the messages of all topics costs less than many reads. It
//! must reach the end of the stream, see `sweep.rs`. A consumer brings them for a third of what the
//! same messages cost in answers of reads.

mod api;
mod check;
mod config;
mod consumer;
mod ensure;
mod known;
mod marks;
mod names;
mod range;
mod reader;
mod reset;
mod source;
mod stamp;
mod sweep;
mod time;
mod tops;

pub(crate) use api::{Ack, ApiError};
pub(crate) use check::{check_broker, check_store};
pub(crate) use ensure::Store;
pub(crate) use known::Known;
pub(crate) use names::StreamNames;
pub(crate) use reader::Reader;
pub(crate) use stamp::{Republished, stored_time};
