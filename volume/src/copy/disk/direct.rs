//! A copy's appends as writes that its own thread does not wait for: they bypass the page cache, and are on
//! the disk when they are done.
//!
//! Such a write covers whole blocks, so it begins with what the last block holds already, and ends with
//! zeroes. It does not make the file longer: that is left to the copy's own thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ring::{BLOCK_BYTES, Write};

use super::{Disk, at, lock};
use crate::VolumeError;
use crate::copy::Stored;

/// What a direct write to the newest segment needs.
#[derive(Debug)]
pub(super) struct Direct {
    file: Arc<File>,
    /// What the last block of the log holds, where it is not full.
    rest: Vec<u8>,
}

const BLOCK: u64 = BLOCK_BYTES as u64;

impl Disk {
    /// Makes ready for direct writes to the newest segment; whether there can be any. It reads, and may wait
    /// for the disk.
    pub(in crate::copy) fn make_direct(&mut self) -> bool {
        let stored_bytes = lock(&self.segments).last().map_or(0, |segment| segment.stored_bytes);
        let Some(open) = &mut self.open else { return false };
        if open.direct.is_none() && !open.no_direct {
            let mut rest = vec![0; usize::try_from(stored_bytes % BLOCK).unwrap_or_default()];
            let begin = stored_bytes - rest.len() as u64;
            let read = File::open(&open.path).and_then(|file| file.read_exact_at(&mut rest, begin));
            open.direct = ring::open(&open.path).filter(|_| read.is_ok()).map(|file| Direct { file, rest });
            open.no_direct = open.direct.is_none();
        }
        open.direct.is_some()
    }

    /// The write that appends `records`; none where the copy's own thread has to. Until [`Disk::ended`]
    /// nothing else is asked of the disk.
    pub(in crate::copy) fn begin(&mut self, records: &[Stored]) -> Option<Write> {
        let offset = lock(&self.segments).last().map_or(0, |segment| segment.stored_bytes);
        let open = self.open.as_ref()?;
        let direct = open.direct.as_ref()?;
        let records = records.iter().map(|stored| &stored.record[..]);
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.fill(std::iter::once(&direct.rest[..]).chain(records));
        let begin = offset - direct.rest.len() as u64;
        if begin.is_multiple_of(BLOCK) && begin + blocks.len() as u64 <= open.filled_bytes {
            return Some(Write { file: direct.file.clone(), blocks, offset: begin });
        }
        self.blocks = blocks;
        None
    }

    /// The write is over.
    ///
    /// # Errors
    /// When the disk failed.
    pub(in crate::copy) fn ended(
        &mut self,
        records: &[Stored],
        write: Write,
        result: io::Result<()>,
    ) -> Result<(), VolumeError> {
        let offset = lock(&self.segments).last().map_or(0, |segment| segment.stored_bytes);
        if let Some(open) = &mut self.open {
            result.map_err(at(&open.path))?;
            if let Some(direct) = &mut open.direct {
                direct.rest.clear();
                direct.rest.extend_from_slice(write.blocks.rest());
            }
        }
        self.blocks = write.blocks;
        self.grown(records, offset, records.iter().map(|stored| stored.record.len() as u64).sum())
    }
}
