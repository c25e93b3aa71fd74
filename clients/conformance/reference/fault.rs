//! Faults that may be planted in the client.

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A way in which the client is wrong.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Fault {
            /// The client is right.
            None,
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// Returns the fault of this name.
            pub(crate) fn parse(name: Option<&str>) -> Self {
                match name {
                    None => Self::None,
                    $(Some($text) => Self::$name,)*
                    Some(other) => {
                        eprintln!("no fault is called {other:?}");
                        std::process::exit(2);
                    }
                }
            }
        }
    };
}

faults! {
    /// Hands duplicates to the application.
    Duplicates = "duplicates",
    /// Loses the first message after each recovery.
    Drops = "drops",
    /// Swaps the order of two messages.
    Reorders = "reorders",
    /// Subscribes without its position after a reconnect.
    ForgetsPosition = "forgets-position",
    /// Remembers the offset alone.
    SplitsPosition = "splits-position",
    /// Reconnects before its slot.
    IgnoresSlot = "ignores-slot",
    /// Sends a refused token for ever.
    LoopsOnToken = "loops-on-token",
    /// Reconnects after a close code that forbids it.
    ReconnectsForEver = "reconnects-for-ever",
    /// Reconnects without a pause.
    NoBackoff = "no-backoff",
    /// Takes a new `once` when it sends a publish again.
    NewOnce = "new-once",
    /// Forgets publishes whose answer is lost.
    LosesPublishes = "loses-publishes",
    /// Sends a publish before the one before it was answered.
    OvertakesPublishes = "overtakes-publishes",
    /// Matches replies by order instead of `id`.
    MatchesByOrder = "matches-by-order",
    /// Does not tell gaps.
    HidesGaps = "hides-gaps",
    /// Says that it is live before the replay has come.
    LiveTooEarly = "live-too-early",
    /// Does not see holes.
    OverlooksHoles = "overlooks-holes",
    /// Does not compare epochs of deliveries.
    IgnoresEpoch = "ignores-epoch",
    /// Subscribes to each topic with a message of its own.
    SubscribesOneByOne = "subscribes-one-by-one",
    /// Ends a subscription for an error that passes.
    EndsTooEarly = "ends-too-early",
    /// Takes its own excluded message for a hole.
    OwnMessageIsHole = "own-message-is-hole",
    /// Forgets its own message as soon as the position is behind it.
    ForgetsOwnMessage = "forgets-own-message",
    /// Takes a position before the deliveries that came before it.
    PositionOvertakes = "position-overtakes",
    /// Goes back to a position that it has passed.
    PositionMovesBack = "position-moves-back",
    /// Stops a handle whose handler fails.
    StopsAfterHandlerFails = "stops-after-handler-fails",
    /// Loses messages of a queue that is full.
    LosesFromFullQueue = "loses-from-full-queue",
    /// Stays connected to a server that shows no life.
    NeverPings = "never-pings",
    /// Hands over messages of a topic before its `subscribed`.
    NoFence = "no-fence",
    /// Saves positions of messages that wait for the application.
    SavesTooEarly = "saves-too-early",
    /// Connects again after it was closed while connecting.
    SurvivesClose = "survives-close",
    /// Lets a gap before the epoch of its history lead a handle back.
    FollowsOlderGaps = "follows-older-gaps",
    /// Takes a gap to an epoch after that of a handle's history for an older one.
    OverlooksLaterGaps = "overlooks-later-gaps",
    /// Takes lower offsets for older ones, although the topic has the epoch of the history.
    OverlooksLowerOffsets = "overlooks-lower-offsets",
    /// Forgets own messages of an epoch that the topic has not reached.
    ForgetsOtherEpochs = "forgets-other-epochs",
    /// Forgets a publish that failed with `timeout`.
    ForgetsLateAnswers = "forgets-late-answers",
    /// Says that a recovery was complete although a gap came in it.
    CallsGapsRecovered = "calls-gaps-recovered",
    /// Hands a replay to the first handle only, but its gaps to all.
    ReplaysToOne = "replays-to-one",
    /// Forgets deliveries that were too many to wait for an answer.
    LosesWaiting = "loses-waiting",
    /// Lets deliveries without a position wait for an answer.
    WaitsWithoutHistory = "waits-without-history",
    /// Lets each handle subscribe for itself.
    SubscribesTwice = "subscribes-twice",
}
