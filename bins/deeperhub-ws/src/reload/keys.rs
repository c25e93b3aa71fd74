//! Keys that verify tokens: reads their files and reloads them when they change.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deeperhub_security::auth::{Authenticator, Keys, KeysError, SharedAuthenticator};
use deeperhub_security::files::FileStamp;
use tracing::warn;

use crate::reload::Reloader;

/// Files of the keys, and the settings that tokens are checked against.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthSources {
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) jwks_file: Option<PathBuf>,
    pub(crate) audience: Vec<String>,
    pub(crate) issuer: Vec<String>,
    pub(crate) leeway: Duration,
    pub(crate) max_token_bytes: usize,
}

impl AuthSources {
    /// Returns the paths of the configured files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.secret_file, &self.jwks_file].into_iter().filter_map(|path| path.as_deref())
    }

    /// Returns the warnings about the keys, each prefixed with the file that it concerns.
    fn warnings(&self, authenticator: &Authenticator) -> Vec<String> {
        let warnings = authenticator.warnings().iter().map(|warning| {
            let file = if warning.is_about_secret() { &self.secret_file } else { &self.jwks_file };
            let prefix = file.as_deref().map_or_else(String::new, |file| format!("{}: ", file.display()));
            format!("{prefix}{warning}")
        });
        warnings.collect()
    }

    /// Reads the files and creates an authenticator with their keys.
    pub(crate) fn load(&self) -> Result<Authenticator, AuthError> {
        let keys = Keys::load(self.secret_file.as_deref(), self.jwks_file.as_deref())?;
        let mut config = keys.into_config();
        config.audience.clone_from(&self.audience);
        config.issuer.clone_from(&self.issuer);
        config.leeway = self.leeway;
        config.max_token_bytes = self.max_token_bytes;
        Ok(Authenticator::new(config)?)
    }
}

/// Error of the key files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error(transparent)]
    Files(#[from] KeysError),
    #[error(transparent)]
    Keys(#[from] deeperhub_security::auth::KeyError),
}

impl AuthError {
    /// Returns the reason without the file name, which the caller adds.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Files(KeysError::File(error)) => format!("it cannot be read: {}", error.error),
            Self::Files(KeysError::Keys { error, .. }) | Self::Keys(error) => {
                format!("{error}; {}", error.expected())
            }
            Self::Files(error) => error.to_string(),
        }
    }
}

/// The keys in use, and the files to reload them from.
#[derive(Debug)]
pub(crate) struct Auth {
    pub(crate) authenticator: Arc<SharedAuthenticator>,
    sources: AuthSources,
    /// State of the files right before they were read.
    stamp: FileStamp,
}

impl Auth {
    /// Reads the files.
    pub(crate) fn load(sources: AuthSources) -> Result<Self, AuthError> {
        let stamp = FileStamp::of(sources.files());
        let authenticator = Arc::new(SharedAuthenticator::new(sources.load()?));
        Ok(Self { authenticator, sources, stamp })
    }

    /// Returns warnings about the keys for the operator.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.sources.warnings(&self.authenticator.current())
    }

    /// Adds the files to the reloader. After a reload, open connections keep the grants of their
    /// old tokens until the tokens expire.
    pub(crate) fn watch(&self, reloader: &mut Reloader) {
        let (sources, authenticator) = (self.sources.clone(), Arc::clone(&self.authenticator));
        let paths = sources.files().map(Path::to_owned).collect();
        reloader.watch("keys for tokens", paths, self.stamp.clone(), move || {
            let reloaded = sources.load().map_err(Box::<dyn Error>::from)?;
            for warning in sources.warnings(&reloaded) {
                warn!("{warning}");
            }
            authenticator.replace(reloaded);
            Ok(())
        });
    }
}
