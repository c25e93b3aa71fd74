//! Resolves single settings to the given value or the default, and collects errors and warnings.

use std::collections::BTreeMap;

use deeperhub_args::Time;

use crate::config::effective::{EffectiveSetting, OnReload};
use crate::config::error::ConfigError;
use crate::config::origin::SettingOrigin;
use crate::config::values::ToToml;

/// The settings resolved so far, with the errors and warnings about them.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    pub(super) origins: BTreeMap<String, SettingOrigin>,
    pub(super) effective: Vec<EffectiveSetting>,
    pub(super) warnings: Vec<String>,
    pub(super) errors: Vec<ConfigError>,
}

impl Resolver {
    /// Returns the origin of the setting's value.
    pub(super) fn origin(&self, key: &str) -> SettingOrigin {
        self.origins.get(key).cloned().unwrap_or(SettingOrigin::Default)
    }

    /// Returns the setting's name as the user gave it: flag, variable or key and line.
    pub(super) fn name_of(&self, key: &str) -> String {
        self.origin(key).name_of(key)
    }

    /// Returns the given value or the default, and records it.
    pub(super) fn take<T: ToToml>(
        &mut self,
        key: &'static str,
        on_reload: OnReload,
        given: Option<T>,
        default: T,
    ) -> T {
        let origin = self.origin(key);
        let value = given.unwrap_or_else(|| {
            // An empty list in the file has an origin, but parses to no value.
            if origin != SettingOrigin::Default && default.to_toml() != "[]" {
                let default = default.to_toml();
                self.errors.push(ConfigError::Invalid {
                    key: key.to_owned(),
                    origin: origin.clone(),
                    value: "[]".to_owned(),
                    expected: format!(
                        "expected at least one item; leave {key} out for the default {default}"
                    ),
                });
            }
            default
        });
        self.effective.push(EffectiveSetting::new(key, Some(&value), origin, on_reload));
        value
    }

    /// Returns the given value of a setting without a default, and records it.
    pub(super) fn take_optional<T: ToToml>(
        &mut self,
        key: &'static str,
        on_reload: OnReload,
        given: Option<T>,
    ) -> Option<T> {
        self.effective.push(EffectiveSetting::new(key, given.as_ref(), self.origin(key), on_reload));
        given
    }

    /// Returns the given duration or the default. Zero is an error.
    pub(super) fn take_nonzero(
        &mut self,
        key: &'static str,
        on_reload: OnReload,
        given: Option<Time>,
        default: Time,
    ) -> Time {
        let time = self.take(key, on_reload, given, default);
        self.require(key, &time, !time.0.is_zero(), "expected more than 0");
        time
    }

    /// Reports an error about a value unless `holds`.
    pub(super) fn require(&mut self, key: &str, value: &impl ToString, holds: bool, expected: &str) {
        if !holds {
            self.invalid(key, value.to_string(), expected.to_owned());
        }
    }

    /// Reports an error about a value.
    pub(super) fn invalid(&mut self, key: &str, value: String, expected: String) {
        let origin = self.origin(key);
        self.errors.push(ConfigError::Invalid { key: key.to_owned(), origin, value, expected });
    }

    /// Reports an error about a value that must not be shown.
    pub(super) fn invalid_secret(&mut self, key: &str, expected: String) {
        let origin = self.origin(key);
        self.errors.push(ConfigError::InvalidSecret { key: key.to_owned(), origin, expected });
    }

    /// Reports an error about several settings: they exclude each other, or one needs another.
    pub(super) fn conflict(&mut self, message: String) {
        self.errors.push(ConfigError::Conflict(message));
    }
}
