//! How the voters are changed: by the primary, in two steps, each upon a record that was just agreed.
//! `coordination::voters` says why.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coordination::leadership::Change;
use coordination::{Electorate, Leadership, Membership, SignedOrder};
use proto::RegionName;

use super::{ChangeError, Voter};

impl Voter {
    /// Whom this daemon's file names as voters.
    #[must_use]
    pub fn file(&self) -> &Electorate {
        &self.file
    }

    /// How the voters of the record differ from those of this daemon's file, for people.
    #[must_use]
    pub fn unlike_the_file(&self) -> Vec<String> {
        let record = self.agreed().map_or_else(|| self.accepted(), |agreed| agreed.record);
        record.voters.as_ref().map_or_else(Vec::new, |voters| unlike(voters, &self.file))
    }

    /// Adds a voter or removes one, on `order`; it is agreed, and settled, when this returns. What was done
    /// already is not done again.
    ///
    /// # Errors
    /// When this is not the primary, something else is in progress, or too few voters answer. What was begun
    /// goes on by itself.
    pub async fn change_voters(
        self: &Arc<Self>,
        membership: Membership,
        order: Option<SignedOrder>,
    ) -> Result<Leadership, ChangeError> {
        let by = self.me.clone();
        self.change(&Change::Voters { by: by.clone(), membership, order }).await?;
        self.change(&Change::Settle { by }).await
    }

    /// Goes on with a change of the voters that this primary, or one before it, has begun.
    pub(super) async fn settle(self: &Arc<Self>) {
        let Some(record) = self.agreed().map(|agreed| agreed.record) else { return };
        let Some(voters) = record.voters.filter(|_| record.primary == self.me && record.promotion.is_none())
        else {
            return;
        };
        if !voters.is_settled() {
            let _ = self.change(&Change::Settle { by: self.me.clone() }).await;
        } else if voters.lost.has(&self.me) {
            // It was counted as lost, and nobody else could lead.
            let membership = Membership::Add { name: self.me.clone(), witness: false };
            let _ = self.change_voters(membership, None).await;
        }
    }

    /// `name` has answered this primary. If an operator's word counted it as lost, it is to have a vote
    /// again.
    pub(crate) fn found(self: &Arc<Self>, name: &RegionName) {
        let Some(record) = self.agreed().map(|agreed| agreed.record) else { return };
        let Some(voters) = record.voters.filter(|voters| voters.lost.has(name)) else { return };
        let leads = record.primary == self.me && record.promotion.is_none();
        if !leads || !self.knows(name) || self.finding.swap(true, Ordering::Relaxed) {
            return;
        }
        let membership =
            Membership::Add { name: name.clone(), witness: voters.lost.witnesses.contains(name) };
        let (this, name) = (self.clone(), name.clone());
        self.spawn(async move {
            match this.change_voters(membership, None).await {
                Ok(_) => {
                    tracing::info!("voter {name}: was counted as lost, and answers; it has a vote again")
                }
                Err(e) => tracing::warn!("voter {name}: was counted as lost, and answers; no vote yet: {e}"),
            }
            this.finding.store(false, Ordering::Relaxed);
        });
    }
}

fn unlike(voters: &Electorate, file: &Electorate) -> Vec<String> {
    let mut notes = Vec::new();
    for name in file.names().iter().filter(|name| !voters.now.has(name) && !voters.lost.has(name)) {
        notes.push(format!(
            "voters: {name} is in regions.toml, and has no vote; `replicator voters add {name}`, or take it out of the file"
        ));
    }
    for name in voters.now.names().filter(|name| !file.has(name)) {
        notes.push(format!(
            "voters: {name} votes, and is not in regions.toml; `replicator voters remove {name}`, or put it back into the file"
        ));
    }
    for name in voters.lost.names() {
        notes.push(format!(
            "voters: {name} is counted as lost, on an operator's word; it has a vote again once it answers the primary"
        ));
    }
    if !voters.is_settled() {
        notes.push("voters: a change is not over; a majority of those before it is needed, too, and it goes on by itself".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordination::Voters;

    #[test]
    fn what_the_file_and_the_record_say_otherwise_is_told() {
        let voters = |names: &[&str]| {
            let regions = names.iter().map(|name| name.parse().unwrap()).collect();
            Electorate::of(Voters { regions, ..Voters::default() })
        };
        assert_eq!(unlike(&voters(&["a", "b"]), &voters(&["a", "b"])), Vec::<String>::new());
        let notes = unlike(&voters(&["a", "b"]), &voters(&["a", "c"])).join("\n");
        assert!(notes.contains("voters add c") && notes.contains("voters remove b"), "{notes}");
        let lost = voters(&["a", "b"]).without(&["b".parse().unwrap()].into());
        let notes = unlike(&lost, &voters(&["a", "b"])).join("\n");
        assert!(notes.contains("b is counted as lost") && !notes.contains("add b"), "{notes}");
        let changing = voters(&["a"])
            .step(&Membership::Add { name: "b".parse().unwrap(), witness: false }, None)
            .unwrap();
        assert!(unlike(&changing, &voters(&["a", "b"])).concat().contains("not over"));
    }
}
