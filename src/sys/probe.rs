//! What this kernel and these permissions allow.
//!
//! The environment variable `CODEWARDEN_HIDE` (names of [`Facility::NAMES`],
//! separated by commas) hides what the kernel has, so that every fallback runs
//! on a new kernel too.

use std::fmt;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::addr::PageSize;
use crate::sys::uffd::{self, Door, KernelFaults, feature};
use crate::sys::{membarrier, pagemap::Pagemap};

/// A thing that a kernel may have and a mode may need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[allow(missing_docs)] // the names are the kernel's
pub enum Facility {
    Uffd,
    UffdSyscall,
    UffdDevice,
    KernelFaults,
    Wp,
    WpUnpopulated,
    WpShmem,
    WpAsync,
    Sigbus,
    ThreadId,
    ExactAddress,
    PagemapScan,
    MembarrierSyncCore,
}

impl Facility {
    /// Every facility with the name that `CODEWARDEN_HIDE` and reports use, and
    /// the first kernel that has it.
    pub const NAMES: [(Facility, &'static str, &'static str); 13] = [
        (Facility::Uffd, "uffd", "4.3"),
        (Facility::UffdSyscall, "uffd_syscall", "4.3"),
        (Facility::UffdDevice, "uffd_device", "6.1"),
        (Facility::KernelFaults, "kernel_faults", "5.7"),
        (Facility::Wp, "wp", "5.7"),
        (Facility::WpUnpopulated, "wp_unpopulated", "6.4"),
        (Facility::WpShmem, "wp_shmem", "5.19"),
        (Facility::WpAsync, "wp_async", "6.7"),
        (Facility::Sigbus, "sigbus", "4.14"),
        (Facility::ThreadId, "thread_id", "4.14"),
        (Facility::ExactAddress, "exact_address", "5.18"),
        (Facility::PagemapScan, "pagemap_scan", "6.7"),
        (Facility::MembarrierSyncCore, "membarrier_sync_core", "4.16"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The first kernel that has it.
    pub fn since(self) -> &'static str {
        Self::NAMES[self as usize].2
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for Facility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What [`Probe::of_this_process`] found.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The kernel's release, as `uname -r` gives it.
    pub kernel: String,
    /// Names in `CODEWARDEN_HIDE` that no facility has.
    pub unknown_names: Vec<String>,
    present: u32,
    hidden: u32,
    syscall_errno: Option<Errno>,
    /// Door and kernel faults of the descriptors that can be had, the best first.
    ways: Vec<(Door, KernelFaults)>,
}

impl Probe {
    /// Asks the kernel; takes a dozen system calls.
    pub fn of_this_process() -> Self {
        Self::with_hidden(&std::env::var("CODEWARDEN_HIDE").unwrap_or_default())
    }

    /// Like [`Probe::of_this_process`], with the names to hide given.
    pub fn with_hidden(names: &str) -> Self {
        let (hidden, unknown_names) = parse_hidden(names);
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut probe = Self { kernel, unknown_names, present: 0, hidden, syscall_errno: None, ways: Vec::new() };
        probe.ask_userfaultfd();
        probe.note(Facility::PagemapScan, Pagemap::open(PageSize::host()).is_ok_and(|pagemap| pagemap.has_scan()));
        probe.note(Facility::MembarrierSyncCore, membarrier::has_sync_core());
        probe
    }

    /// Whether the kernel has it for this process, and it is not hidden.
    pub fn has(&self, facility: Facility) -> bool {
        self.present & !self.hidden & facility.bit() != 0
    }

    /// Whether `CODEWARDEN_HIDE` hides it.
    pub fn is_hidden(&self, facility: Facility) -> bool {
        self.hidden & facility.bit() != 0
    }

    /// The first of `needed` that is missing, said in a form that helps.
    pub(crate) fn missing(&self, needed: &[Facility]) -> Option<String> {
        let facility = *needed.iter().find(|facility| !self.has(**facility))?;
        if self.is_hidden(facility) {
            return Some(format!("{facility} is hidden by CODEWARDEN_HIDE; remove it from the list"));
        }
        if facility == Facility::Uffd {
            return Some(self.why_no_userfaultfd());
        }
        Some(format!(
            "the kernel ({}) does not offer {facility}: Linux {} or newer does",
            self.kernel,
            facility.since()
        ))
    }

    fn why_no_userfaultfd(&self) -> String {
        let reason = match self.syscall_errno {
            Some(Errno::NOSYS) => "the kernel is built without CONFIG_USERFAULTFD, or a seccomp filter hides it",
            Some(Errno::PERM) => {
                "the userfaultfd system call is not permitted (a container's seccomp profile, or an old kernel)"
            }
            Some(Errno::MFILE | Errno::NFILE) => "the limit of open files is reached (ulimit -n)",
            _ => "userfaultfd cannot be opened",
        };
        format!(
            "{reason}: allow the userfaultfd system call, or give this user read and write permission on \
             /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1"
        )
    }

    /// A descriptor, with kernel faults where `wanted` and to be had.
    pub(crate) fn open_uffd(&self, wanted: KernelFaults) -> Result<(std::os::fd::OwnedFd, KernelFaults), Errno> {
        let exact = self.ways.iter().find(|(_, faults)| *faults == wanted);
        let (door, faults) = *exact.or(self.ways.first()).ok_or(Errno::NOSYS)?;
        uffd::open(door, faults).map(|fd| (fd, faults))
    }

    fn note(&mut self, facility: Facility, present: bool) {
        if present {
            self.present |= facility.bit();
        }
    }

    fn ask_userfaultfd(&mut self) {
        if self.is_hidden(Facility::Uffd) {
            return;
        }
        let doors = [(Door::Syscall, Facility::UffdSyscall), (Door::Device, Facility::UffdDevice)];
        for faults in [KernelFaults::Delivered, KernelFaults::Refused] {
            if faults == KernelFaults::Delivered && self.is_hidden(Facility::KernelFaults) {
                continue;
            }
            for (door, facility) in doors {
                if self.is_hidden(facility) {
                    continue;
                }
                match uffd::open(door, faults) {
                    Ok(fd) => {
                        self.note(facility, true);
                        self.note(Facility::Uffd, true);
                        self.note(Facility::KernelFaults, faults == KernelFaults::Delivered);
                        self.ways.push((door, faults));
                        self.note_features(uffd::negotiate(fd.as_fd(), 0).unwrap_or(0));
                    }
                    Err(errno) if door == Door::Syscall => self.syscall_errno = Some(errno),
                    Err(_) => {}
                }
            }
        }
    }

    fn note_features(&mut self, offered: u64) {
        let bits = [
            (Facility::Wp, feature::WP),
            (Facility::WpUnpopulated, feature::WP_UNPOPULATED),
            (Facility::WpShmem, feature::WP_SHMEM),
            (Facility::WpAsync, feature::WP_ASYNC),
            (Facility::Sigbus, feature::SIGBUS),
            (Facility::ThreadId, feature::THREAD_ID),
            (Facility::ExactAddress, feature::EXACT_ADDRESS),
        ];
        for (facility, bit) in bits {
            self.note(facility, offered & bit != 0);
        }
    }

    /// The feature bits of those of `wanted` that are there.
    pub(crate) fn feature_bits(&self, wanted: &[(Facility, u64)]) -> u64 {
        wanted.iter().filter(|(facility, _)| self.has(*facility)).fold(0, |bits, (_, bit)| bits | bit)
    }
}

fn parse_hidden(names: &str) -> (u32, Vec<String>) {
    let (mut hidden, mut unknown) = (0, Vec::new());
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match Facility::NAMES.iter().find(|(_, known, _)| *known == name) {
            Some((facility, ..)) => hidden |= facility.bit(),
            None => unknown.push(name.to_owned()),
        }
    }
    (hidden, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_their_facility() {
        for (index, (facility, name, since)) in Facility::NAMES.into_iter().enumerate() {
            assert_eq!(facility as usize, index);
            assert_eq!((facility.name(), facility.since()), (name, since));
        }
    }

    #[test]
    fn hidden_facilities_are_not_there() {
        let all = Probe::with_hidden("");
        let less = Probe::with_hidden("sigbus, wp_async,bogus");
        for (facility, ..) in Facility::NAMES {
            let hidden = matches!(facility, Facility::Sigbus | Facility::WpAsync);
            assert_eq!(less.has(facility), all.has(facility) && !hidden, "{facility}");
        }
        assert_eq!(less.unknown_names, ["bogus"]);
        assert!(less.missing(&[Facility::Wp, Facility::Sigbus]).unwrap().contains("CODEWARDEN_HIDE"));
    }

    #[test]
    fn without_userfaultfd_nothing_of_it_is_there() {
        let probe = Probe::with_hidden("uffd");
        assert!(!probe.has(Facility::Wp) && !probe.has(Facility::Uffd));
        assert!(probe.open_uffd(KernelFaults::Refused).is_err());
    }
}
