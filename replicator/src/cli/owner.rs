//! As root, a command works as the account that the data directory belongs to: what it makes there is that
//! account's, whose daemons would refuse it otherwise.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User};
use postgres::instance::account::{SETPRIV, held, installed};

use super::args::SHARED;

/// Whose the data directory is: a user id and a group id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
}

/// Starts this program again as the account that `data` belongs to, where this process is root and that is
/// not; it has the rights then by which a daemon runs PostgreSQL as another account, and no others.
///
/// # Errors
/// When that cannot be done.
pub(super) fn become_owner(data: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let Some(owner) = owner_of(data).filter(|owner| Uid::effective().is_root() && owner.user != 0) else {
        return Ok(());
    };
    let held = held();
    if !["setuid", "setgid"].iter().all(|needed| held.contains(needed)) {
        // Root of a container from which that was taken.
        return Ok(());
    }
    let setpriv = installed(SETPRIV).ok_or_else(|| {
        format!(
            "{}: it belongs to the user id {}, as which this is to be run, and {SETPRIV} is not installed (Debian: util-linux)",
            data.display(),
            owner.user
        )
    })?;
    let known = User::from_uid(Uid::from_raw(owner.user))?;
    let words = words(owner, known.as_ref().map(|user| user.gid), &held);
    let mut again = Command::new(setpriv);
    again.args(words).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    // It returns only when that cannot be done.
    Err(format!("{SETPRIV}: {}", again.exec()).into())
}

/// Whose `data` is; of one that is not there yet, where it is below the place that all share on a host,
/// whose that is.
fn owner_of(data: &Path) -> Option<Owner> {
    let shared = Path::new(SHARED);
    let looked = std::fs::metadata(data).or_else(|e| match data.starts_with(shared) {
        true => std::fs::metadata(shared),
        false => Err(e),
    });
    looked.ok().map(|found| Owner { user: found.uid(), group: found.gid() })
}

/// What `setpriv` is told: the account with its groups, where it has a name, and of what root may do only
/// the `held` rights.
fn words(owner: Owner, group: Option<Gid>, held: &[&str]) -> Vec<OsString> {
    let list: Vec<String> = held.iter().map(|name| format!("+{name}")).collect();
    let (inheritable, ambient) = (list.join(","), list.join(","));
    let groups = if group.is_some() { "--init-groups" } else { "--clear-groups" };
    [
        format!("--reuid={}", owner.user),
        format!("--regid={}", group.map_or(owner.group, Gid::as_raw)),
        groups.into(),
        format!("--inh-caps=-all,{inheritable}"),
        format!("--ambient-caps=-all,{ambient}"),
    ]
    .into_iter()
    .map(Into::into)
    .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn of_what_root_may_do_only_what_is_needed_is_kept() {
        let owner = Owner { user: 997, group: 996 };
        let told =
            |group, held: &[&str]| words(owner, group, held).join(OsStr::new(" ")).into_string().unwrap();
        assert_eq!(
            told(Some(Gid::from_raw(995)), &["setgid", "setuid"]),
            "--reuid=997 --regid=995 --init-groups --inh-caps=-all,+setgid,+setuid --ambient-caps=-all,+setgid,+setuid"
        );
        assert!(told(None, &["setuid"]).starts_with("--reuid=997 --regid=996 --clear-groups "));
    }

    #[test]
    fn a_directory_that_is_not_there_is_nobodys_but_below_the_shared_place() {
        let there = tempfile::tempdir().unwrap();
        assert_eq!(owner_of(there.path()).map(|owner| owner.user), Some(Uid::effective().as_raw()));
        assert_eq!(owner_of(&there.path().join("none")), None);
        assert_eq!(owner_of(&Path::new(SHARED).join("none-of-this-name")), owner_of(Path::new(SHARED)));
    }
}
