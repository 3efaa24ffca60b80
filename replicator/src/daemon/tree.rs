//! A daemon's directory is its account's alone: seen before anything in it is used. One that others may read
//! or write is refused, as PostgreSQL refuses such a data directory.
//!
//! PostgreSQL's account must pass through a region's directory where the daemon is root: so everything of the
//! daemon's right below it is looked at. A zone may be a link or a mount point: that place is
//! looked at as well.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use volume::copy::directory_of;
use volume::quorum::CopyId;

use crate::layout::RegionLayout;

/// What others may not do with a directory that they may pass through.
const READ_OR_WRITE: u32 = 0o066;

/// Anything at all.
const ANYTHING: u32 = 0o077;

/// Write.
const WRITE: u32 = 0o022;

/// What the names below a region's directory begin with that are the daemon's. Others are PostgreSQL's, which
/// it or we look at when they are opened, or an operator's: a copy of `pgdata`, say.
const OURS: [&str; 15] = [
    "aside",
    "audit.",
    "az-",
    "configuration.seen",
    "daemon.",
    "drill",
    "events.",
    "identity",
    "load",
    "lost",
    "page.",
    "redo.",
    "region.json",
    "superuser.",
    "volume",
];

/// The same below a node's directory.
const OURS_OF_NODE: [&str; 11] = [
    "aside",
    "audit.",
    "configuration.seen",
    "drill",
    "events.",
    "identity",
    "load",
    "lost",
    "node.",
    "page.",
    "superuser.",
];

/// What a file system has at its root.
const OF_FILE_SYSTEM: &str = "lost+found";

/// Why a daemon does not start on a directory.
#[derive(Debug, thiserror::Error)]
pub enum ExposedError {
    /// Others may do there what only the daemon's account may.
    #[error(
        "{path}: other accounts may use it, its mode is {mode:04o}; the daemon does not start on it. To mend it: {mend}"
    )]
    Open {
        /// The first such file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The command that mends all that was found.
        mend: String,
    },
    /// It is another account's.
    #[error(
        "{path}: it belongs to the user id {owner}, and this process runs as {own}; the daemon does not start on it. \
         Run it as that user, or give it the file: chown -h {own} {quoted}"
    )]
    Foreign {
        /// The first such file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Whose it should be.
        own: u32,
        /// The path as a shell takes it.
        quoted: String,
    },
    /// It cannot be looked at.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Something in or above a daemon's directory, and what others may not do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    owner: u32,
    mode: u32,
    denied: u32,
    sticky: bool,
}

/// Sees that other accounts can neither read nor write what is a daemon's alone.
///
/// # Errors
/// When they can, naming the first place and the command that mends all, or it cannot be seen.
pub(super) fn check(places: &RegionLayout) -> Result<(), ExposedError> {
    judge(&look(places)?, Uid::effective().as_raw())
}

fn look(places: &RegionLayout) -> Result<Vec<Found>, ExposedError> {
    let region = places.directory();
    let mut found = Vec::new();
    // The data directory, and `regions` in it: who may write there can put another directory in the place of
    // this one.
    for above in region.ancestors().skip(1).take(2) {
        found.extend(seen(above, WRITE, true)?);
    }
    look_below(region, &OURS, &mut found)?;
    // A node's PostgreSQL passes through these.
    let nodes = region.join("nodes");
    found.extend(seen(&nodes, READ_OR_WRITE, false)?);
    for node in names(&nodes)?.into_iter().filter(|node| node != OF_FILE_SYSTEM) {
        look_below(&nodes.join(node), &OURS_OF_NODE, &mut found)?;
    }
    // Where zones are links, these lie elsewhere.
    let volume = places.volume().canonicalize().unwrap_or_else(|_| places.volume());
    for copy in CopyId::all() {
        let directory = directory_of(&places.volume(), copy);
        for place in directory.parent().into_iter().chain([directory.as_path()]) {
            let Ok(leads_to) = place.canonicalize() else { continue };
            if !leads_to.starts_with(&volume) && !found.iter().any(|found| found.path == leads_to) {
                found.extend(seen(&leads_to, ANYTHING, true)?);
            }
        }
    }
    Ok(found)
}

/// Looks at `directory`, through which PostgreSQL's account may pass, and at what begins with `ours` in it.
fn look_below(directory: &Path, ours: &[&str], found: &mut Vec<Found>) -> Result<(), ExposedError> {
    let Some(itself) = seen(directory, READ_OR_WRITE, true)? else { return Ok(()) };
    // Nobody gets at what is below a directory that nobody else may enter.
    let is_closed = itself.mode & ANYTHING == 0;
    found.push(itself);
    if is_closed {
        return Ok(());
    }
    for name in names(directory)? {
        let is_ours = ours.iter().any(|begin| name.as_encoded_bytes().starts_with(begin.as_bytes()));
        // A clone's PostgreSQL passes through a rehearsal's.
        let denied = if name == "drill" { READ_OR_WRITE } else { ANYTHING };
        if is_ours && name != OF_FILE_SYSTEM {
            found.extend(seen(&directory.join(&name), denied, false)?);
        }
    }
    Ok(())
}

/// The names in a directory; none where it is not there.
fn names(directory: &Path) -> Result<Vec<OsString>, ExposedError> {
    let names = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    match names {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(|source| ExposedError::Io { path: directory.to_owned(), source }),
    }
}

