//! TLS of the client port and of the server API: reads files and reloads them when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use deeperhub_security::files::FileStamp;
use deeperhub_security::tls::{ClientAuth, Config, SharedTls, TlsError, TlsSetup};
use tracing::{info, warn};

use crate::exit::with_causes;
use crate::reload::Reloader;

/// Names of the settings of one TLS listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TlsKeys {
    /// What the certificate is for, as logs name it.
    purpose: &'static str,
    cert: &'static str,
    key: &'static str,
}

impl TlsKeys {
    /// Settings of the client port.
    pub(crate) const CLIENTS: Self = Self { purpose: "TLS certificate", cert: "tls_cert", key: "tls_key" };
    /// Settings of the server API.
    pub(crate) const API: Self =
        Self { purpose: "API TLS certificate", cert: "api_tls_cert", key: "api_tls_key" };
}

/// The TLS options as given.
#[derive(Debug)]
pub(crate) struct TlsFileOptions {
    pub(crate) keys: TlsKeys,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) client_ca: Option<PathBuf>,
    /// `None` if not set.
    pub(crate) client_auth: Option<ClientAuth>,
}

impl TlsFileOptions {
    /// Returns the paths that TLS needs; `None` if TLS is off.
    ///
    /// # Errors
    ///
    /// The setting that is given, and the missing one that it needs.
    pub(crate) fn into_paths(self) -> Result<Option<TlsPaths>, (&'static str, &'static str)> {
        match self {
            Self { client_ca: None, client_auth: Some(_), .. } => Err(("tls_client_auth", "tls_client_ca")),
            Self { cert: None, key: None, client_ca: None, .. } => Ok(None),
            Self { keys, cert: Some(cert), key: Some(key), client_ca, client_auth } => {
                let client_auth = client_auth.unwrap_or_default();
                Ok(Some(TlsPaths { keys, cert, key, client_ca, client_auth }))
            }
            Self { keys, cert: Some(_), key: None, .. } => Err((keys.cert, keys.key)),
            Self { keys, cert: None, key: Some(_), .. } => Err((keys.key, keys.cert)),
            Self { keys, cert: None, key: None, client_ca: Some(_), .. } => Err(("tls_client_ca", keys.cert)),
        }
    }
}

/// Paths of the TLS files.
#[derive(Debug, Clone)]
pub(crate) struct TlsPaths {
    keys: TlsKeys,
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_auth: ClientAuth,
}

impl TlsPaths {
    fn all(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    /// Reads the files.
    fn read(&self) -> Result<TlsSetup, TlsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut config = Config::load(&self.cert, &self.key, self.client_ca.as_deref())?;
        config.client_auth = self.client_auth;
        config.build(now)
    }
}

/// TLS in use.
#[derive(Debug)]
pub(crate) struct Tls {
    paths: TlsPaths,
    /// State of the files before they were read.
    stamp: FileStamp,
    /// Certificate and verifier of new connections.
    pub(crate) current: Arc<SharedTls>,
}

/// Error of a TLS file.
#[derive(Debug)]
pub(crate) struct TlsFileError {
    /// Setting that names the file.
    pub(crate) key: &'static str,
    pub(crate) path: PathBuf,
    /// The error, and what is expected.
    pub(crate) problem: String,
}

impl Tls {
    /// Reads the files. Also returns warnings about the certificate.
    pub(crate) fn load(paths: TlsPaths) -> Result<(Self, Vec<String>), TlsFileError> {
        let stamp = FileStamp::of(paths.all());
        let server = paths.read().map_err(|error| TlsFileError::new(&paths, &error))?;
        let warnings = server.warnings.iter().map(ToString::to_string).collect();
        Ok((Self { paths, stamp, current: Arc::new(SharedTls::new(server)) }, warnings))
    }

    /// Returns the client certificate requirement; `None` if there is no client CA.
    pub(crate) fn client_auth(&self) -> Option<ClientAuth> {
        self.paths.client_ca.as_ref().map(|_| self.paths.client_auth)
    }

    /// Reloads the files on SIGHUP and when they change.
    pub(crate) fn watch(&self, reloader: &mut Reloader) {
        let (paths, current) = (self.paths.clone(), Arc::clone(&self.current));
        reloader.watch(paths.keys.purpose, paths.all(), self.stamp.clone(), move || {
            let server = paths.read()?;
            for warning in &server.warnings {
                warn!("{warning}");
            }
            info!(ends = server.expires_at, "{} replaced", paths.keys.purpose);
            current.replace(server);
            Ok(())
        });
    }
}

impl TlsFileError {
    fn new(paths: &TlsPaths, error: &TlsError) -> Self {
        let (name, problem) = match error {
            TlsError::File(file) => {
                (file.path.display().to_string(), format!("cannot be read: {}", file.error))
            }
            TlsError::Content { name, problem } => {
                (name.clone(), format!("{problem}; {}", problem.expected()))
            }
            error => (String::new(), with_causes(error)),
        };
        let named = |path: &PathBuf| path.display().to_string() == name;
        let (key, path) = match &paths.client_ca {
            Some(path) if named(path) => ("tls_client_ca", path),
            _ if named(&paths.key) && !named(&paths.cert) => (paths.keys.key, &paths.key),
            _ => (paths.keys.cert, &paths.cert),
        };
        Self { key, path: path.clone(), problem }
    }
}
