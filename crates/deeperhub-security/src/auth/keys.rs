//! Loads keys from files.

use super::error::KeyError;
use super::{Config, Jwks};
use crate::Secret;
use crate::files::{self, FileError};
use std::path::{Path, PathBuf};

/// Keys from the operator's files.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// The shared secret.
    pub secret: Option<Secret>,
    /// The JWKS.
    pub jwks: Option<Jwks>,
}

impl Keys {
    /// Reads the given files. Files over [`files::MAX_BYTES`] are refused.
    ///
    /// The secret is the content of its file without the final line end, if there is one.
    ///
    /// # Errors
    ///
    /// [`KeysError`] names the file and what is expected.
    pub fn load(secret_file: Option<&Path>, jwks_file: Option<&Path>) -> Result<Self, KeysError> {
        let secret = secret_file.map(|path| read(path, secret)).transpose()?;
        let jwks = jwks_file.map(|path| read(path, |bytes| Jwks::parse(bytes.expose()))).transpose()?;
        Ok(Self { secret, jwks })
    }

    /// Returns a configuration with these keys and the defaults of all other fields.
    #[must_use]
    pub fn into_config(self) -> Config {
        Config { secret: self.secret, jwks: self.jwks, ..Config::default() }
    }
}

/// Error of loading keys from a file. The operator must fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file's content is invalid.
    #[error("{}: {error}; {}", path.display(), error.expected())]
    Keys {
        /// The file.
        path: PathBuf,
        /// The error in the content.
        error: KeyError,
    },
}

fn read<T>(path: &Path, parse: impl FnOnce(Secret) -> Result<T, KeyError>) -> Result<T, KeysError> {
    let bytes = files::read(path)?;
    parse(bytes).map_err(|error| KeysError::Keys { path: path.to_owned(), error })
}

/// Strips the final line end, which editors add, from a secret.
fn secret(file: Secret) -> Result<Secret, KeyError> {
    let content = file.expose();
    let stripped = match content.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => content,
    };
    if stripped.is_empty() { Err(KeyError::EmptySecret) } else { Ok(Secret::new(stripped)) }
}
