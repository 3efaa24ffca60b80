//! `replicator volume inspect`: what a copy's directory holds, read as it lies there.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use volume::segment::{self, Found, HEADER_BYTES, Header};

use crate::units::show_bytes;

/// Prints the segments below `directory`, or every record; what is damaged is said with its byte.
///
/// # Errors
/// When the directory cannot be read.
pub fn show(directory: &Path, records: bool, json: bool) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let meta = std::fs::read_to_string(directory.join("copy.meta")).map_err(|e| {
        format!("{}: {e}; name a copy's directory, such as volume/az-a/a1", directory.display())
    })?;
    if !json {
        writeln!(out, "{}", meta.trim_end())?;
    }
    for path in segments(directory)? {
        let bytes = Bytes::from(std::fs::read(&path)?);
        let name = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
        let Some(header) = Header::decode(&bytes) else {
            writeln!(out, "{}", line(json, &name, "damaged", "byte 0: its header is not one"))?;
            continue;
        };
        let (mut offset, mut count, mut end_lsn) = (HEADER_BYTES, 0_u64, header.begin_lsn);
        let mut damage = None;
        while offset < bytes.len() {
            match segment::read_record(&bytes.slice(offset..)) {
                Found::Record(record) => {
                    let batch = &record.batch;
                    if records {
                        let what = format!(
                            "{} to {}, timeline {}, epoch {}, {} in {}, durable {}",
                            batch.begin_lsn,
                            batch.end_lsn,
                            batch.timeline,
                            batch.epoch,
                            show_bytes(batch.redo_bytes()),
                            show_bytes(record.bytes.len() as u64),
                            record.durable_lsn
                        );
                        writeln!(out, "{}", line(json, &name, &format!("byte {offset}"), &what))?;
                    }
                    (count, end_lsn) = (count + 1, batch.end_lsn);
                    offset += record.bytes.len();
                }
                Found::End => break,
                Found::More(_) => {
                    damage = Some(format!("byte {offset}: it is cut short"));
                    break;
                }
                Found::Damaged(what) => {
                    damage = Some(format!("byte {offset}: {what}"));
                    break;
                }
            }
        }
        let sealed = header.key.map(|key| format!(", sealed with key {key}")).unwrap_or_default();
        let size = show_bytes(offset as u64);
        let what = format!("{} to {end_lsn}, {count} records, {size}{sealed}", header.begin_lsn);
        writeln!(out, "{}", line(json, &name, "segment", &what))?;
        if let Some(damage) = damage {
            writeln!(out, "{}", line(json, &name, "damaged", &damage))?;
        }
    }
    Ok(())
}

fn line(json: bool, file: &str, kind: &str, what: &str) -> String {
    match json {
        true => serde_json::json!({ "file": file, "kind": kind, "what": what }).to_string(),
        false => format!("{file}  {kind}: {what}"),
    }
}

fn segments(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for log in std::fs::read_dir(directory)? {
        let log = log?.path();
        if log.is_dir() {
            for file in std::fs::read_dir(log)? {
                let file = file?.path();
                let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if segment::parse_file_name(&name).is_some() {
                    found.push(file);
                }
            }
        }
    }
    found.sort();
    Ok(found)
}
