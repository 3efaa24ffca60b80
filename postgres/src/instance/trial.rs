//! What PostgreSQL would say of rules and maps that no running server has read yet: a cluster that lives for
//! a second or two is asked, in single-user mode, where nobody can connect to it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::account::Account;
use super::door::{MAP, MISTAKES, MISTAKES_OF_MAP, RULES};
use super::{CREATE, InstanceError, at, run, run_with};
use crate::below::Below;
use crate::installation::{Installation, trial_directory};
use crate::sockets::SUPERUSER;

/// How long the cluster may take for its answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Why rules are not known to be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// A line is none: the line, and what PostgreSQL says of it.
    #[error("{0}")]
    Mistake(String),
    /// PostgreSQL could not be asked, or not about a line that names files beside the data directory.
    #[error("{0}")]
    NotAsked(String),
}

/// What PostgreSQL says of a line whose files are elsewhere.
const OTHER_FILES: &str = "could not open";

/// What stands before and after a mistake in an answer.
const MARKS: [&str; 2] = ["<mistake ", " mistake>"];

impl Installation {
    /// Whether it takes these lines of `pg_hba.conf` and `pg_ident.conf`. Run by the account, in the
    /// directory for temporary files.
    ///
    /// # Errors
    /// What it says of the first line that it does not take, with the line; or why it could not be asked.
    pub fn check_rules(&self, account: &Account, rules: &[String], map: &[String]) -> Result<(), RulesError> {
        let directory = trial_directory();
        let not_asked = |why: &dyn std::fmt::Display| RulesError::NotAsked(why.to_string());
        account.check_reach(&directory).map_err(|e| not_asked(&e))?;
        account.make_private(&directory).map_err(|e| not_asked(&e))?;
        let said = self.mistake(account, &directory.join("data"), rules, map);
        if let Err(e) = std::fs::remove_dir_all(&directory) {
            tracing::warn!("{}: it stays, since it cannot be removed: {e}", directory.display());
        }
        match said.map_err(|e| not_asked(&e))? {
            None => Ok(()),
            Some(mistake) if mistake.contains(OTHER_FILES) => Err(RulesError::NotAsked(mistake)),
            Some(mistake) => Err(RulesError::Mistake(mistake)),
        }
    }

    fn mistake(
        &self,
        account: &Account,
        data: &Path,
        rules: &[String],
        map: &[String],
    ) -> Result<Option<String>, InstanceError> {
        let arguments = ["--username", SUPERUSER, "--auth=reject", "--no-sync", "--no-locale", "--pgdata"];
        run("initdb", account.command(&self.program("initdb")).args(arguments).arg(data), CREATE)?;
        let (below, owner) = (Below::open(data).map_err(at(data))?, account.owner());
        let files = [("hba", RULES, rules, MISTAKES), ("ident", MAP, map, MISTAKES_OF_MAP)];
        for (key, file, lines, question) in files {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            below.replace(Path::new(file), text.as_bytes(), owner).map_err(at(&data.join(file)))?;
            let [begin, end] = MARKS;
            let question =
                format!("SELECT '{begin}' || line_number || ' ' || error || '{end}' FROM ({question}) m\n");
            let (input, mut asks) = std::io::pipe().map_err(at(data))?;
            asks.write_all(question.as_bytes()).map_err(at(data))?;
            drop(asks);
            let mut command = account.command(&self.program("postgres"));
            command.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data).arg("template1");
            let answer = run_with("postgres --single", &mut command, input.into(), ANSWER)?;
            let said = answer.split_once(begin).and_then(|(_, said)| Some(said.split_once(end)?.0));
            let Some((number, error)) = said.and_then(|said| said.split_once(' ')) else { continue };
            let number = number.parse::<usize>().unwrap_or_default();
            let line = number.checked_sub(1).and_then(|before| lines.get(before)).map_or("", String::as_str);
            return Ok(Some(format!("`{key}`: {line:?}: {error}")));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_says_which_line_is_no_rule_and_which_is_no_map() {
        let (Ok(installation), Ok(account)) = (Installation::find(None), Account::resolve(None)) else {
            return;
        };
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<String>>();
        let said = |rules: &[&str], map: &[&str]| {
            installation.check_rules(&account, &lines(rules), &lines(map)).map_err(|e| e.to_string())
        };
        let well = ["host all app 10.0.0.0/8 reject", "hostssl all all all cert map=people"];
        assert_eq!(said(&well, &["people ann app"]), Ok(()));
        let rule = said(&[well[0], "host all app 10.0.0.0/8 md55"], &[]).unwrap_err();
        assert!(rule.contains("`hba`: \"host all app 10.0.0.0/8 md55\": invalid auth"), "{rule}");
        let map = said(&well, &["people ann app", "people ann"]).unwrap_err();
        assert!(map.contains("`ident`: \"people ann\": missing"), "{map}");
    }
}
