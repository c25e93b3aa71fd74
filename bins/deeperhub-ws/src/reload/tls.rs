//! TLS of the client port and of the server API: reads the files and reloads them when they change.

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
    /// Name of the files in the log.
    log_name: &'static str,
    cert: &'static str,
    key: &'static str,
}

impl TlsKeys {
    /// Settings of the client port.
    pub(crate) const CLIENTS: Self = Self { log_name: "TLS certificate", cert: "tls_cert", key: "tls_key" };
    /// Settings of the server API.
    pub(crate) const API: Self =
        Self { log_name: "API TLS certificate", cert: "api_tls_cert", key: "api_tls_key" };
}

/// The TLS options as the operator set them.
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
    /// Returns the paths that TLS needs. Returns `None` if TLS is off.
    ///
    /// # Errors
    ///
    /// If one setting needs another that is not set.
    pub(crate) fn into_paths(self) -> Result<Option<TlsPaths>, MissingSetting> {
        let Self { keys, cert, key, client_ca, client_auth } = self;
        if client_auth.is_some() && client_ca.is_none() {
            return Err(MissingSetting { given: "tls_client_auth", missing: "tls_client_ca" });
        }
        match (cert, key) {
            (Some(cert), Some(key)) => {
                let client_auth = client_auth.unwrap_or_default();
                Ok(Some(TlsPaths { keys, cert, key, client_ca, client_auth }))
            }
            (Some(_), None) => Err(MissingSetting { given: keys.cert, missing: keys.key }),
            (None, Some(_)) => Err(MissingSetting { given: keys.key, missing: keys.cert }),
            (None, None) if client_ca.is_some() => {
                Err(MissingSetting { given: "tls_client_ca", missing: keys.cert })
            }
            (None, None) => Ok(None),
        }
    }
}

/// A setting that needs another one, which is not set.
#[derive(Debug)]
pub(crate) struct MissingSetting {
    /// Key of the setting that is set.
    pub(crate) given: &'static str,
    /// Key of the setting that it needs.
    pub(crate) missing: &'static str,
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

    /// Reads the files and checks them.
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
    /// State of the files right before they were read.
    stamp: FileStamp,
    /// Server certificate and verifier of client certificates, for new connections.
    pub(crate) current: Arc<SharedTls>,
}

/// Error of reading the TLS files, attributed to one of them.
#[derive(Debug)]
pub(crate) struct TlsFileError {
    /// Setting that names the file.
    pub(crate) key: &'static str,
    pub(crate) path: PathBuf,
    /// The error and, for invalid contents, what is expected.
    pub(crate) problem: String,
}

impl Tls {
    /// Reads the files. Also returns warnings about the certificate.
    pub(crate) fn load(paths: TlsPaths) -> Result<(Self, Vec<String>), TlsFileError> {
        let stamp = FileStamp::of(paths.all());
        let setup = paths.read().map_err(|error| TlsFileError::new(&paths, &error))?;
        let warnings = setup.warnings.iter().map(ToString::to_string).collect();
        Ok((Self { paths, stamp, current: Arc::new(SharedTls::new(setup)) }, warnings))
    }

    /// Returns the policy for client certificates. Returns `None` if no client CA is configured,
    /// because the server then does not request certificates.
    pub(crate) fn client_auth(&self) -> Option<ClientAuth> {
        self.paths.client_ca.as_ref().map(|_| self.paths.client_auth)
    }

    /// Adds the files to the reloader.
    pub(crate) fn watch(&self, reloader: &mut Reloader) {
        let (paths, current) = (self.paths.clone(), Arc::clone(&self.current));
        reloader.watch(paths.keys.log_name, paths.all(), self.stamp.clone(), move || {
            let setup = paths.read()?;
            for warning in &setup.warnings {
                warn!("{warning}");
            }
            info!(ends = setup.expires_at, "{} replaced", paths.keys.log_name);
            current.replace(setup);
            Ok(())
        });
    }
}

impl TlsFileError {
    /// Attributes an error to the file that it names, or to the certificate file if it names none.
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
        let is_named = |path: &PathBuf| path.display().to_string() == name;
        let (key, path) = match &paths.client_ca {
            Some(path) if is_named(path) => ("tls_client_ca", path),
            _ if is_named(&paths.key) && !is_named(&paths.cert) => (paths.keys.key, &paths.key),
            _ => (paths.keys.cert, &paths.cert),
        };
        Self { key, path: path.clone(), problem }
    }
}
