//! Keys from files.

use super::error::KeyError;
use super::{Config, Jwks};
use crate::Secret;
use crate::files::{self, FileError};
use std::path::{Path, PathBuf};

/// The keys of the files that an operator named. Nothing is read again by itself.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Of the file with the shared secret.
    pub secret: Option<Secret>,
    /// Of the file with the JWKS.
    pub jwks: Option<Jwks>,
}

impl Keys {
    /// Reads the files that are named, now.
    ///
    /// The secret is the file's bytes, without one line's end at their end. Files over [`files::MAX_BYTES`] are refused.
    ///
    /// # Errors
    ///
    /// [`KeysError`] names the file and says what would be right.
    pub fn load(secret_file: Option<&Path>, jwks_file: Option<&Path>) -> Result<Self, KeysError> {
        let secret = secret_file.map(|path| read(path, secret)).transpose()?;
        let jwks = jwks_file.map(|path| read(path, |bytes| Jwks::parse(bytes.expose()))).transpose()?;
        Ok(Self { secret, jwks })
    }

    /// The configuration with these keys, and defaults for the rest.
    #[must_use]
    pub fn into_config(self) -> Config {
        Config { secret: self.secret, jwks: self.jwks, ..Config::default() }
    }
}

/// Why keys could not be had from a file. The operator's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what it should be.
    #[error("{}: {error}; {}", path.display(), error.expected())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeyError,
    },
}

fn read<T>(path: &Path, parse: impl FnOnce(Secret) -> Result<T, KeyError>) -> Result<T, KeysError> {
    let bytes = files::read(path)?;
    parse(bytes).map_err(|error| KeysError::Keys { path: path.to_owned(), error })
}

/// Editors end a file with a line's end; it is not meant to be part of the secret.
fn secret(bytes: Secret) -> Result<Secret, KeyError> {
    let all = bytes.expose();
    let line = all.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    match line.unwrap_or(all) {
        [] => Err(KeyError::EmptySecret),
        line => Ok(Secret::new(line)),
    }
}
