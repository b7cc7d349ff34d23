//! Where `-strace`, `-d` and `--stats` write: standard error or the file of `-D`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use super::host_memory;
use super::own_descriptor::raise_descriptor;

/// The log; clones share it.
#[derive(Clone, Debug, Default)]
pub struct LogFile(Option<Arc<File>>);

impl LogFile {
    /// Standard error, or what is appended to the file at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path| File::options().create(true).append(true).open(path);
        let file = path.map(open).transpose()?;
        // Out of the guest's way.
        Ok(Self(file.map(|file| Arc::new(raise_descriptor(file.into()).into()))))
    }

    /// Writes `text` in one piece and without a lock, so that no fork can find
    /// it held.
    pub fn write(&self, text: &str) {
        // A log that cannot be written must not change what the guest does.
        let _ = match &self.0 {
            Some(file) => (&mut &**file).write_all(text.as_bytes()),
            None => host_memory::write_stderr(text.as_bytes()),
        };
    }

    /// The file's descriptor.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(|file| file.as_raw_fd())
    }
}