/// What is at `path`, or, with `follow`, where it leads to; none where nothing is.
fn seen(path: &Path, denied: u32, follow: bool) -> Result<Option<Found>, ExposedError> {
    let metadata = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    match metadata {
        // A link has no mode of its own.
        Ok(metadata) if metadata.is_symlink() => Ok(None),
        Ok(metadata) => Ok(Some(Found {
            path: path.to_owned(),
            owner: metadata.uid(),
            mode: metadata.mode() & 0o777,
            sticky: metadata.mode() & 0o1000 != 0,
            denied,
        })),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ExposedError::Io { path: path.to_owned(), source }),
    }
}

fn judge(found: &[Found], own: u32) -> Result<(), ExposedError> {
    let foreign = |found: &&Found| match found.denied {
        // Above it others may own what they cannot be kept from: root, and root alone.
        WRITE => found.owner != own && found.owner != 0,
        _ => found.owner != own,
    };
    if let Some(Found { path, owner, .. }) = found.iter().find(foreign) {
        let (path, owner, quoted) = (path.clone(), *owner, quoted(path));
        return Err(ExposedError::Foreign { path, owner, own, quoted });
    }
    let is_open = |found: &&Found| found.mode & found.denied != 0 && !(found.denied == WRITE && found.sticky);
    let open: Vec<&Found> = found.iter().filter(is_open).collect();
    let Some(first) = open.first() else { return Ok(()) };
    let mut commands = Vec::new();
    for (denied, command) in
        [(WRITE, "chmod go-w"), (READ_OR_WRITE, "chmod go-rw"), (ANYTHING, "chmod -R go=")]
    {
        let of_it = open.iter().filter(|found| found.denied == denied);
        let paths: Vec<String> = of_it.map(|found| quoted(&found.path)).collect();
        if !paths.is_empty() {
            commands.push(format!("{command} {}", paths.join(" ")));
        }
    }
    Err(ExposedError::Open { path: first.path.clone(), mode: first.mode, mend: commands.join(" && ") })
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, make_passable};
    use std::os::unix::fs::PermissionsExt;

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A region's directory in the state in which a daemon makes it, with a zone elsewhere.
    fn tree(parent: &Path) -> RegionLayout {
        let places = Layout::new(parent.join("data")).region(&"r".parse().unwrap());
        make_passable(places.directory()).unwrap();
        let elsewhere = parent.join("elsewhere");
        for directory in
            [places.volume(), places.volume().join("az-a/a1"), places.lost(), elsewhere.join("c1")]
        {
            runtime::private::make_directory(&directory).unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, places.volume().join("az-c")).unwrap();
        runtime::private::create_new(&places.state()).unwrap();
        for of_postgres in [places.pgdata(), places.rewind(), places.directory().join("old")] {
            std::fs::create_dir(&of_postgres).unwrap();
            set(&of_postgres, 0o777);
        }
        places
    }

    #[test]
    fn what_others_may_use_is_refused_with_the_command_that_mends_it() {
        let parent = tempfile::tempdir().unwrap();
        let places = tree(parent.path());
        check(&places).unwrap();
        let [region, volume, state] = [places.directory().to_owned(), places.volume(), places.state()];
        let (data, elsewhere) = (parent.path().join("data"), parent.path().join("elsewhere"));
        for (path, mode, mend) in [
            (&data, 0o775, "chmod go-w"),
            (&region, 0o755, "chmod go-rw"),
            (&region, 0o731, "chmod go-rw"),
            (&volume, 0o755, "chmod -R go="),
            (&volume, 0o710, "chmod -R go="),
            (&state, 0o604, "chmod -R go="),
            (&elsewhere, 0o701, "chmod -R go="),
        ] {
            let before = std::fs::metadata(path).unwrap().permissions();
            set(path, mode);
            let error = check(&places).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains(&format!("{mode:04o}")) && error.contains(mend), "{error}");
            // And it does mend it.
            let (_, command) = error.split_once("To mend it: ").unwrap();
            let mended = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
            assert!(mended.success(), "{command}");
            check(&places).unwrap();
            std::fs::set_permissions(path, before).unwrap();
        }
        // All that is wrong is told at once.
        set(&volume, 0o755);
        set(&state, 0o644);
        let error = check(&places).unwrap_err().to_string();
        assert!(error.contains("region.json") && error.contains("volume"), "{error}");
        // Nobody gets there.
        set(&region, 0o700);
        set(&elsewhere, 0o700);
        set(&volume, 0o700);
        check(&places).unwrap();
    }

    #[test]
    fn what_is_another_accounts_is_refused() {
        let found = |path: &str, owner, denied| Found {
            path: path.into(),
            owner,
            mode: 0o700,
            denied,
            sticky: false,
        };
        for (owner, denied, good) in [
            (7, ANYTHING, true),
            (0, ANYTHING, false),
            (8, READ_OR_WRITE, false),
            (0, WRITE, true),
            (8, WRITE, false),
        ] {
            let judged = judge(&[found("/a b", owner, denied)], 7);
            assert_eq!(judged.is_ok(), good, "{owner} {denied:o}");
            let said = judged.map_or_else(|e| e.to_string(), |()| String::new());
            assert!(good || said.contains("chown -h 7 '/a b'"), "{said}");
        }
    }
}
