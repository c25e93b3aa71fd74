//! TLS towards clients: its files, read at the start and again when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use deeperhub_security::files::FileStamp;
use deeperhub_security::tls::{ClientAuth, Config, SharedTls, TlsError, TlsSetup};
use tracing::{info, warn};

use crate::failure::with_causes;
use crate::reload::Reloads;

/// The files as they were given.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) client_ca: Option<PathBuf>,
    /// `None` if not set.
    pub(crate) client_auth: Option<ClientAuth>,
}

impl Files {
    /// What they are together: nothing, or all that TLS needs.
    ///
    /// # Errors
    ///
    /// The setting that was given, and the one that it needs as well.
    pub(crate) fn together(self) -> Result<Option<Paths>, (&'static str, &'static str)> {
        match self {
            Self { client_ca: None, client_auth: Some(_), .. } => Err(("tls_client_auth", "tls_client_ca")),
            Self { cert: None, key: None, client_ca: None, .. } => Ok(None),
            Self { cert: Some(cert), key: Some(key), client_ca, client_auth } => {
                Ok(Some(Paths { cert, key, client_ca, client_auth: client_auth.unwrap_or_default() }))
            }
            Self { cert: Some(_), key: None, .. } => Err(("tls_cert", "tls_key")),
            Self { cert: None, key: Some(_), .. } => Err(("tls_key", "tls_cert")),
            Self { cert: None, key: None, client_ca: Some(_), .. } => Err(("tls_client_ca", "tls_cert")),
        }
    }
}

/// The files of TLS.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_auth: ClientAuth,
}

impl Paths {
    fn all(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }

    /// Reads them, now.
    fn read(&self) -> Result<TlsSetup, TlsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut config = Config::load(&self.cert, &self.key, self.client_ca.as_deref())?;
        config.client_auth = self.client_auth;
        config.build(now)
    }
}

/// TLS that is on.
#[derive(Debug)]
pub(crate) struct Tls {
    paths: Paths,
    /// What the files looked like before they were read.
    stamp: FileStamp,
    /// What connections are made with.
    pub(crate) current: Arc<SharedTls>,
}

/// What is wrong with the files.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The setting at fault.
    pub(crate) key: &'static str,
    pub(crate) path: PathBuf,
    /// What is wrong with the file, and what would be right.
    pub(crate) problem: String,
}

impl Tls {
    /// Reads the files; beside TLS come warnings about the certificate.
    pub(crate) fn load(paths: Paths) -> Result<(Self, Vec<String>), Fault> {
        let stamp = FileStamp::of(paths.all());
        let server = paths.read().map_err(|error| Fault::new(&paths, &error))?;
        let warnings = server.warnings.iter().map(ToString::to_string).collect();
        Ok((Self { paths, stamp, current: Arc::new(SharedTls::new(server)) }, warnings))
    }

    /// Returns the client certificate requirement; `None` if there is no client CA.
    pub(crate) fn client_auth(&self) -> Option<ClientAuth> {
        self.paths.client_ca.as_ref().map(|_| self.paths.client_auth)
    }

    /// Has the files read again when they change.
    pub(crate) fn watch(&self, reloads: &mut Reloads) {
        let (paths, current) = (self.paths.clone(), Arc::clone(&self.current));
        reloads.watch("TLS certificate", paths.all(), self.stamp.clone(), move || {
            let server = paths.read()?;
            for warning in &server.warnings {
                warn!("{warning}");
            }
            info!(ends = server.expires_at, "New connections get the TLS files as they are now.");
            current.replace(server);
            Ok(())
        });
    }
}

impl Fault {
    fn new(paths: &Paths, error: &TlsError) -> Self {
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
            _ if named(&paths.key) && !named(&paths.cert) => ("tls_key", &paths.key),
            _ => ("tls_cert", &paths.cert),
        };
        Self { key, path: path.clone(), problem }
    }
}
