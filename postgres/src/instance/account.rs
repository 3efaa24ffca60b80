//! The account PostgreSQL runs as. PostgreSQL refuses root: as root, its processes run as an unprivileged
//! account; as an ordinary user, as oneself.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};

use crate::below::{self, Below, Owner};
use crate::environment::clean_environment;

/// Who runs PostgreSQL, and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's name.
    pub name: String,
    /// Its user id.
    pub user_id: u32,
    /// Its group id.
    pub group_id: u32,
    /// The name of the user that this process runs as.
    pub own_name: String,
    /// Whether this process must become the account to run PostgreSQL.
    switch: bool,
    /// Its home directory.
    home: PathBuf,
    /// What it runs gives way to others.
    gentle: bool,
}

/// Why there is no account to run PostgreSQL as.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No such user.
    #[error(
        "there is no user '{0}' to run PostgreSQL as: PostgreSQL refuses root. Name one that exists as `os_user` in regions.toml"
    )]
    Unknown(String),
    /// This process cannot become another user.
    #[error(
        "only root can run PostgreSQL as '{0}'; leave `os_user` out of regions.toml to run it as yourself"
    )]
    NotRoot(String),
    /// The account cannot reach its files.
    #[error(
        "user '{account}', who runs PostgreSQL, may not enter {directory}; choose another place with --data, or `chmod o+x` it"
    )]
    Unreachable {
        /// The account.
        account: String,
        /// The directory it may not enter.
        directory: String,
    },
    /// The system does not say who we are.
    #[error("looking up users: {0}")]
    System(#[from] nix::Error),
    /// The account cannot run PostgreSQL's programs.
    #[error(
        "user '{account}', who runs PostgreSQL, may not run {program}: it and the directories above it are to be readable by everybody, or \
         another PostgreSQL is named as `bin_dir` in regions.toml"
    )]
    Programs {
        /// The account.
        account: String,
        /// The program.
        program: String,
    },
    /// Files cannot be given to the account.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Programs that run another one so that it gives way, the better one first: the scheduler's idle class
/// yields at once, a low priority mostly.
const GENTLY: [(&str, [&str; 2]); 2] = [("chrt", ["-i", "0"]), ("nice", ["-n", "19"])];

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

impl Account {
    /// The account to use: `wanted`, or `postgres` as root and oneself otherwise.
    ///
    /// # Errors
    /// When there is no such user, or only root could become it.
    pub fn resolve(wanted: Option<&str>) -> Result<Account, AccountError> {
        let own = User::from_uid(Uid::effective())?
            .ok_or_else(|| AccountError::Unknown(Uid::effective().to_string()))?;
        let name = match wanted {
            Some(name) => name,
            None if own.uid.is_root() => "postgres",
            None => &own.name,
        };
        let user = User::from_name(name)?.ok_or_else(|| AccountError::Unknown(name.to_owned()))?;
        if user.uid.is_root() {
            return Err(AccountError::Unknown(name.to_owned()));
        }
        if user.uid != own.uid && !own.uid.is_root() {
            return Err(AccountError::NotRoot(name.to_owned()));
        }
        Ok(Account {
            name: user.name,
            user_id: user.uid.as_raw(),
            group_id: user.gid.as_raw(),
            switch: user.uid != own.uid,
            home: user.dir,
            gentle: false,
            own_name: own.name,
        })
    }

    /// The same account, whose commands give way to all others on the machine.
    #[must_use]
    pub fn gently(mut self) -> Account {
        self.gentle = true;
        self
    }

    /// A command that runs as the account, in a process group of its own: a terminal's Ctrl-C is for us, not
    /// for it.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = if self.gentle {
            let (gently, arguments) =
                GENTLY.into_iter().find(|(name, _)| is_installed(name)).unwrap_or(GENTLY[1]);
            let mut command = Command::new(gently);
            command.args(arguments).arg(program);
            command
        } else {
            Command::new(program)
        };
        clean_environment(&mut command);
        command.env("LC_ALL", "C").env("HOME", &self.home).current_dir("/").process_group(0);
        if self.switch {
            command.uid(self.user_id).gid(self.group_id);
        }
        command
    }

    /// The account, for what is made for it.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { user_id: self.user_id, group_id: self.group_id, given: self.switch }
    }

    /// Gives an open file or directory to the account.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn own(&self, opened: impl AsFd) -> std::io::Result<()> {
        below::give(opened, self.owner())
    }

    /// Makes `directory` with mode 0700, for the account alone. The directory above must be there.
    ///
    /// # Errors
    /// When it cannot be made, is a link, or is somebody else's.
    pub fn make_private(&self, directory: &Path) -> Result<(), AccountError> {
        let io = |source| AccountError::Io { path: directory.display().to_string(), source };
        Below::make(directory, self.owner()).map(drop).map_err(io)
    }

    /// Checks that the account may run `program`.
    ///
    /// # Errors
    /// When it may not.
    pub fn check_programs(&self, program: &Path) -> Result<(), AccountError> {
        let runs = || self.command(Path::new("/usr/bin/test")).arg("-x").arg(program).status();
        if !self.switch || runs().is_ok_and(|status| status.success()) {
            return Ok(());
        }
        Err(AccountError::Programs { account: self.name.clone(), program: program.display().to_string() })
    }

    /// Checks that the account may enter every directory above `path`.
    ///
    /// # Errors
    /// Naming the first it may not.
    pub fn check_reach(&self, path: &Path) -> Result<(), AccountError> {
        if !self.switch {
            return Ok(());
        }
        for directory in path.ancestors().skip(1).filter(|d| d.exists()) {
            let enter = self.command(Path::new("/usr/bin/test")).arg("-x").arg(directory).status();
            if !enter.is_ok_and(|status| status.success()) {
                let (account, directory) = (self.name.clone(), directory.display().to_string());
                return Err(AccountError::Unreachable { account, directory });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_never_the_account() {
        assert!(!Account::resolve(None).unwrap().name.is_empty());
        assert!(matches!(Account::resolve(Some("root")), Err(AccountError::Unknown(_))));
        assert!(matches!(Account::resolve(Some("no-such-user")), Err(AccountError::Unknown(_))));
    }
}
