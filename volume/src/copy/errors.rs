//! What goes wrong with a file of a copy, as the volume's errors.

use std::io;
use std::path::Path;

use crate::VolumeError;

/// Turns the system's errors about `path` into the volume's.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> VolumeError + use<> {
    let path = path.display().to_string();
    move |e| VolumeError::Io { path: path.clone(), what: e.to_string() }
}

/// What cannot be read in `path` at byte `offset`.
pub(super) fn damaged(path: &Path, offset: u64, what: &str) -> VolumeError {
    VolumeError::Damaged { path: path.display().to_string(), offset, what: what.into() }
}
