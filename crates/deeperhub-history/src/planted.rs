//! Places of bugs that a simulation plants to prove that it finds them.

/// Returns `true` if a simulation has planted a bug. A release has the constant `false`.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(test)]
        let is_planted =
            $crate::mirror::simulation::plants::is_planted($crate::mirror::simulation::plants::Bug::$bug);
        #[cfg(not(test))]
        let is_planted = false;
        is_planted
    }};
}

pub(crate) use planted;
