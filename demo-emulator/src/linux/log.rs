//! Where `-strace`, `-d` and `--stats` write: standard error or the file of `-D`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::host_memory;
use super::own_descriptor::raise_descriptor;

/// The log; clones share it.
#[derive(Clone, Debug, Default)]
pub struct LogFile(Option<Arc<Named>>);

#[derive(Debug)]
struct Named {
    file: File,
    path: PathBuf,
    /// Whether somebody was told that it cannot be written.
    has_failed: AtomicBool,
}

impl LogFile {
    /// Standard error, or what is appended to the file at `path`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = File::options().create(true).append(true).open(path)?;
        // Out of the guest's way.
        let file = raise_descriptor(file.into()).into();
        Ok(Self(Some(Arc::new(Named { file, path: path.to_owned(), has_failed: AtomicBool::new(false) }))))
    }

    /// Writes `text` in one piece and without a lock, so that no fork can find
    /// it held. What the guest does must not change where that fails: the first
    /// failure of a file is told on standard error.
    pub fn write(&self, text: &str) {
        let Some(Named { file, path, has_failed }) = self.0.as_deref() else {
            let _ = host_memory::write_stderr(text.as_bytes());
            return;
        };
        if let Err(error) = (&mut &*file).write_all(text.as_bytes())
            && !has_failed.swap(true, Ordering::Relaxed)
        {
            let path = path.display();
            let told =
                format!("demo-emulator: -D {path}: cannot be written, and what is not there is lost ({error})\n");
            let _ = host_memory::write_stderr(told.as_bytes());
        }
    }

    /// The file's descriptor.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(|named| named.file.as_raw_fd())
    }
}
