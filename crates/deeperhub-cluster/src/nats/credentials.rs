//! Credentials for NATS: files, and users in URLs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Map, Value};
use url::Url;

use crate::link::LinkError;

/// Text that only credentials files of `nsc` contain.
const USER_JWT: &str = "BEGIN NATS USER JWT";

/// Checks the contents of a [`Config::credentials`](crate::Config::credentials) file: credentials
/// of `nsc`, or the seed of an nkey. Does not check whether a server accepts them.
///
/// # Errors
///
/// Returns a description of the problem, without secrets.
pub fn check_credentials(text: &str) -> Result<(), String> {
    if text.contains(USER_JWT) {
        return parse_file(text)
            .map(drop)
            .map_err(|error| format!("expected credentials as nsc writes them ({error})"));
    }
    let seed = text.trim();
    let is_seed = seed.len() == 58
        && seed.starts_with("SU")
        && seed.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
    if is_seed {
        Ok(())
    } else {
        Err("expected credentials as nsc writes them, or the seed of a user's nkey (SU…)".to_owned())
    }
}

/// Returns the JWT and the key of a file of `nsc`.
fn parse_file(text: &str) -> Result<(&str, KeyPair), String> {
    let mut blocks = text.lines().map(str::trim).scan(false, |is_block, line| {
        let is_mark = line.starts_with("---") && line.ends_with("---");
        let content = (*is_block && !is_mark && !line.is_empty()).then_some(line);
        // A block is one line between two marks.
        *is_block = if is_mark { !*is_block } else { *is_block };
        Some(content)
    });
    let jwt = blocks.by_ref().flatten().next().ok_or("it has no JWT")?;
    let seed = blocks.flatten().next().ok_or("it has no seed")?;
    let key = KeyPair::from_seed(seed).map_err(|error| error.to_string())?;
    Ok((jwt, key))
}

/// Adds what proves the user to the options of a connection. `nonce` is the text that the server
/// wants signed.
pub(super) fn add_to(
    options: &mut Map<String, Value>,
    file: Option<&Path>,
    server: &Url,
    nonce: &str,
) -> Result<(), LinkError> {
    let mut set = |name: &str, value: &str| {
        options.insert(name.to_owned(), Value::from(value));
    };
    if let Some(file) = file {
        let invalid = |error: &dyn std::fmt::Display| {
            LinkError(format!("invalid NATS credentials in {}: {error}", file.display()))
        };
        let text = std::fs::read_to_string(file).map_err(|error| invalid(&error))?;
        let (jwt, key) = if text.contains(USER_JWT) {
            let (jwt, key) = parse_file(&text).map_err(|error| invalid(&error))?;
            (Some(jwt), key)
        } else {
            (None, KeyPair::from_seed(text.trim()).map_err(|error| invalid(&error))?)
        };
        let signature = key.sign(nonce.as_bytes()).map_err(|error| invalid(&error))?;
        set("sig", &URL_SAFE_NO_PAD.encode(signature));
        match jwt {
            Some(jwt) => set("jwt", jwt),
            None => set("nkey", &key.public_key()),
        }
    } else if !server.username().is_empty() || server.password().is_some() {
        let user = percent_decode(server.username());
        match server.password() {
            Some(password) => {
                set("user", &user);
                set("pass", &percent_decode(password));
            }
            None => set("auth_token", &user),
        }
    }
    Ok(())
}

/// Decodes the percent-encoding of a part of a URL.
fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str, file: Option<&Path>) -> Result<Map<String, Value>, LinkError> {
        let mut options = Map::new();
        add_to(&mut options, file, &Url::parse(url).unwrap(), "nonce")?;
        Ok(options)
    }

    #[test]
    fn users_and_tokens_come_from_the_url() {
        assert!(options("nats://h", None).unwrap().is_empty());
        let both = options("nats://a%40b:c%3A%2Fd@h", None).unwrap();
        assert_eq!((both["user"].as_str(), both["pass"].as_str()), (Some("a@b"), Some("c:/d")));
        assert_eq!(options("nats://t%2Bk@h", None).unwrap()["auth_token"], "t+k");
    }

    #[test]
    fn files_prove_the_user_with_a_signature() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let nsc = format!(
            "-----BEGIN NATS USER JWT-----\r\ntoken.of.user\r\n------END NATS USER JWT------\r\n\r\n\
             ************************* IMPORTANT *************************\r\nKeep it secret.\r\n\r\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        for (text, jwt) in [(nsc, Some("token.of.user")), (format!("{seed}\n"), None)] {
            assert_eq!(check_credentials(&text), Ok(()));
            let name = format!("deeperhub-credentials-{}-{}", std::process::id(), jwt.is_some());
            let file = std::env::temp_dir().join(name);
            std::fs::write(&file, &text).unwrap();
            // The file comes before the URL.
            let found = options("nats://user:password@h", Some(&file));
            std::fs::remove_file(&file).unwrap();
            let found = found.unwrap();
            let signature = URL_SAFE_NO_PAD.decode(found["sig"].as_str().unwrap()).unwrap();
            key.verify(b"nonce", &signature).unwrap();
            assert_eq!(found.get("jwt").and_then(Value::as_str), jwt);
            let public = key.public_key();
            assert_eq!(found.get("nkey").and_then(Value::as_str), jwt.is_none().then_some(public.as_str()));
            assert_eq!(found.get("user"), None);
        }
    }

    #[test]
    fn files_without_credentials_are_refused() {
        let no_seed = "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n";
        for text in [no_seed, "-----BEGIN NATS USER JWT-----\n", "SUnothing", ""] {
            assert!(check_credentials(text).is_err(), "{text}");
        }
        let missing = options("nats://h", Some(Path::new("/nonexistent/file"))).unwrap_err();
        assert!(missing.0.contains("/nonexistent/file"), "{missing}");
    }
}
