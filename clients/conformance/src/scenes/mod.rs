//! The scenes, by subject. Each is a function that plays the server's part.

use std::pin::Pin;

use crate::failure::Result;
use crate::kit::Kit;

/// A scene that is being played.
type Play<'a> = Pin<Box<dyn Future<Output = Result> + 'a>>;

/// A scene.
pub(crate) struct Scene {
    /// Subject and name, such as `recovering/cut_in_mid_replay`.
    pub(crate) name: &'static str,
    /// Kind of scene that a driver may skip.
    pub(crate) needs: Option<&'static str>,
    pub(crate) play: for<'a> fn(&'a mut Kit) -> Play<'a>,
}

/// Declares the files of scenes and the list of all scenes. A kind that drivers may skip stands
/// before the scene.
macro_rules! scenes {
    ($($subject:ident { $($([$kind:literal])? $name:ident,)* })*) => {
        $(mod $subject;)*

        fn all() -> Vec<Scene> {
            vec![$($(Scene {
                name: concat!(stringify!($subject), "/", stringify!($name)),
                needs: scenes!(@kind $($kind)?),
                play: |kit| Box::pin($subject::$name(kit)),
            },)*)*]
        }
    };
    (@kind) => { None };
    (@kind $kind:literal) => { Some($kind) };
}

scenes! {
    connecting {
        opens_after_welcome,
        unknown_types_and_keys_are_ignored,
        malformed_messages_are_ignored,
        close_while_connecting,
        close_while_open,
    }
    recovering {
        missed_messages_are_replayed,
        cut_in_mid_replay,
        position_is_given_back_as_it_came,
        reason_epoch,
        reason_trimmed,
        duplicates_are_dropped,
    }
    publishing {
        result_has_position,
        lost_answer_is_asked_for_again,
    }
}

/// Returns the scenes whose names contain one of the parts; all scenes for no parts.
pub(crate) fn matching(parts: &[String]) -> Vec<Scene> {
    let mut scenes = all();
    scenes.retain(|scene| parts.is_empty() || parts.iter().any(|part| scene.name.contains(part.as_str())));
    scenes
}
