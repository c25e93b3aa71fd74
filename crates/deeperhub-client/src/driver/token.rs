//! Tokens of the application.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::core::TokenKind;

/// The error of a function that returns tokens.
pub type TokenError = Box<dyn StdError + Send + Sync>;

type TokenFuture = Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send>>;

/// A token, or a function that returns one.
#[derive(Clone)]
pub struct Token(Source);

#[derive(Clone)]
enum Source {
    Fixed(String),
    Function(Arc<dyn Fn() -> TokenFuture + Send + Sync>),
}

impl Token {
    pub(super) fn kind(&self) -> TokenKind {
        match &self.0 {
            Source::Fixed(token) => TokenKind::Fixed(token.clone()),
            Source::Function(_) => TokenKind::Function,
        }
    }

    /// Calls the function.
    pub(super) fn call(&self) -> TokenFuture {
        match &self.0 {
            Source::Fixed(token) => {
                let token = token.clone();
                Box::pin(async move { Ok(token) })
            }
            Source::Function(function) => function(),
        }
    }
}

impl fmt::Debug for Token {
    /// Writes nothing of the token itself.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.0 {
            Source::Fixed(_) => "Token(fixed)",
            Source::Function(_) => "Token(function)",
        })
    }
}

/// The value of an async function that returns tokens: a `String`, or a `Result` with one.
pub trait TokenResult {
    /// Converts to a result.
    ///
    /// # Errors
    /// Returns the error of the function.
    fn into_result(self) -> Result<String, TokenError>;
}

impl TokenResult for String {
    fn into_result(self) -> Result<String, TokenError> {
        Ok(self)
    }
}

impl<E: Into<TokenError>> TokenResult for Result<String, E> {
    fn into_result(self) -> Result<String, TokenError> {
        self.map_err(Into::into)
    }
}

/// A token as text, or an async function that returns one.
pub trait IntoToken {
    /// Converts to a token.
    fn into_token(self) -> Token;
}

impl IntoToken for Token {
    fn into_token(self) -> Token {
        self
    }
}

impl IntoToken for String {
    fn into_token(self) -> Token {
        Token(Source::Fixed(self))
    }
}

impl IntoToken for &str {
    fn into_token(self) -> Token {
        self.to_owned().into_token()
    }
}

impl<F, R> IntoToken for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future + Send + 'static,
    R::Output: TokenResult,
{
    fn into_token(self) -> Token {
        Token(Source::Function(Arc::new(move || {
            let token = self();
            Box::pin(async move { token.await.into_result() })
        })))
    }
}
