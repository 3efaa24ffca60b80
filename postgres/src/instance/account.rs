//! The account PostgreSQL runs as. PostgreSQL refuses root: as root, its processes run as an unprivileged
//! account; as an ordinary user, as oneself; as a user that has the capabilities of [`HELD`], as another
//! account, so that a superuser of the database, whose programs run as that one, reads nothing of ours.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid, User, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, capabilities};

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
    /// How a program comes to run as the account.
    switch: Switch,
    /// Its home directory.
    home: PathBuf,
    /// What it runs gives way to others.
    gentle: bool,
}

/// How a program comes to run as the account.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Switch {
    /// It is our own.
    None,
    /// We are root: the system takes root's rights away with its user id.
    Root,
    /// We have [`HELD`]. Capabilities, and the groups of ours, stay with a process that becomes another user
    /// without having been root: this program, `setpriv`, takes them away first.
    Program(PathBuf),
}

/// What a process that is not root needs to run PostgreSQL as another account and to look after its files,
/// with the names that systemd has for them.
pub const HELD: [(&str, CapabilitySet); 6] = [
    ("chown", CapabilitySet::CHOWN),
    ("dac_override", CapabilitySet::DAC_OVERRIDE),
    ("fowner", CapabilitySet::FOWNER),
    ("kill", CapabilitySet::KILL),
    ("setgid", CapabilitySet::SETGID),
    ("setuid", CapabilitySet::SETUID),
];

/// Those of [`HELD`] that this process has.
#[must_use]
pub fn held() -> Vec<&'static str> {
    // A kernel that does not tell gives none.
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    HELD.iter().filter(|(_, one)| effective.contains(*one)).map(|(name, _)| *name).collect()
}

/// The program that runs another one as another user, without what the first may.
pub const SETPRIV: &str = "setpriv";

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
        "only root can run PostgreSQL as '{0}', or a unit of systemd's that has the capabilities for it, as replicator@.service; leave \
         `os_user` out of regions.toml to run it as yourself"
    )]
    NotRoot(String),
    /// There is no program that becomes the account.
    #[error(
        "{SETPRIV} is not installed, by which PostgreSQL is run as '{0}'; on Debian: apt-get install util-linux"
    )]
    NoSetpriv(String),
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

/// Where a program is installed that is on the `PATH`.
#[must_use]
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

impl Account {
    /// The account to use: `wanted`, or `postgres` for whoever can become it, and oneself otherwise.
    ///
    /// # Errors
    /// When there is no such user, or this process could not become it.
    pub fn resolve(wanted: Option<&str>) -> Result<Account, AccountError> {
        let own = User::from_uid(Uid::effective())?
            .ok_or_else(|| AccountError::Unknown(Uid::effective().to_string()))?;
        let may_switch = own.uid.is_root() || held().len() == HELD.len();
        let name = match wanted {
            Some(name) => name,
            None if may_switch => "postgres",
            None => &own.name,
        };
        let user = User::from_name(name)?.ok_or_else(|| AccountError::Unknown(name.to_owned()))?;
        if user.uid.is_root() {
            return Err(AccountError::Unknown(name.to_owned()));
        }
        let switch = match (user.uid == own.uid, own.uid.is_root(), may_switch) {
            (true, ..) => Switch::None,
            (_, true, _) => Switch::Root,
            (_, _, false) => return Err(AccountError::NotRoot(name.to_owned())),
            _ => {
                let found = installed(SETPRIV).ok_or_else(|| AccountError::NoSetpriv(name.to_owned()))?;
                Switch::Program(found)
            }
        };
        Ok(Account {
            name: user.name,
            user_id: user.uid.as_raw(),
            group_id: user.gid.as_raw(),
            switch,
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
        let mut words: Vec<OsString> = Vec::new();
        if let Switch::Program(setpriv) = &self.switch {
            words.push(setpriv.into());
            words.push(format!("--reuid={}", self.user_id).into());
            words.push(format!("--regid={}", self.group_id).into());
            words.extend(WITHOUT_RIGHTS.map(Into::into));
        }
        if self.gentle {
            let (gently, arguments) =
                GENTLY.into_iter().find(|(name, _)| installed(name).is_some()).unwrap_or(GENTLY[1]);
            words.push(gently.into());
            words.extend(arguments.map(Into::into));
        }
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        clean_environment(&mut command);
        command.env("LC_ALL", "C").env("HOME", &self.home).current_dir("/").process_group(0);
        if self.switch == Switch::Root {
            command.uid(self.user_id).gid(self.group_id);
        }
        command
    }

    /// The user that may be superuser by the local socket besides the account and ourselves: root, who is
    /// everything on this machine, where we are not root and yet another account than PostgreSQL's.
    pub(crate) fn also_let_in(&self) -> Option<&'static str> {
        matches!(self.switch, Switch::Program(_)).then_some("root")
    }

    /// Does `work`, which may not wait, with the account's rights to files where ours do not reach: in what
    /// the system tells of a process only to its own account.
    pub(crate) fn seeing<T>(&self, work: impl FnOnce() -> T) -> T {
        let Switch::Program(_) = self.switch else { return work() };
        // The group as long as we may: both are asked for.
        let group = setfsgid(Gid::from_raw(self.group_id));
        let _back = Back(setfsuid(Uid::from_raw(self.user_id)), group);
        work()
    }

    /// The account, for what is made for it.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { user_id: self.user_id, group_id: self.group_id, given: self.switch != Switch::None }
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
        if self.switch == Switch::None || runs().is_ok_and(|status| status.success()) {
            return Ok(());
        }
        Err(AccountError::Programs { account: self.name.clone(), program: program.display().to_string() })
    }

    /// Checks that the account may enter every directory above `path`.
    ///
    /// # Errors
    /// Naming the first it may not.
    pub fn check_reach(&self, path: &Path) -> Result<(), AccountError> {
        if self.switch == Switch::None {
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

/// What `setpriv` takes away: our groups, and every capability.
const WITHOUT_RIGHTS: [&str; 3] = ["--clear-groups", "--inh-caps=-all", "--ambient-caps=-all"];

/// This thread's user and group ids for files are these again once it is dropped.
struct Back(Uid, Gid);

impl Drop for Back {
    fn drop(&mut self) {
        setfsuid(self.0);
        setfsgid(self.1);
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
