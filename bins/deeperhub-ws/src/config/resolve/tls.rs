//! Resolves the options under "TLS".

use super::Resolver;
use crate::config::effective::OnReload;
use crate::config::options::{TlsOptions, flag, variable};
use crate::reload::tls::{MissingSetting, Tls, TlsFileOptions, TlsKeys};

/// Returns the TLS of the client port, or `None` if it is off. Reads the files, so that
/// `config check` finds errors in them.
pub(super) fn resolve(resolver: &mut Resolver, options: TlsOptions) -> Option<Tls> {
    let TlsOptions { tls_cert, tls_key, tls_client_ca, tls_client_auth } = options;
    let files = TlsFileOptions {
        keys: TlsKeys::CLIENTS,
        cert: take!(resolver, fixed tls_cert),
        key: take!(resolver, fixed tls_key),
        client_ca: take!(resolver, fixed tls_client_ca),
        client_auth: take!(resolver, fixed tls_client_auth).map(Into::into),
    };
    load(resolver, files)
}

/// Reads the TLS files of one listener. Returns `None` if its TLS is off, and after an error, which
/// it reports to the resolver.
pub(super) fn load(resolver: &mut Resolver, files: TlsFileOptions) -> Option<Tls> {
    let paths = match files.into_paths() {
        Ok(paths) => paths?,
        Err(MissingSetting { given, missing }) => {
            resolver.conflict(format!(
                "{} needs {}, {} or {missing} as well",
                resolver.name_of(given),
                flag(missing),
                variable(missing),
            ));
            return None;
        }
    };
    match Tls::load(paths) {
        Ok((tls, warnings)) => {
            resolver.warnings.extend(warnings);
            Some(tls)
        }
        Err(error) => {
            resolver.invalid(error.key, error.path.display().to_string(), error.problem);
            None
        }
    }
}
