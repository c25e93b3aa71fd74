//! The `authenticate` message: logs in, or renews a login.

use deeperhub_listener::{ConnectionKey, Context};
use deeperhub_protocol::message::{MessageId, ServerMessage};
use deeperhub_protocol::{ErrorCode, Subscription};

use crate::auth::Login;
use crate::metrics::SentType;
use crate::session::{Session, error_reply};
use crate::worker::NodeWorker;

/// Cost of verifying a token, for [`Context::charge`]. Lets other clients of the worker go first: a
/// verification takes up to two milliseconds if all P-384 keys have to be tried, and usually a
/// tenth of that.
const VERIFICATION_COST: usize = 128 * 1024;

/// Verifies a token and replaces the connection's login. Ends the subscriptions that the new login
/// does not grant. A rejected token changes nothing.
pub(crate) fn authenticate(
    session: &mut Session,
    id: Option<MessageId<'_>>,
    token: &str,
    cx: &mut Context<'_, NodeWorker>,
) {
    let (key, now) = (cx.key(), cx.now());
    cx.charge(VERIFICATION_COST);
    let worker = cx.worker();
    let now_seconds = worker.unix_seconds(now);
    let login = match worker.hub.config.auth.verify(token, now_seconds) {
        Ok(claims) => Login::from_token(claims),
        Err(error) => {
            let text = error.to_string();
            let reply = ServerMessage::Error {
                id,
                code: error.code(),
                message: &text,
                field: None,
                topic: None,
                retry_after_ms: None,
            };
            return session.reply_error(&reply, cx);
        }
    };
    let had_token = session.has_token();
    match session.user() {
        // The user of a token replaces the user of a certificate.
        Some(user) if *user != login.user && !had_token => {
            worker.remove_user(user, key);
            worker.add_user(&login.user, key);
        }
        // The connection's subscriptions and messages belong to its first user.
        Some(user) if *user != login.user => {
            let message = "the token belongs to another user than the connection";
            let error = error_reply(id, ErrorCode::TokenInvalid, message);
            return session.reply_error(&error.to_message(), cx);
        }
        Some(_) => {}
        None => worker.add_user(&login.user, key),
    }
    let revoked = subscriptions_without_grant(&login, key, worker);
    let reply = ServerMessage::Authenticated { id, user: &login.user, expires_at: login.expires_at() };
    session.reply(SentType::Authenticated, &reply, cx);
    session.login = Some(Box::new(login));
    for subscription in revoked {
        cx.worker().unsubscribe(key, &subscription);
        let notice = ServerMessage::Unsubscribed { id: None, topic: subscription.as_str() };
        session.reply(SentType::Unsubscribed, &notice, cx);
    }
}

/// Returns the subscriptions that a login does not grant.
fn subscriptions_without_grant(
    login: &Login,
    key: ConnectionKey,
    worker: &NodeWorker,
) -> Vec<Subscription<'static>> {
    if login.is_unrestricted() {
        return Vec::new();
    }
    let subscriptions = worker.shard.subscriptions(key).filter_map(|name| Subscription::parse(name).ok());
    subscriptions
        .filter(|subscription| !login.may_subscribe(subscription))
        .map(Subscription::into_owned)
        .collect()
}
