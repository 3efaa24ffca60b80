//! `replicator reload`: what became of each key in each region.

use proto::RegionName;
use proto::messages::reloaded_key::Outcome;
use proto::messages::{Reloaded, ReloadedKey};

use super::AnyResult;
use crate::operator::Operator;

type Answered = (String, Result<Reloaded, String>);

/// Has daemons read their file again, and shows what they took.
pub(super) async fn reload(operator: &Operator, region: Option<&RegionName>, json: bool) -> AnyResult {
    let answers = operator.reload(region).await?;
    if json {
        let regions: Vec<serde_json::Value> = answers.iter().map(as_json).collect();
        println!("{}", serde_json::json!({ "regions": regions }));
    } else {
        print!("{}", answers.iter().map(table).collect::<String>());
    }
    let failed: Vec<&str> =
        answers.iter().filter(|(_, answer)| !is_well(answer)).map(|(name, _)| name.as_str()).collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(format!("not taken everywhere: see {}", failed.join(", ")).into()),
    }
}

/// Whether nothing was refused.
fn is_well(answer: &Result<Reloaded, String>) -> bool {
    answer.as_ref().is_ok_and(|reloaded| {
        reloaded.refused.is_empty() && reloaded.keys.iter().all(|key| key.outcome() != Outcome::Refused)
    })
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unchanged | Outcome::Unspecified => "unchanged",
        Outcome::Applied => "applied",
        Outcome::NeedsRestart => "needs_restart",
        Outcome::Refused => "refused",
    }
}

fn as_json((region, answer): &Answered) -> serde_json::Value {
    let key = |key: &ReloadedKey| serde_json::json!({ "key": key.key, "outcome": word(key.outcome()), "detail": key.detail });
    let (refused, error, keys) = match answer {
        Ok(Reloaded { refused, keys }) => (refused.as_str(), "", keys.iter().map(key).collect()),
        Err(error) => ("", error.as_str(), Vec::new()),
    };
    serde_json::json!({ "region": region, "refused": refused, "error": error, "keys": keys })
}

/// A line for each key that is another; what is not said is unchanged.
fn table((region, answer): &Answered) -> String {
    let keys = match answer {
        Err(error) => return format!("{region}: no answer: {error}\n"),
        Ok(Reloaded { refused, .. }) if !refused.is_empty() => {
            return format!("{region}: the file is not taken, and nothing was changed: {refused}\n");
        }
        Ok(Reloaded { keys, .. }) => keys,
    };
    let told = |key: &&ReloadedKey| key.outcome() != Outcome::Unchanged || !key.detail.is_empty();
    let changed: Vec<&ReloadedKey> = keys.iter().filter(told).collect();
    if changed.is_empty() {
        return format!("{region}: the file says what is in force\n");
    }
    let width = changed.iter().map(|key| key.key.len()).max().unwrap_or(0);
    let mut text = format!("{region}:\n");
    for key in changed {
        let outcome = word(key.outcome()).replace('_', " ");
        let line = format!("  {outcome:13}  {:width$}  {}", key.key, key.detail);
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(keys: &[(&str, Outcome, &str)]) -> Answered {
        let keys = keys.iter().map(|(key, outcome, detail)| ReloadedKey {
            key: (*key).into(),
            outcome: (*outcome).into(),
            detail: (*detail).into(),
        });
        ("a".into(), Ok(Reloaded { keys: keys.collect(), ..Reloaded::default() }))
    }

    #[test]
    fn what_changed_is_shown_and_what_was_refused_fails() {
        let same = answer(&[("lease", Outcome::Unchanged, "")]);
        assert_eq!(table(&same), "a: the file says what is in force\n");
        let mixed = answer(&[
            ("lease", Outcome::NeedsRestart, "restart"),
            ("commit", Outcome::Unchanged, ""),
            ("volume.retain", Outcome::Applied, ""),
        ]);
        assert_eq!(
            table(&mixed),
            "a:\n  needs restart  lease          restart\n  applied        volume.retain\n"
        );
        assert!(is_well(&same.1) && is_well(&mixed.1));
        assert!(!is_well(&answer(&[("postgresql.hba", Outcome::Refused, "")]).1));
        assert!(!is_well(&Err("silent".into())));
        let refused = Reloaded { refused: "why".into(), ..Reloaded::default() };
        assert!(!is_well(&Ok(refused.clone())) && table(&("a".into(), Ok(refused))).contains("not taken"));
        assert_eq!(as_json(&mixed)["keys"][0]["outcome"], "needs_restart");
    }
}
