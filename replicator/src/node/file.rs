//! What a node's data are, kept in `node.json`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use proto::{ClusterId, NodeName, RegionName};
use serde::{Deserialize, Serialize};

use super::plan::Data;
use crate::layout::write_durably;

/// The version of the file's format.
const FORMAT: u32 = 1;

/// Why a node's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{path} is not the record of a node: {what}. Move it aside: the node's data are copied anew then"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It is another node's.
    #[error("{path} is the record of {found}, not of {expected}")]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
}

/// The file as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    format: u32,
    cluster_id: String,
    region: RegionName,
    node: NodeName,
    /// None while there are none, or not all of them.
    data: Option<Data>,
}

impl Content {
    fn whose(&self) -> String {
        format!("node {} of region {} in cluster {}", self.node, self.region, self.cluster_id)
    }
}

/// The file, and what is in it.
#[derive(Debug)]
pub struct NodeFile {
    path: PathBuf,
    content: Mutex<Content>,
}

impl NodeFile {
    /// Opens the file at `path`; where none is, the node has no data.
    ///
    /// # Errors
    /// When it cannot be read, or is another's.
    pub fn open(
        path: &Path,
        cluster_id: ClusterId,
        region: &RegionName,
        node: &NodeName,
    ) -> Result<NodeFile, NodeFileError> {
        let expected = Content {
            format: FORMAT,
            cluster_id: cluster_id.to_string(),
            region: region.clone(),
            node: node.clone(),
            data: None,
        };
        let found = match std::fs::read(path) {
            Ok(bytes) => {
                parse(&bytes).map_err(|what| NodeFileError::Malformed { path: path.to_owned(), what })?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => expected.clone(),
            Err(source) => return Err(NodeFileError::Io { path: path.to_owned(), source }),
        };
        if found.whose() != expected.whose() {
            let (found, expected) = (found.whose(), expected.whose());
            return Err(NodeFileError::Other { path: path.to_owned(), found, expected });
        }
        Ok(NodeFile { path: path.to_owned(), content: Mutex::new(found) })
    }

    /// The data here.
    #[must_use]
    pub fn data(&self) -> Option<Data> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).data.clone()
    }

    /// These are the data here from now on, or there are none; on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub fn set(&self, data: Option<Data>) -> Result<(), NodeFileError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Content { data, ..content.clone() };
        let io = |source| NodeFileError::Io { path: self.path.clone(), source };
        let text = serde_json::to_vec_pretty(&changed).map_err(|e| io(e.into()))?;
        write_durably(&self.path, &text).map_err(io)?;
        *content = changed;
        Ok(())
    }
}

/// What a `node.json` says.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Content, String> {
    let content: Content = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match content.format {
        FORMAT => Ok(content),
        other => Err(format!("format {other} is not known here, {FORMAT} is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::plan::Origin;
    use proptest::prelude::*;

    fn open(path: &Path, node: &str) -> Result<NodeFile, NodeFileError> {
        NodeFile::open(path, ClusterId([7; 16]), &"a".parse().unwrap(), &node.parse().unwrap())
    }

    #[test]
    fn what_is_kept_is_found_again_and_another_s_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("node.json");
        let file = open(&path, "n1").unwrap();
        assert_eq!(file.data(), None);
        let data = Data { id: 3, origin: Origin::new(7) };
        file.set(Some(data.clone())).unwrap();
        assert_eq!(open(&path, "n1").unwrap().data(), Some(data));
        assert!(matches!(open(&path, "n2"), Err(NodeFileError::Other { .. })));
        file.set(None).unwrap();
        assert_eq!(open(&path, "n1").unwrap().data(), None);
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(open(&path, "n1"), Err(NodeFileError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
