//! Which PostgreSQL each region would run on this machine, and whether they fit each other: redo goes on only
//! with the major version that wrote it.

use postgres::installation::{Installation, InstallationError, Installations, major_of_data};
use proto::RegionName;

use crate::config::{Config, RegionConfig};
use crate::layout::Layout;

/// A region, and the PostgreSQL that it would run here.
pub type Found<'a> = (&'a RegionConfig, Result<Installation, InstallationError>);

/// A region that cannot run the primary's data.
#[derive(Debug, thiserror::Error)]
#[error(
    "region {region}: only PostgreSQL {found} is there for it, and {primary} is of PostgreSQL {major}: all regions are of one major \
     version. Install PostgreSQL {major}, or name its directory as `bin_dir` of the region"
)]
pub struct OtherMajor {
    region: RegionName,
    found: String,
    primary: RegionName,
    major: String,
}

/// What each region would run here, all of the major version of the first primary: that of its data, if they
/// are here.
///
/// # Errors
/// When a region has another major version only.
pub fn installations<'a>(config: &'a Config, layout: &Layout) -> Result<Vec<Found<'a>>, OtherMajor> {
    let found = |region: &RegionConfig| Installations::find(config.bin_dir_of(region));
    let primary = config.first_primary().and_then(|name| config.region(name));
    let major = primary.and_then(|primary| {
        let of_data = major_of_data(&layout.region(&primary.name).pgdata());
        of_data.or_else(|| Some(found(primary).ok()?.newest().major)).map(|major| (primary, major))
    });
    let chosen = config.regions.iter().map(|region| match (found(region), major) {
        (Ok(here), Some((primary, major))) => match here.of(major) {
            Some(installation) => Ok((region, Ok(installation.clone()))),
            None => Err(OtherMajor {
                region: region.name.clone(),
                found: here.to_string(),
                primary: primary.name.clone(),
                major: major.to_string(),
            }),
        },
        (here, _) => Ok((region, here.map(|here| here.newest().clone()))),
    });
    chosen.collect()
}
