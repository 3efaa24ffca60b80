//! `replicator token`: makes what a client logs in to PostgreSQL with, for minutes.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use proto::messages::TokenRequest;
use serde_json::json;
use transport::Authority;

use super::AnyResult;
use crate::config::Config;
use crate::events::show_time;
use crate::layout::Layout;
use crate::local::certificates;
use crate::operator::{Operator, token_url};
use crate::units;

/// For how long a token may be good: what is shorter is over before it is used, and what is to last longer
/// is a role with a password.
const SHORTEST: Duration = Duration::from_secs(60);
/// See [`SHORTEST`].
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What was typed.
pub(super) struct Asked {
    /// The role of PostgreSQL.
    pub(super) role: String,
    /// For how long.
    pub(super) validity: Duration,
    /// Where its files go.
    pub(super) out: PathBuf,
    /// No daemon need keep that it was granted.
    pub(super) unrecorded: bool,
    /// For programs.
    pub(super) json: bool,
}

/// A token's validity, as it is typed.
pub(super) fn validity(text: &str) -> Result<Duration, String> {
    let wanted = units::parse_duration(text).filter(|wanted| (SHORTEST..=LONGEST).contains(wanted));
    wanted.ok_or_else(|| "a duration from 1m to 24h, such as 15m".into())
}

/// Makes the token, has a daemon keep that, and only then writes it.
pub(super) async fn grant(config: Config, layout: &Layout, asked: Asked) -> AnyResult {
    let Asked { role, validity, out, unrecorded, json } = asked;
    check_role(&config, &role)?;
    let place = layout.authority();
    if !place.join("ca.key").exists() {
        let place = place.display();
        return Err(format!("{place}: the authority's key is not here; a token is made where it is").into());
    }
    let authority = Authority::open(&place)?;
    let validity = time::Duration::try_from(validity)?;
    let token = authority.grant_token(&role, certificates::now(), validity)?;
    let until = show_time(token.ends_s.saturating_mul(1_000_000));
    let kept_by = match unrecorded {
        true => None,
        false => Some(record(&config, layout, &role, &token).await?),
    };
    let placed = token.write(&std::path::absolute(&out)?)?;
    let url = token_url(&config, &role, &placed);
    if json {
        let line = json!({
            "role": role, "serial": token.serial, "until": until, "url": url,
            "certificate": placed.certificate, "key": placed.key, "authorities": placed.authorities,
            "audit": kept_by,
        });
        println!("{line}");
        return Ok(());
    }
    let kept = kept_by.map_or_else(|| "no audit has it".to_owned(), |by| format!("in the audit of {by}"));
    eprintln!("a token of {role}, serial {}: clients log in with it until {until}; {kept}", token.serial);
    println!("{url}");
    Ok(())
}

fn check_role(config: &Config, role: &str) -> Result<(), String> {
    if config.token_roles.contains(role) {
        return Ok(());
    }
    let known: Vec<&str> = config.token_roles.iter().map(String::as_str).collect();
    let known = if known.is_empty() { "none".into() } else { known.join(", ") };
    Err(format!(
        "'{role}': it logs in with no token; `token_roles` in [postgresql] of the file names those that do: {known}"
    ))
}

/// Has a daemon keep that the token is granted; which one did.
async fn record(
    config: &Config,
    layout: &Layout,
    role: &str,
    token: &transport::Token,
) -> Result<String, Box<dyn Error>> {
    let request = TokenRequest { role: role.to_owned(), serial: token.serial.clone(), ends_s: token.ends_s };
    let recorded = Operator::new(config.clone(), layout)?.record_token(request).await;
    match recorded {
        Ok(by) => Ok(by.to_string()),
        Err(e) => Err(format!(
            "{e}\nno audit has this token, so it is not written; where no daemon can be reached from here: --unrecorded"
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_a_minute_to_a_day() {
        for (text, seconds) in [("1m", 60), ("60s", 60), ("15m", 900), ("24h", 86_400), ("1d", 86_400)] {
            assert_eq!(validity(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0m", "59s", "25h", "1441m", "soon", "-15m", "15", "99999999999999999999h"] {
            assert_eq!(validity(text), Err("a duration from 1m to 24h, such as 15m".into()), "{text}");
        }
    }
}
