//! Where PostgreSQL's programs are, and which version they are of.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use runtime::private::{self, DIRECTORY_MODE};

use crate::below::Below;
use crate::environment::clean_environment;
use crate::major::Major;

/// What servers' programs said of themselves, by the file that was asked and the question.
static SAID: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// The variable by which a process that this one becomes is told that: to ask takes a while.
const SAID_BEFORE: &str = "REPLICATOR_PROGRAMS_SAID";

/// A PostgreSQL on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The directory of its programs.
    pub bin_dir: PathBuf,
    /// Its major version.
    pub major: Major,
    /// Its version as it says it: `15.18`.
    pub version: String,
}

/// Why there is no PostgreSQL to run.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// None was found.
    #[error(
        "no PostgreSQL {} or newer was found; on Debian: apt-get install postgresql. Or say where it is: `bin_dir` in regions.toml",
        Major::MIN
    )]
    NotFound,
    /// The one named in `regions.toml` does not run.
    #[error("{bin_dir}/postgres does not say its version: {what}")]
    Unusable {
        /// The directory.
        bin_dir: String,
        /// What happened.
        what: String,
    },
    /// A minor release that loses commits.
    #[error(
        "{bin_dir} has PostgreSQL {version}, in which commits right after a start do not wait for the region's volume; {needed} or \
         newer is needed"
    )]
    MinorTooOld {
        /// The directory.
        bin_dir: String,
        /// Its version.
        version: String,
        /// The first release without the fault.
        needed: String,
    },
    /// The data need another major version.
    #[error(
        "{data_dir} was made by PostgreSQL {major}, and only {found} is here: a region's data go on only with the major version that \
         made them. Install PostgreSQL {major}, or name its directory as `bin_dir` in regions.toml"
    )]
    OtherMajor {
        /// The data directory.
        data_dir: String,
        /// The major version that made it.
        major: Major,
        /// The versions that were found.
        found: String,
    },
    /// Too old.
    #[error("{bin_dir} has PostgreSQL {version}; {} or newer is needed", Major::MIN)]
    TooOld {
        /// The directory.
        bin_dir: String,
        /// Its version.
        version: String,
    },
}

/// The variable, and its value, by which the process that this one becomes knows what programs said to it.
#[must_use]
pub fn said_so_far() -> (&'static str, String) {
    let said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    (SAID_BEFORE, said.iter().map(|(asked, answer)| format!("{asked}\t{answer}\n")).collect())
}

/// What `program` said to `question`, or says now by `ask`. Another file in its place is asked anew.
fn said<E>(program: &Path, question: &str, ask: impl FnOnce() -> Result<String, E>) -> Result<String, E> {
    let asked = std::fs::metadata(program).map(|file| {
        let stamp = (file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec());
        format!("{} {stamp:?} {question}", program.display())
    });
    // Whoever runs it says what is wrong with it.
    let Ok(asked) = asked else { return ask() };
    let said = || SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let known = said().get(&asked).cloned().or_else(|| {
        let before = std::env::var(SAID_BEFORE).ok()?;
        let found = before.lines().find_map(|line| line.strip_prefix(&asked)?.strip_prefix('\t'));
        found.map(str::to_owned)
    });
    let answer = known.map_or_else(ask, Ok)?;
    said().insert(asked, answer.clone());
    Ok(answer)
}

