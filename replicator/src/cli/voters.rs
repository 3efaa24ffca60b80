//! `replicator voters`: who votes, and how that differs from the file.

use coordination::Membership;
use proto::messages::{VoterView, VotersView};

use super::AnyResult;
use super::args::VotersAction;
use crate::operator::Operator;

/// Does what was typed, and shows the voters.
pub(super) async fn run(operator: &Operator, action: Option<VotersAction>, json: bool) -> AnyResult {
    let change = action.map(|action| match action {
        VotersAction::Add { name } => operator.addition(name),
        VotersAction::Remove { name } => Membership::Remove { name },
    });
    let view = operator.voters(change).await?;
    if json {
        println!("{}", serde_json::to_string(&as_json(&view))?);
        return Ok(());
    }
    print!("{}", table(&view));
    Ok(())
}

fn as_json(view: &VotersView) -> serde_json::Value {
    let voter = |voter: &VoterView| {
        let VoterView { name, witness, votes, lost, in_file } = voter;
        serde_json::json!({ "name": name, "witness": witness, "votes": votes, "lost": lost, "in_file": in_file })
    };
    let voters: Vec<serde_json::Value> = view.voters.iter().map(voter).collect();
    serde_json::json!({ "recorded": view.recorded, "changing": view.changing, "voters": voters })
}

fn table(view: &VotersView) -> String {
    let width = view.voters.iter().map(|voter| voter.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for voter in &view.voters {
        let kind = if voter.witness { "witness" } else { "region" };
        let what = match (voter.votes, voter.lost, voter.in_file) {
            (true, _, true) => "votes",
            (true, _, false) => "votes, and is not in regions.toml: remove it, or put it back into the file",
            (false, true, _) => "is counted as lost, until the primary hears it",
            (false, false, _) => "is in regions.toml, and has no vote: add it, or take it out of the file",
        };
        text += &format!("{:width$}  {kind:7}  {what}\n", voter.name);
    }
    if view.changing {
        text +=
            "a change is not over: a majority of the voters before it is needed, too; it goes on by itself\n";
    }
    if !view.recorded {
        text += "the record does not say who votes yet: all that are in regions.toml do\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_voter_has_a_line_that_says_what_to_do() {
        let voter = |name: &str, votes, lost, in_file| VoterView {
            name: name.into(),
            votes,
            lost,
            in_file,
            ..VoterView::default()
        };
        let voters = vec![
            voter("a", true, false, true),
            voter("b", true, false, false),
            voter("c", false, true, true),
            voter("d", false, false, true),
        ];
        let view = VotersView { voters, recorded: true, changing: true };
        let text = table(&view);
        let says: Vec<&str> = text.lines().collect();
        assert!(says[0].ends_with("votes") && says[1].contains("remove it") && says[2].contains("lost"));
        assert!(says[3].contains("add it") && says[4].contains("not over"), "{text}");
        assert_eq!(as_json(&view)["voters"][2]["lost"], true);
    }
}
