//! `replicator password rotate`.

use super::AnyResult;
use crate::operator::{Operator, Rotated};

/// Gives the superuser another password in every region, and says which regions have it.
pub(super) async fn rotate(operator: &Operator, json: bool) -> AnyResult {
    let rotated = operator.rotate_password().await?;
    if json {
        let region = |(region, rotated): &(String, Rotated)| {
            let (outcome, detail) = said(rotated);
            serde_json::json!({ "region": region, "outcome": outcome, "detail": detail })
        };
        let regions: Vec<serde_json::Value> = rotated.iter().map(region).collect();
        println!("{}", serde_json::json!({ "regions": regions }));
        return Ok(());
    }
    let width = rotated.iter().map(|(region, _)| region.len()).max().unwrap_or(0);
    for (region, rotated) in &rotated {
        let (outcome, detail) = said(rotated);
        println!("{}", format!("{region:width$}  {outcome:8}  {detail}").trim_end());
    }
    Ok(())
}

/// The outcome in a word, and what comes next.
fn said(rotated: &Rotated) -> (&'static str, String) {
    match rotated {
        Rotated::InForce => ("in_force", String::new()),
        Rotated::Has => ("has_it", "its files take it once its PostgreSQL does, as the redo arrives".into()),
        Rotated::Away(why) => ("away", format!("it asks the primary for it when it is back: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_says_what_comes_next() {
        assert_eq!(said(&Rotated::InForce), ("in_force", String::new()));
        assert!(said(&Rotated::Has).1.contains("redo arrives"));
        let (outcome, detail) = said(&Rotated::Away("no answer".into()));
        assert!(outcome == "away" && detail.contains("when it is back: no answer"));
    }
}
