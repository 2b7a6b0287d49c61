//! Stand-in.
use std::sync::Arc;

/// Definitions of flags, ready to be evaluated. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalFlags {
    keys: Arc<[String]>,
    unreadable: Arc<[String]>,
}

/// Why definitions cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ParseFlagsError(String);

impl LocalFlags {
    /// Reads.
    pub fn parse(json: &[u8]) -> Result<Self, ParseFlagsError> {
        let value: serde_json::Value = serde_json::from_slice(json).map_err(|e| ParseFlagsError(e.to_string()))?;
        let flags = value["flags"].as_array().ok_or_else(|| ParseFlagsError("no flags".into()))?;
        let keys = flags.iter().filter_map(|f| f["key"].as_str().map(str::to_owned)).collect();
        let unreadable =
            flags.iter().filter(|f| f["filters"].is_string()).filter_map(|f| f["key"].as_str().map(str::to_owned)).collect();
        Ok(Self { keys, unreadable })
    }
    /// Keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }
    /// Count.
    pub fn len(&self) -> usize {
        self.keys.len()
    }
    /// None?
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
    /// Unreadable.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }
}
