//! Which keys the segments of a copy need, read as they lie there.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::reader;
use crate::key::KeyId;

/// The keys that the segments of a copy's directory are sealed with, each as its provider wrapped it (empty
/// where it is not), read as they lie there: no copy is opened. What cannot be read is left out.
///
/// # Errors
/// When a directory cannot be read.
pub fn keys_in(directory: &Path) -> std::io::Result<BTreeMap<KeyId, Bytes>> {
    let mut keys = BTreeMap::new();
    if !directory.exists() {
        return Ok(keys);
    }
    for log in std::fs::read_dir(directory)? {
        let log = log?.path();
        let is_log = log.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log."));
        for file in if is_log { Some(std::fs::read_dir(log)?) } else { None }.into_iter().flatten() {
            let path = file?.path();
            let is_segment = path.extension().is_some_and(|extension| extension == "redo");
            if let Some((key, wrapped)) = is_segment.then(|| reader::first_key(&path)).flatten() {
                let known: &mut Bytes = keys.entry(key).or_default();
                if known.is_empty() {
                    *known = wrapped;
                }
            }
        }
    }
    Ok(keys)
}
