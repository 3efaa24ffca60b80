//! `replicator lost`: redo that failovers cut off, in the regions whose directories are on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use postgres::installation::Installation;
use proto::RegionName;
use runtime::clock::wall_us;

use super::args::LostAction;
use super::{AnyResult, confirm};
use crate::audit;
use crate::audit::file::Files;
use crate::config::Config;
use crate::keys::Place;
use crate::layout::Layout;
use crate::region::lost::sealed::open_into;
use crate::region::lost::{Lost, Transaction, list, transactions};
use crate::units;

/// Redo that is kept, whose it was, and where it lies.
type Kept = Vec<(RegionName, PathBuf, Lost)>;

/// Does `action`.
pub(super) async fn run(config: &Config, layout: &Layout, action: LostAction) -> AnyResult {
    let mut kept = Kept::new();
    for own in &config.regions {
        let found = list(&layout.region(&own.name))?;
        kept.extend(found.into_iter().map(|(path, lost)| (own.name.clone(), path, lost)));
    }
    match action {
        LostAction::List => show_list(&kept),
        LostAction::Show { directory, records } => {
            let (region, _, lost) = find(&kept, &directory)?;
            let data_dir = layout.region(region).pgdata();
            let bin_dir = config.region(region).and_then(|own| config.bin_dir_of(own));
            let installation = Installation::for_data(bin_dir, &data_dir)?;
            match (&lost.sealed, config.region(region)) {
                (Some(_), Some(own)) => {
                    let place = Place::of(own, &layout.region(region));
                    let keys = place.open(&place.load()?.unwrap_or_default()).await?;
                    // What is opened lies in memory where there is such a place, and goes when it was shown.
                    let memory = Path::new("/dev/shm");
                    let within = if memory.is_dir() { memory } else { directory.as_path() };
                    let opened = tempfile::Builder::new().prefix("replicator-lost-").tempdir_in(within)?;
                    open_into(&directory, opened.path(), &keys)?;
                    show(&installation, opened.path(), lost, records)?;
                }
                _ => show(&installation, &directory, lost, records)?,
            }
        }
        LostAction::Discard { directory, yes } => {
            let (region, _, lost) = find(&kept, &directory)?;
            if !yes {
                confirm(&format!("redo from {} to {} is deleted for good.", lost.from_lsn, lost.to_lsn))?;
            }
            let outcome = std::fs::remove_dir_all(&directory);
            let told = outcome.as_ref().map_or_else(|e| format!("failed: {e}"), |()| "done".into());
            let detail = format!("redo of epoch {} from {} to {}", lost.epoch, lost.from_lsn, lost.to_lsn);
            let deed = audit::local("lost discard", detail, told);
            Files::new(layout.region(region).directory()).append(wall_us(), deed)?;
            outcome?;
        }
    }
    Ok(())
}

fn find<'a>(kept: &'a Kept, directory: &Path) -> Result<&'a (RegionName, PathBuf, Lost), String> {
    let found = kept.iter().find(|(_, path, _)| path == directory);
    found.ok_or_else(|| format!("{}: nothing is kept there; see `replicator lost list`", directory.display()))
}

fn show_list(kept: &Kept) {
    if kept.is_empty() {
        println!("no redo was cut off in the regions on this machine");
    }
    for (name, path, lost) in kept {
        let (size, path) = (units::show_bytes(lost.bytes), path.display());
        let sealed = lost.sealed.as_ref().map(|key| format!("  sealed with key {key}")).unwrap_or_default();
        println!(
            "{name}  epoch {}  {} to {}  {size}  {path}{sealed}",
            lost.epoch, lost.from_lsn, lost.to_lsn
        );
    }
}

fn show(installation: &Installation, directory: &Path, lost: &Lost, records: bool) -> AnyResult {
    let dump = Command::new(installation.program("pg_waldump"))
        .arg("--path")
        .arg(directory)
        .args(["--timeline", &lost.timeline.to_string(), "--start", &lost.from_lsn, "--end", &lost.to_lsn])
        .stderr(Stdio::inherit())
        .output()?;
    let printed = String::from_utf8_lossy(&dump.stdout);
    if records {
        print!("{printed}");
    } else {
        show_transactions(&transactions(&printed));
    }
    if !dump.status.success() {
        return Err("pg_waldump could not read all of it: what it printed is what is whole".into());
    }
    Ok(())
}

fn show_transactions(transactions: &[Transaction]) {
    for Transaction { id, end, records, relations } in transactions {
        let end = end.as_deref().unwrap_or("its end is not in there");
        let relations: Vec<&str> = relations.iter().map(String::as_str).collect();
        println!("transaction {id}  {end}  {records} records  relations: {}", relations.join(", "));
    }
    println!("{} transactions; --records prints every record", transactions.len());
}
