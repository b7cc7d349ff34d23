//! The destination of `-strace`, `-d` and `--stats`: standard error or the file of `-D`.

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
    /// Whether a failed write was already reported.
    has_failed: AtomicBool,
}

impl LogFile {
    /// Standard error, or the file at `path`, which is appended to.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = File::options().create(true).append(true).open(path)?;
        // The guest's descriptors are low numbers.
        let file = raise_descriptor(file.into()).into();
        Ok(Self(Some(Arc::new(Named { file, path: path.to_owned(), has_failed: AtomicBool::new(false) }))))
    }

    /// Writes `text` in one piece and without a lock, so that no fork can find a lock held. A
    /// failed write must not change the guest's run: only a file's first failure is reported, on
    /// standard error.
    pub fn write(&self, text: &str) {
        let Some(Named { file, path, has_failed }) = self.0.as_deref() else {
            let _ = host_memory::write_stderr(text.as_bytes());
            return;
        };
        if let Err(error) = (&mut &*file).write_all(text.as_bytes())
            && !has_failed.swap(true, Ordering::Relaxed)
        {
            let path = path.display();
            let message =
                format!("demo-emulator: -D {path}: cannot be written, and the missing lines are lost ({error})\n");
            let _ = host_memory::write_stderr(message.as_bytes());
        }
    }

    /// The file's descriptor.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(|named| named.file.as_raw_fd())
    }
}
