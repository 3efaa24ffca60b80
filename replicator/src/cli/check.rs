//! `replicator check`: what the file's own words cannot tell. The PostgreSQLs of this machine are looked at,
//! and say what they think of their settings and rules.

use std::collections::BTreeSet;
use std::path::Path;

use postgres::installation::{Installation, InstallationError};
use postgres::instance::TrialError;
use postgres::instance::account::Account;

use super::AnyResult;
use crate::config::{Config, RegionConfig};
use crate::layout::Layout;
use crate::local;
use crate::local::certificates::{self, Listed};

/// Looks at the PostgreSQL that each region would run here, and has it read the region's settings, and the
/// lines of `hba` and `ident`. Those of other machines are said not to be looked at.
pub(super) fn postgresql(config: &Config, layout: &Layout, file: &Path) -> AnyResult {
    let found = local::installations(config, layout).map_err(|e| format!("{}: {e}", file.display()))?;
    // Where there is no such account nothing runs; who starts a daemon is told.
    let account = Account::resolve(config.os_user.as_deref()).ok();
    let mut wrong: Vec<String> = Vec::new();
    // Regions have the same lines, and mostly the same PostgreSQL.
    let mut asked: BTreeSet<String> = BTreeSet::new();
    for (region, installation) in found {
        let name = &region.name;
        match installation {
            Ok(installation) => {
                if let Some(e) =
                    account.as_ref().and_then(|a| a.check_programs(&installation.program("postgres")).err())
                {
                    wrong.push(format!("{}: region {name}: {e}", file.display()));
                }
                let settings = config.settings_of(region);
                if !settings.is_empty()
                    && let Err(why) = installation.check_settings(&settings)
                    // Mostly they are the same for all.
                    && !wrong.iter().any(|known| known.ends_with(&why))
                {
                    let version = &installation.version;
                    wrong.push(format!("{}: PostgreSQL {version} of {name}: {why}", file.display()));
                }
                if asked.insert(installation.version.clone())
                    && let Err(why) = rules(config, &installation, account.as_ref())
                {
                    let version = &installation.version;
                    wrong.push(format!("{}: PostgreSQL {version} of {name}: {why}", file.display()));
                }
            }
            Err(e) if is_elsewhere(config, region, &e) => {
                eprintln!(
                    "region {name}: its PostgreSQL is not found on this machine; it and its settings were not checked"
                );
            }
            Err(e) => wrong.push(format!("{}: region {name}: {e}", file.display())),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Has a PostgreSQL read the lines of `hba` and `ident`; where it cannot be asked, that is said.
fn rules(config: &Config, installation: &Installation, account: Option<&Account>) -> Result<(), String> {
    if config.hba.is_empty() && config.ident.is_empty() {
        return Ok(());
    }
    let version = &installation.version;
    let why = match account.map(|account| installation.check_rules(account, &config.hba, &config.ident)) {
        Some(Ok(())) => return Ok(()),
        Some(Err(TrialError::Mistake(why))) => return Err(why),
        Some(Err(TrialError::NotAsked(why))) => why,
        None => "PostgreSQL's account is not here, or not ours to be".to_owned(),
    };
    eprintln!("`hba` and `ident` were not checked by PostgreSQL {version}: {why}");
    Ok(())
}

/// Says which of the certificates that are here have no role: they are let in where the file says nothing
/// else, or not at all.
pub(super) fn roles(config: &Config, layout: &Layout) {
    for Listed { directory, certificate } in certificates::list(config, layout) {
        if certificate.has_role() {
            continue;
        }
        let fate = match config.require_roles.unwrap_or(certificate.of_roles) {
            true => "nobody lets it in",
            false => "it is let in as what its name says, until it ends",
        };
        eprintln!(
            "{}: the certificate of {} has no role, and {fate}; replicator certs --renew gives it one",
            directory.display(),
            certificate.peer
        );
    }
}

/// Whether there is nothing here that could be looked at, as on a machine that is not the region's.
fn is_elsewhere(config: &Config, region: &RegionConfig, error: &InstallationError) -> bool {
    let named = config.bin_dir_of(region);
    matches!(error, InstallationError::NotFound) || named.is_some_and(|directory| !directory.exists())
}
