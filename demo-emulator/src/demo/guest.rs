//! The demo's guest as a file: it is part of the emulator's binary.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::linux::own_descriptor::raise_descriptor;
use crate::symbols::Symbols;

const ELF: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-tests/guests/demo.elf"));

/// The guest in a memfd; it is there as long as this lives.
#[derive(Debug)]
pub struct DemoGuest(OwnedFd);

impl DemoGuest {
    /// Puts the guest there.
    ///
    /// # Errors
    ///
    /// The memfd cannot be made or written.
    pub fn new() -> io::Result<Self> {
        let mut file = File::from(memfd_create("demo", MemfdFlags::CLOEXEC)?);
        file.write_all(ELF)?;
        Ok(Self(raise_descriptor(file.into())))
    }

    /// Its path, for this process and others of this user.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Its symbols.
    pub fn symbols() -> Symbols {
        Symbols::of_elf(ELF)
    }
}
