//! One attack and its cost.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use crate::attack::{Attackers, COMPRESSED, ConnectOptions};
use crate::healthy::{HealthyClients, Report};
use crate::{Attack, Tools};

/// Table head in Markdown.
pub(crate) const HEAD: &str = "| limit | attack | clients × allowed | sent per second | others' echo p50, ms | p99, ms \
                               | delivery p99, ms | CPU of a core | peak MiB | others |\n\
                               |---|---|---|---|---|---|---|---|---|---|";

/// A row of the table: an attack and its size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// `None` for the row without attackers.
    attack: Option<Attack>,
    is_compressed: bool,
    clients: usize,
}

impl Row {
    /// Returns the row without attackers, followed by the rows of each attack. An attack has a
    /// plain row, unless it needs compression. It has a compressed row if it needs compression or
    /// if compression makes more work for the server.
    pub(crate) fn all(clients: usize) -> Vec<Self> {
        let mut rows = vec![Self { attack: None, is_compressed: false, clients: 0 }];
        for attack in Attack::ALL {
            let row = |is_compressed| Self { attack: Some(attack), is_compressed, clients };
            if !attack.is_compressed_only() {
                rows.push(row(false));
            }
            if attack.is_compressed_only() || gains_by_compression(attack) {
                rows.push(row(true));
            }
        }
        rows
    }

    /// Returns the attack's description.
    pub(crate) fn name(self) -> String {
        let name = self.attack.map_or("none", Attack::name);
        if self.is_compressed { format!("{name}, compressed") } else { name.to_owned() }
    }

    /// Returns the limit that the attack stays at.
    pub(crate) const fn limit(self) -> &'static str {
        match self.attack {
            Some(attack) => attack.limit(),
            None => "-",
        }
    }

    /// Starts a server, attacks it and measures.
    ///
    /// # Errors
    ///
    /// If the server does not start or refuses the healthy clients.
    pub(crate) async fn measure(self, tools: &Tools, time: Duration) -> Result<Figures, Box<dyn Error>> {
        let server = tools.start(self.attack == Some(Attack::WrongTokens))?;
        let plain = ConnectOptions::plain(server.clients);
        let offer = self.is_compressed.then_some(COMPRESSED);
        let options = ConnectOptions { offer, ..plain.clone() };
        let healthy = HealthyClients::start(&[plain], 4, 2)?;
        let mut attackers = Attackers::default();
        if let Some(attack) = self.attack {
            attackers.spawn(attack, &[options], self.clients);
        }
        let (began, cpu) = (Instant::now(), server.cpu_time()?);
        tokio::time::sleep(time).await;
        let elapsed = began.elapsed().as_secs_f64();
        let cpu = (server.cpu_time()? - cpu).as_secs_f64() / elapsed;
        let sent = attackers.counters.messages() as f64 / elapsed;
        let wrong = attackers.stop().await.err();
        let healthy = healthy.stop();
        Ok(Figures { row: self, sent, cpu, peak: server.peak_resident_bytes()?, wrong, healthy })
    }
}

/// Returns `true` if compression multiplies the server's work for the attack.
const fn gains_by_compression(attack: Attack) -> bool {
    matches!(
        attack,
        Attack::FullEchoes
            | Attack::UnwantedPublishes
            | Attack::DeepJson
            | Attack::UnreadEchoes
            | Attack::UnreadFanOut
            | Attack::FanOut
    )
}

/// The measured figures of a row.
#[derive(Debug)]
pub(crate) struct Figures {
    row: Row,
    /// Messages or handshakes per second that attackers sent.
    sent: f64,
    cpu: f64,
    peak: u64,
    /// Wrong bytes that an attacker received.
    wrong: Option<String>,
    healthy: Result<Report, String>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = self.row.attack.map_or("-", Attack::allowance);
        let (echo, delivery) = match &self.healthy {
            Ok(report) => (Some(&report.echoes), Some(&report.deliveries)),
            Err(_) => (None, None),
        };
        let quantile = |histogram: Option<&hdrhistogram::Histogram<u64>>, quantile| {
            histogram.map_or_else(
                || "-".to_owned(),
                |histogram| format!("{:.2}", histogram.value_at_quantile(quantile) as f64 / 1000.0),
            )
        };
        let others = match (&self.healthy, &self.wrong) {
            (_, Some(wrong)) => wrong,
            (Err(error), None) => error,
            (Ok(_), None) => "all answered",
        };
        write!(
            f,
            "| `{}` | {} | {} × {allowed} | {:.0} | {} | {} | {} | {:.0} % | {} | {others} |",
            self.row.limit(),
            self.row.name(),
            self.row.clients,
            self.sent,
            quantile(echo, 0.5),
            quantile(echo, 0.99),
            quantile(delivery, 0.99),
            self.cpu * 100.0,
            self.peak >> 20,
        )
    }
}