impl Installation {
    /// The PostgreSQL in `bin_dir`, or the newest one found where packages put it and on the PATH.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub fn find(bin_dir: Option<&Path>) -> Result<Installation, InstallationError> {
        Installations::find(bin_dir).map(|found| found.newest().clone())
    }

    /// The PostgreSQL that runs the data in `data_dir`; see [`Installations::for_data`].
    ///
    /// # Errors
    /// When that major version is not there.
    pub fn for_data(bin_dir: Option<&Path>, data_dir: &Path) -> Result<Installation, InstallationError> {
        Installations::find(bin_dir)?.for_data(data_dir).cloned()
    }

    /// Every usable PostgreSQL where packages put it and on the PATH.
    fn candidates() -> Vec<Installation> {
        // Debian's and PGDG's packages for it; PGDG's for others.
        let below = |base: &str, begins: &'static str| {
            let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
            let fits = entries.filter(move |entry| entry.file_name().to_string_lossy().starts_with(begins));
            fits.map(|entry| entry.path().join("bin"))
        };
        let packaged = below("/usr/lib/postgresql", "").chain(below("/usr", "pgsql-"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = packaged.chain(std::env::split_paths(&path));
        candidates
            .filter(|d| d.join("postgres").is_file())
            .filter_map(|d| Installation::at(&real(&d)).ok())
            .collect()
    }

    fn at(bin_dir: &Path) -> Result<Installation, InstallationError> {
        let shown = bin_dir.display().to_string();
        let unusable = |what: String| InstallationError::Unusable { bin_dir: shown.clone(), what };
        let program = bin_dir.join("postgres");
        let text = said(&program, "--version", || {
            let mut command = Command::new(&program);
            clean_environment(&mut command);
            let output = command.arg("--version").output().map_err(|e| unusable(e.to_string()))?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        })?;
        let (version, major) = parse_version(&text).ok_or_else(|| unusable(text.clone()))?;
        if major < Major::MIN {
            return Err(InstallationError::TooOld { bin_dir: shown, version });
        }
        let needed = major.least_minor();
        if minor(&version) < needed {
            let needed = format!("{major}.{needed}");
            return Err(InstallationError::MinorTooOld { bin_dir: shown, version, needed });
        }
        Ok(Installation { bin_dir: bin_dir.to_owned(), major, version })
    }

    /// Whether its server can encrypt: not every build can.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        let program = self.program("postgres");
        // A build without encryption knows no ciphers. One that could not be asked is asked again, and taken
        // for one that encrypts: nobody is let in without it because a process could not be started.
        let ciphers = said(&program, "ssl_ciphers", || {
            let mut command = Command::new(&program);
            clean_environment(&mut command);
            let described = command.arg("--describe-config").output().ok();
            let described = described.filter(|described| described.status.success()).ok_or(())?;
            let told = String::from_utf8_lossy(&described.stdout);
            let ciphers = told.lines().find_map(|line| line.strip_prefix("ssl_ciphers\t"));
            Ok::<_, ()>(ciphers.and_then(|line| line.split('\t').nth(3)).unwrap_or(NO_CIPHERS).to_owned())
        });
        ciphers.map_or(true, |ciphers| ciphers != NO_CIPHERS)
    }

    /// Has its server read `settings` as a configuration file, in a directory of their own that is removed
    /// again.
    ///
    /// # Errors
    /// What the server says of a name that it does not know, or of a value that it does not take.
    pub fn check_settings(&self, settings: &BTreeMap<String, String>) -> Result<(), String> {
        let mut lines = String::new();
        for (name, value) in settings {
            lines += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        let directory = trial_directory();
        let said = self.read_settings(&directory, &lines);
        let _ = std::fs::remove_dir_all(&directory);
        said
    }

    fn read_settings(&self, directory: &Path, lines: &str) -> Result<(), String> {
        let mut private = std::fs::DirBuilder::new();
        let written = private.mode(DIRECTORY_MODE).create(directory).and_then(|()| {
            private::create_new(&directory.join("postgresql.conf"))?.write_all(lines.as_bytes())
        });
        written.map_err(|e| format!("{}: {e}", directory.display()))?;
        // It reads its configuration, prints one setting, and ends.
        let mut command = Command::new(self.program("postgres"));
        clean_environment(&mut command);
        let asked = command
            .args(["-C", "port", "-D"])
            .arg(directory)
            .env("LC_ALL", "C")
            .output()
            .map_err(|e| e.to_string())?;
        if asked.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&asked.stderr).into_owned();
        let file = format!(" in file \"{}\"", directory.join("postgresql.conf").display());
        // What it says of the file as a whole, and of one that is not there, is about this directory.
        let about_files = ["contains errors", "skipping missing"];
        let lines = text.lines().filter(|line| !about_files.iter().any(|words| line.contains(words)));
        let words: Vec<String> = lines
            .map(|line| {
                let words =
                    line.split_once(": ").map_or(line, |(_, rest)| rest.trim_start()).replace(&file, "");
                // Lines are numbered in this file, which nobody sees.
                let number = words.rsplit_once(" line ").filter(|(_, number)| number.parse::<u32>().is_ok());
                number.map(|(words, _)| words.to_owned()).unwrap_or(words)
            })
            .collect();
        Err(words.join("; "))
    }

    /// The path of one of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// What a server says that cannot encrypt.
