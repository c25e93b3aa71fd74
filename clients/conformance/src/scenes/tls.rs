//! Connections over TLS, and certificates that are not good.

use serde_json::json;

use crate::failure::{Result, ensure};
use crate::kit::{CHAT, Kit, MAX_DELAY_MS, MIN_DELAY_MS};
use crate::tls::Certificate;

/// The client trusts an authority of the system's, and comes back over TLS.
pub(super) async fn messages_and_a_cut(kit: &mut Kit) -> Result {
    let gate = kit.gate(Certificate::Good).await?;
    kit.connect_to(&gate.url(), json!({})).await?;
    kit.subscribe("chat", CHAT.name).await?;
    let mut connection = kit.open().await?;
    connection.serve_subscribes(&[CHAT.at(10, json!({}))]).await?;
    kit.app().expect_live("chat").await?;
    connection.deliver(&CHAT, 11).await?;
    kit.app().expect_message("chat", &CHAT, 11).await?;
    connection.cut();
    let mut connection = kit.recover(11, 1).await?;
    connection.deliver(&CHAT, 12).await?;
    kit.app().expect_message("chat", &CHAT, 12).await?;
    kit.app().expect_recovered("chat").await?;
    kit.settle(&mut connection).await
}

/// A certificate that is not good: the reason names it, and the attempts have a backoff. When the
/// server has a good one, the client connects.
async fn refuse_certificate(kit: &mut Kit, certificate: Certificate) -> Result {
    let gate = kit.gate(certificate).await?;
    kit.connect_to(&gate.url(), json!({})).await?;
    let mut limits = (0, 2 * MIN_DELAY_MS);
    for attempt in 1..=3 {
        let waiting = kit.app().expect_waiting().await?;
        let reason = waiting.reason.unwrap_or_default();
        ensure(reason.to_lowercase().contains("certificate"), || {
            format!("expected a reason that names the certificate, not {reason:?}")
        })?;
        // The driver may have written the time a few milliseconds late.
        ensure(waiting.wait_ms <= limits.1 as f64 && waiting.wait_ms + 15.0 >= limits.0 as f64, || {
            format!("expected a backoff of {limits:?} ms after attempt {attempt}, not {}", waiting.wait_ms)
        })?;
        limits = (MIN_DELAY_MS, MAX_DELAY_MS);
    }
    let attempts = gate.attempts();
    ensure(attempts <= 5, || format!("expected one connection for each attempt, not {attempts} for 3"))?;
    gate.change(Certificate::Good)?;
    kit.open().await?;
    kit.app().wait_for_state("open").await.map(drop)
}

/// The certificate has expired.
pub(super) async fn expired_certificate(kit: &mut Kit) -> Result {
    refuse_certificate(kit, Certificate::Expired).await
}

/// The certificate is for another host.
pub(super) async fn certificate_of_another_name(kit: &mut Kit) -> Result {
    refuse_certificate(kit, Certificate::OtherName).await
}

/// The certificate is of an authority that is not trusted.
pub(super) async fn certificate_of_another_authority(kit: &mut Kit) -> Result {
    refuse_certificate(kit, Certificate::OtherAuthority).await
}
