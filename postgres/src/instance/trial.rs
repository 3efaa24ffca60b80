//! What PostgreSQL would say of what no running server has read yet: of rules and maps, and of settings that
//! it starts with. A cluster that lives for a second or two is asked, in single-user mode, where nobody can
//! connect to it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::account::Account;
use super::door::{MAP, MISTAKES, MISTAKES_OF_MAP, RULES};
use super::{CREATE, InstanceError, at, run, run_with};
use crate::below::Below;
use crate::installation::{Installation, trial_directory};
use crate::sockets::SUPERUSER;

/// How long the cluster may take for its answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Why what was tried is not known to be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialError {
    /// It is not: what it is, and what PostgreSQL says of it.
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

/// What an answer has that begins with an error which ends the program.
const FATAL: &str = "FATAL:";

impl Installation {
    /// Whether it takes these lines of `pg_hba.conf` and `pg_ident.conf`. Run by the account, in the
    /// directory for temporary files.
    ///
    /// # Errors
    /// What it says of the first line that it does not take, with the line; or why it could not be asked.
    pub fn check_rules(&self, account: &Account, rules: &[String], map: &[String]) -> Result<(), TrialError> {
        match Trial::make(self, account).and_then(|trial| trial.mistake(rules, map)) {
            Ok(None) => Ok(()),
            Ok(Some(mistake)) if !mistake.contains(OTHER_FILES) => Err(TrialError::Mistake(mistake)),
            Ok(Some(why)) => Err(TrialError::NotAsked(why)),
            Err(e) => Err(TrialError::NotAsked(e.to_string())),
        }
    }

    /// Whether it starts with these settings: whether its libraries can be loaded, and its memory be had
    /// beside what runs.
    ///
    /// # Errors
    /// What it says instead; or why it could not be asked.
    pub fn check_start(
        &self,
        account: &Account,
        settings: &BTreeMap<String, String>,
    ) -> Result<(), TrialError> {
        let not_asked = |e: InstanceError| TrialError::NotAsked(e.to_string());
        let trial = Trial::make(self, account).map_err(not_asked)?;
        let settings = settings.iter().map(|(name, value)| format!("{name}={value}"));
        match trial.ask("", settings.flat_map(|setting| ["-c".to_owned(), setting])) {
            Ok(_) => Ok(()),
            Err(InstanceError::Program { output, .. }) if output.contains(FATAL) => {
                Err(TrialError::Mistake(fatal(&output)))
            }
            Err(e) => Err(not_asked(e)),
        }
    }
}

/// The first line of `output` that says why the program ended.
fn fatal(output: &str) -> String {
    let line = output.lines().find_map(|line| Some(line.split_once(FATAL)?.1.trim().to_owned()));
    line.unwrap_or_else(|| output.to_owned())
}

/// A cluster that lives as long as this.
struct Trial<'a> {
    installation: &'a Installation,
    account: &'a Account,
    directory: PathBuf,
}

impl Trial<'_> {
    fn make<'a>(installation: &'a Installation, account: &'a Account) -> Result<Trial<'a>, InstanceError> {
        let directory = trial_directory();
        account.check_reach(&directory)?;
        account.make_private(&directory)?;
        let trial = Trial { installation, account, directory };
        let arguments = ["--username", SUPERUSER, "--auth=reject", "--no-sync", "--no-locale", "--pgdata"];
        let mut initdb = account.command(&installation.program("initdb"));
        run("initdb", initdb.args(arguments).arg(trial.data()), CREATE)?;
        Ok(trial)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The answer to `question`, of a PostgreSQL with these arguments.
    fn ask(
        &self,
        question: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<String, InstanceError> {
        let data = self.data();
        let (input, mut asks) = std::io::pipe().map_err(at(&data))?;
        asks.write_all(question.as_bytes()).map_err(at(&data))?;
        drop(asks);
        let mut command = self.account.command(&self.installation.program("postgres"));
        command
            .args(["--single", "-c", "exit_on_error=on", "-D"])
            .arg(&data)
            .args(arguments)
            .arg("template1");
        run_with("postgres --single", &mut command, input.into(), ANSWER)
    }

    /// The first mistake in these lines.
    fn mistake(&self, rules: &[String], map: &[String]) -> Result<Option<String>, InstanceError> {
        let data = self.data();
        let (below, owner) = (Below::open(&data).map_err(at(&data))?, self.account.owner());
        let files = [("hba", RULES, rules, MISTAKES), ("ident", MAP, map, MISTAKES_OF_MAP)];
        for (key, file, lines, question) in files {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            below.replace(Path::new(file), text.as_bytes(), owner).map_err(at(&data.join(file)))?;
            let [begin, end] = MARKS;
            let question =
                format!("SELECT '{begin}' || line_number || ' ' || error || '{end}' FROM ({question}) m\n");
            let answer = self.ask(&question, [])?;
            let said = answer.split_once(begin).and_then(|(_, said)| Some(said.split_once(end)?.0));
            let Some((number, error)) = said.and_then(|said| said.split_once(' ')) else { continue };
            let number = number.parse::<usize>().unwrap_or_default();
            let line = number.checked_sub(1).and_then(|before| lines.get(before)).map_or("", String::as_str);
            return Ok(Some(format!("`{key}`: {line:?}: {error}")));
        }
        Ok(None)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!("{}: it stays, since it cannot be removed: {e}", self.directory.display());
        }
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

    #[test]
    fn postgresql_says_whether_it_starts_with_a_setting() {
        let (Ok(installation), Ok(account)) = (Installation::find(None), Account::resolve(None)) else {
            return;
        };
        let said = |name: &str, value: &str| {
            installation.check_start(&account, &BTreeMap::from([(name.to_owned(), value.to_owned())]))
        };
        assert_eq!(said("max_connections", "50"), Ok(()));
        let wrong = [
            ("shared_preload_libraries", "no_such_library", "could not access file \"no_such_library\""),
            ("shared_buffers", "1000TB", "invalid value"),
            ("max_connections", "many", "invalid value for parameter \"max_connections\""),
        ];
        for (name, value, words) in wrong {
            let Err(TrialError::Mistake(why)) = said(name, value) else { panic!("{name} is taken") };
            assert!(why.contains(words), "{why}");
        }
    }
}