const NO_CIPHERS: &str = "none";

/// Where something is tried, a directory that is not there yet: nobody else can know its name.
pub(crate) fn trial_directory() -> PathBuf {
    let place = std::env::temp_dir();
    drop_old_trials(&place);
    place.join(format!("{TRIAL}{:016x}", runtime::random::draw::<u64>()))
}

/// What the names of directories for trials begin with.
const TRIAL: &str = "replicator-check-";

/// A trial is over long before this. An older one was killed.
const TRIAL_MAX: Duration = Duration::from_secs(600);

/// Removes what trials left that were killed. What is somebody else's cannot be removed, and stays.
fn drop_old_trials(place: &Path) {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(TRIAL.as_bytes())) {
        let modified = entry.metadata().and_then(|found| found.modified()).ok();
        let age = modified.and_then(|at| at.elapsed().ok()).unwrap_or_default();
        if age > TRIAL_MAX && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The PostgreSQLs that a region can run: at least one. Which of them does, the data decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installations {
    newest: Installation,
    /// Of other majors.
    older: Vec<Installation>,
}

impl Installations {
    /// The PostgreSQL in `bin_dir` alone; or the newest of each major that is found where packages put it and
    /// on the PATH.
    ///
    /// # Errors
    /// When there is none, or the one that is named is too old.
    pub fn find(bin_dir: Option<&Path>) -> Result<Installations, InstallationError> {
        let mut found = match bin_dir {
            Some(bin_dir) => vec![Installation::at(bin_dir)?],
            None => Installation::candidates(),
        };
        found.sort_by_key(|i| std::cmp::Reverse((i.major, minor(&i.version))));
        found.dedup_by_key(|i| i.major);
        let mut found = found.into_iter();
        let newest = found.next().ok_or(InstallationError::NotFound)?;
        Ok(Installations { newest, older: found.collect() })
    }

    /// Each of them, the newest first.
    pub fn all(&self) -> impl Iterator<Item = &Installation> {
        std::iter::once(&self.newest).chain(&self.older)
    }

    /// The one that makes new data.
    #[must_use]
    pub fn newest(&self) -> &Installation {
        &self.newest
    }

    /// The one of `major`.
    #[must_use]
    pub fn of(&self, major: Major) -> Option<&Installation> {
        self.all().find(|i| i.major == major)
    }

    /// Why data of `major` cannot be run by any of these, and what to do; none when they can, or `major` is
    /// 0, which nobody knows.
    #[must_use]
    pub fn lacks(&self, major: Major) -> Option<String> {
        (major.0 > 0 && self.of(major).is_none()).then(|| {
            format!(
                "the primary's data are of PostgreSQL {major}, and this region has only {self}: data go on only with the major version that \
                 made them. Install PostgreSQL {major} there, or name its directory as `bin_dir` of the region in regions.toml, and start \
                 its daemon again; the seed then comes by itself"
            )
        })
    }

    /// The one that runs the data in `data_dir`: of the major version that made them, whatever else is
    /// installed. The newest, where there are none yet.
    ///
    /// # Errors
    /// When that major version is not there.
    pub fn for_data(&self, data_dir: &Path) -> Result<&Installation, InstallationError> {
        let Some(major) = major_of_data(data_dir) else { return Ok(&self.newest) };
        self.of(major).ok_or_else(|| InstallationError::OtherMajor {
            data_dir: data_dir.display().to_string(),
            major,
            found: self.to_string(),
        })
    }
}

impl From<Installation> for Installations {
    fn from(only: Installation) -> Installations {
        Installations { newest: only, older: Vec::new() }
    }
}

impl std::fmt::Display for Installations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.all().map(|i| i.version.as_str()).collect::<Vec<_>>().join(", "))
    }
}

/// The major version that made a data directory; none where there are no data.
#[must_use]
pub fn major_of_data(data_dir: &Path) -> Option<Major> {
    major_in(&Below::open(data_dir).ok()?)
}

