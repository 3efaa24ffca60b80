//! Where PostgreSQL's programs are, and which version they are of.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest PostgreSQL that works.
pub const MAJOR_MIN: u32 = 15;

/// A PostgreSQL on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The directory of its programs.
    pub bin_dir: PathBuf,
    /// Its major version.
    pub major: u32,
    /// Its version as it says it: `15.18`.
    pub version: String,
}

/// Why there is no PostgreSQL to run.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// None was found.
    #[error(
        "no PostgreSQL {MAJOR_MIN} or newer was found; on Debian: apt-get install postgresql. Or say where it is: `bin_dir` in regions.toml"
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
    /// Too old.
    #[error("{bin_dir} has PostgreSQL {version}; {MAJOR_MIN} or newer is needed")]
    TooOld {
        /// The directory.
        bin_dir: String,
        /// Its version.
        version: String,
    },
}

impl Installation {
    /// The PostgreSQL in `bin_dir`, or the newest one found where packages put it and on the PATH.
    ///
    /// # Errors
    /// When there is none, or it is too old.
    pub fn find(bin_dir: Option<&Path>) -> Result<Installation, InstallationError> {
        if let Some(bin_dir) = bin_dir {
            return Installation::at(bin_dir);
        }
        let packaged = ["/usr/lib/postgresql", "/usr/pgsql"].iter().flat_map(|base| {
            std::fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"))
        });
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = packaged.chain(std::env::split_paths(&path));
        let found = candidates
            .filter(|d| d.join("postgres").is_file())
            .filter_map(|d| Installation::at(&real(&d)).ok());
        found.max_by_key(|i| i.major).ok_or(InstallationError::NotFound)
    }

    fn at(bin_dir: &Path) -> Result<Installation, InstallationError> {
        let shown = bin_dir.display().to_string();
        let unusable = |what: String| InstallationError::Unusable { bin_dir: shown.clone(), what };
        let output = Command::new(bin_dir.join("postgres")).arg("--version").output();
        let output = output.map_err(|e| unusable(e.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (version, major) = parse_version(&text).ok_or_else(|| unusable(text.clone()))?;
        if major < MAJOR_MIN {
            return Err(InstallationError::TooOld { bin_dir: shown, version });
        }
        Ok(Installation { bin_dir: bin_dir.to_owned(), major, version })
    }

    /// The path of one of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The directory where the program really is: a PATH may hold a link to it without its siblings.
fn real(bin_dir: &Path) -> PathBuf {
    let program = bin_dir.join("postgres").canonicalize().ok();
    program.and_then(|p| p.parent().map(Path::to_owned)).unwrap_or_else(|| bin_dir.to_owned())
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → `15.18`, 15.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.split_whitespace().nth(2)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((version.to_owned(), digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_read_and_old_ones_refused() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(("18beta1".into(), 18)));
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 13.4'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Installation::find(Some(directory.path())).unwrap_err();
        assert!(error.to_string().contains("PostgreSQL 13.4; 15 or newer"), "{error}");
    }
}