/// The same of one that is open.
pub(crate) fn major_in(data: &Below) -> Option<Major> {
    Major::of(&data.read_to_string("PG_VERSION").ok()?)
}

/// The directory where the program really is: a PATH may hold a link to it without its siblings.
fn real(bin_dir: &Path) -> PathBuf {
    let program = bin_dir.join("postgres").canonicalize().ok();
    program.and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_else(|| bin_dir.to_owned())
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → `15.18`, 15.
fn parse_version(text: &str) -> Option<(String, Major)> {
    let version = text.split_whitespace().nth(2)?;
    Some((version.to_owned(), Major::of(version)?))
}

/// The minor release of `15.18`; none of a `18beta1`, which counts as the newest.
fn minor(version: &str) -> u32 {
    version.split_once('.').map_or(u32::MAX, |(_, minor)| {
        let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(u32::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_setting_that_postgresql_does_not_take_is_told_in_its_words() {
        let Ok(installation) = Installation::find(None) else { return };
        let said = |name: &str, value: &str| {
            installation.check_settings(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
        };
        assert_eq!(said("work_mem", "1MB"), Ok(()));
        assert_eq!(said("plugin.setting", "it's"), Ok(()));
        let unknown = said("shared_bufers", "1GB").unwrap_err();
        assert_eq!(unknown, "unrecognized configuration parameter \"shared_bufers\"");
        assert!(said("work_mem", "plenty").unwrap_err().contains("work_mem"));
    }

    #[test]
    fn versions_are_read_and_old_ones_refused() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(("18beta1".into(), Major(18))));
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 13.4'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Installation::find(Some(directory.path())).unwrap_err();
        assert!(error.to_string().contains("PostgreSQL 13.4; 15 or newer"), "{error}");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 16.8 (Debian)'\n").unwrap();
        let error = Installation::find(Some(directory.path())).unwrap_err();
        assert!(error.to_string().contains("16.9 or newer"), "{error}");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 17.5'\n").unwrap();
        Installation::find(Some(directory.path())).unwrap();
    }

    #[test]
    fn of_several_majors_the_data_take_theirs_and_new_data_the_newest() {
        let of = |version: &str| Installation {
            bin_dir: PathBuf::from("/bin"),
            major: Major::of(version).unwrap(),
            version: version.into(),
        };
        let both = Installations { newest: of("17.10"), older: vec![of("15.18")] };
        let data = tempfile::tempdir().unwrap();
        assert_eq!(both.for_data(data.path()).unwrap().version, "17.10");
        for (major, version) in [("15", Some("15.18")), ("17\n", Some("17.10")), ("16", None)] {
            std::fs::write(data.path().join("PG_VERSION"), major).unwrap();
            assert_eq!(both.for_data(data.path()).ok().map(|i| i.version.as_str()), version, "{major}");
        }
        // What a primary's seed needs; an older daemon does not say it.
        for (major, lacks) in [(0, false), (15, false), (16, true), (17, false)] {
            assert_eq!(both.lacks(Major(major)).is_some(), lacks, "{major}");
        }
        let why = both.lacks(Major(16)).unwrap();
        assert!(why.contains("of PostgreSQL 16, and this region has only 17.10, 15.18"), "{why}");
        assert!(why.contains("Install PostgreSQL 16 there"), "{why}");
    }

    #[test]
    fn the_data_decide_which_major_runs_them() {
        let (data, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = programs.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 99.1'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let for_data = || Installation::for_data(Some(programs.path()), data.path());
        assert_eq!(for_data().unwrap().major, Major(99), "no data yet");
        std::fs::write(data.path().join("PG_VERSION"), "99\n").unwrap();
        assert_eq!(for_data().unwrap().major, Major(99));
        std::fs::write(data.path().join("PG_VERSION"), "98\n").unwrap();
        let error = for_data().unwrap_err().to_string();
        assert!(error.contains("made by PostgreSQL 98, and only 99.1 is here"), "{error}");
        // The newest one that is installed is not taken for data of another.
        let error = Installation::for_data(None, data.path()).unwrap_err().to_string();
        assert!(error.contains("Install PostgreSQL 98"), "{error}");
    }
}
