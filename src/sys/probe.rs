//! The facilities that this kernel offers and these permissions allow.
//!
//! The environment variable `CODEWARDEN_HIDE` (names of [`Facility::NAMES`], separated by commas)
//! hides facilities of the kernel, so that every fallback runs on a new kernel too. The library
//! opens everything as the probe says, so the variable holds for all of it. An unknown name makes
//! every mode fail: otherwise a test with a misspelt name would hide nothing and seem to pass.

use std::fmt;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::error::{Error, NOT_DUMPABLE};
use crate::sys::populate::{self, Check};
use crate::sys::uffd::{self, Door, KernelFaults, feature};
use crate::sys::{membarrier, pagemap::Pagemap, uffd_calls};

/// The first kernel that has write-protection, for this processor.
const WP_SINCE: &str = match () {
    () if cfg!(target_arch = "x86_64") => "5.7",
    () if cfg!(target_arch = "aarch64") => "6.10",
    () if cfg!(target_arch = "riscv64") => "6.19",
    () => NONE_YET,
};

/// What the processor must have besides.
const WP_NEEDS: &str = if cfg!(target_arch = "riscv64") { " on processors with the extension Svrsw60t59b" } else { "" };

/// In place of a kernel's number.
const NONE_YET: &str = "(none yet)";

/// A thing that a kernel may have and a mode may need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Facility {
    /// The `userfaultfd` mechanism, through either door.
    Uffd,
    /// The system call of that name.
    UffdSyscall,
    /// `/dev/userfaultfd`.
    UffdDevice,
    /// Faults of the kernel's own writes: this needs a permission.
    KernelFaults,
    /// `UFFD_USER_MODE_ONLY`: descriptors for any user.
    UserModeOnly,
    /// Write-protection.
    Wp,
    /// Write-protection of pages that were never touched.
    WpUnpopulated,
    /// Reading a page so that it is populated, and asking whether it is: what takes the place of
    /// `WpUnpopulated` on older kernels.
    Populate,
    /// The protection of a page, in `/proc/self/pagemap`.
    PagemapWp,
    /// Write-protection of memfd and shared memory.
    WpShmem,
    /// Write-protection that the kernel resolves by itself.
    WpAsync,
    /// SIGBUS in place of a message.
    Sigbus,
    /// The id of the thread that faulted, in messages.
    ThreadId,
    /// The byte that faulted, in messages.
    ExactAddress,
    /// The `PAGEMAP_SCAN` ioctl.
    PagemapScan,
    /// `membarrier` that orders the loads and stores of all threads.
    Membarrier,
    /// `membarrier` after which other cores fetch instructions anew.
    MembarrierSyncCore,
}

impl Facility {
    /// Every facility with the name that `CODEWARDEN_HIDE` and reports use, and
    /// the first kernel that has it.
    pub const NAMES: [(Facility, &'static str, &'static str); 17] = [
        (Facility::Uffd, "uffd", "4.3"),
        (Facility::UffdSyscall, "uffd_syscall", "4.3"),
        (Facility::UffdDevice, "uffd_device", "6.1"),
        (Facility::KernelFaults, "kernel_faults", "5.7"),
        (Facility::UserModeOnly, "user_mode_only", "5.11"),
        (Facility::Wp, "wp", WP_SINCE),
        (Facility::WpUnpopulated, "wp_unpopulated", "6.4"),
        (Facility::Populate, "populate", "3.2"),
        (Facility::PagemapWp, "pagemap_wp", "5.14"),
        (Facility::WpShmem, "wp_shmem", "5.19"),
        (Facility::WpAsync, "wp_async", "6.7"),
        (Facility::Sigbus, "sigbus", "4.14"),
        (Facility::ThreadId, "thread_id", "4.14"),
        (Facility::ExactAddress, "exact_address", "5.18"),
        (Facility::PagemapScan, "pagemap_scan", "6.7"),
        (Facility::Membarrier, "membarrier", "4.14"),
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

/// The result of [`Probe::of_this_process`].
#[derive(Clone, Debug)]
pub struct Probe {
    /// The kernel's release, as `uname -r` gives it.
    pub kernel: String,
    /// Names in `CODEWARDEN_HIDE` that no facility has.
    pub unknown_names: Vec<String>,
    present: u32,
    hidden: u32,
    /// Why the system call and the device gave no descriptor, at the last try.
    door_errnos: [Option<Errno>; 2],
    /// Why a descriptor refused to tell its features.
    api_errno: Option<Errno>,
    scan_errno: Option<Errno>,
    /// The call that populating needs and that was refused.
    populate_error: Option<(&'static str, Errno)>,
    /// Door and kernel faults of the available descriptors, the best first.
    ways: Vec<(Door, KernelFaults)>,
}

impl Probe {
    /// Asks the kernel; takes a dozen system calls.
    pub fn of_this_process() -> Self {
        Self::with_hidden(&hidden_names())
    }

    /// Like [`Probe::of_this_process`], with the names to hide given.
    pub fn with_hidden(names: &str) -> Self {
        let (hidden, unknown_names) = parse_hidden(names);
        let mut probe = Self::that_knows_nothing(hidden, unknown_names);
        probe.ask_userfaultfd();
        probe.scan_errno = Pagemap::ask().err();
        probe.note(Facility::PagemapScan, probe.scan_errno.is_none());
        probe.populate_error = populate::ask().err();
        probe.note(Facility::Populate, probe.populate_error.is_none());
        probe.note(Facility::Membarrier, membarrier::has_fence());
        probe.note(Facility::MembarrierSyncCore, membarrier::has_sync_core());
        probe
    }

    fn that_knows_nothing(hidden: u32, unknown_names: Vec<String>) -> Self {
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            unknown_names,
            present: 0,
            hidden,
            door_errnos: [None; 2],
            api_errno: None,
            scan_errno: None,
            populate_error: None,
            ways: Vec::new(),
        }
    }

    /// Whether the kernel has it for this process, and it is not hidden.
    pub fn has(&self, facility: Facility) -> bool {
        self.present & !self.hidden & facility.bit() != 0
    }

    /// Whether `CODEWARDEN_HIDE` hides it.
    pub fn is_hidden(&self, facility: Facility) -> bool {
        self.hidden & facility.bit() != 0
    }

    /// The error in `CODEWARDEN_HIDE`; with one no mode is available.
    pub fn mistake(&self) -> Option<String> {
        if self.unknown_names.is_empty() {
            return None;
        }
        let names = Facility::NAMES.map(|(_, name, _)| name).join(", ");
        let unknown = self.unknown_names.join(", ");
        Some(format!("CODEWARDEN_HIDE names what nothing is called: {unknown}; the names are {names}"))
    }

    /// Whether a [`CodeBuffer`](crate::code_buffer::CodeBuffer) is available.
    /// Interpreters, and blocks without host code, need none.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`], which names the missing facility and the remedy.
    pub fn check_code(&self) -> Result<(), Error> {
        match self.missing(&[&[Facility::MembarrierSyncCore]]) {
            None => Ok(()),
            Some(why) => Err(Error::Unavailable { what: "executable memory", why }),
        }
    }

    /// The first of `needed` that is missing, in words that help. Each element is a list of
    /// facilities of which one is enough.
    pub(crate) fn missing(&self, needed: &[&[Facility]]) -> Option<String> {
        if let Some(mistake) = self.mistake() {
            return Some(mistake);
        }
        needed.iter().find_map(|either| {
            let why: Vec<_> = either.iter().map_while(|facility| self.why_missing(*facility)).collect();
            (why.len() == either.len()).then(|| why.join("; without it: "))
        })
    }

    /// The reason why `facility` is not available, and the remedy; `None` if it is.
    pub fn why_missing(&self, facility: Facility) -> Option<String> {
        if self.has(facility) {
            return None;
        }
        if self.is_hidden(facility) {
            return Some(format!("{facility} is hidden by CODEWARDEN_HIDE; remove it from the list"));
        }
        let [syscall, device] = self.door_errnos;
        Some(match facility {
            Facility::Uffd => self.why_no_userfaultfd(),
            Facility::UffdSyscall => refusal("userfaultfd", syscall),
            Facility::UffdDevice => match device {
                Some(Errno::NOENT) => {
                    "there is no /dev/userfaultfd: Linux 6.1 or newer has it; a container must be given it".to_owned()
                }
                errno => refusal("/dev/userfaultfd", errno),
            },
            Facility::PagemapScan => match self.scan_errno {
                // The kernel's answers to an ioctl that it does not know.
                None | Some(Errno::NOTTY | Errno::INVAL) => self.too_old(facility),
                errno => refusal("PAGEMAP_SCAN on /proc/self/pagemap", errno),
            },
            Facility::Populate => match self.populate_error {
                Some((call, errno)) => refusal(call, Some(errno)),
                None => refusal("process_vm_readv", None),
            },
            Facility::Membarrier | Facility::MembarrierSyncCore => {
                format!("{}, or a seccomp filter refuses it", self.too_old(facility))
            }
            _ if !self.has(Facility::Uffd) => return self.why_missing(Facility::Uffd),
            Facility::KernelFaults => {
                format!("this user may not handle the faults of kernel writes; {ADVICE_KERNEL_FAULTS}")
            }
            _ if self.api_errno.is_some() => refusal("UFFDIO_API", self.api_errno),
            _ => self.too_old(facility),
        })
    }

    /// The first Linux that has `facility`, if only the age of this kernel is in the way. No permission helps then.
    pub fn newer_kernel(&self, facility: Facility) -> Option<&'static str> {
        let by_age_alone = facility != Facility::Wp || WP_SINCE != NONE_YET && WP_NEEDS.is_empty();
        let why = self.why_missing(facility).filter(|_| by_age_alone)?;
        (why == self.too_old(facility)).then(|| facility.since())
    }

    fn too_old(&self, facility: Facility) -> String {
        if facility == Facility::Wp && WP_SINCE == NONE_YET {
            let processor = std::env::consts::ARCH;
            return format!("Linux has no write-protection by userfaultfd (wp) for {processor} processors yet");
        }
        let needs = if facility == Facility::Wp { WP_NEEDS } else { "" };
        let since = facility.since();
        format!("the kernel ({}) does not offer {facility}: Linux {since} or newer does{needs}", self.kernel)
    }

    fn why_no_userfaultfd(&self) -> String {
        let [syscall, device] = self.door_errnos;
        // The kernel may allow any of them.
        let ways = [Facility::UffdSyscall, Facility::UffdDevice, Facility::KernelFaults, Facility::UserModeOnly];
        let hidden: Vec<_> = ways.into_iter().filter(|way| self.is_hidden(*way)).map(Facility::name).collect();
        if !hidden.is_empty() {
            return format!(
                "no way to a userfaultfd (uffd) is left: {} hidden by CODEWARDEN_HIDE; remove it from the list, or one \
                 of them",
                hidden.join(", ")
            );
        }
        let is_at_limit = |errno| matches!(errno, Some(Errno::MFILE | Errno::NFILE));
        if is_at_limit(syscall) {
            return refusal("userfaultfd", syscall);
        }
        if is_at_limit(device) {
            return refusal("/dev/userfaultfd", device);
        }
        let reason = match syscall {
            Some(Errno::NOSYS) => "the kernel is built without CONFIG_USERFAULTFD, or a seccomp filter hides it",
            Some(Errno::PERM) => {
                "the userfaultfd system call is not permitted (a container's seccomp profile, or an old kernel)"
            }
            _ => "userfaultfd cannot be opened",
        };
        let advice = format!(
            "{reason}: allow the userfaultfd system call, or give this user read and write permission on \
             /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1"
        );
        match WP_NEEDS {
            "" => advice,
            _ => format!("{advice}; it can write-protect with Linux {WP_SINCE} or newer{WP_NEEDS}"),
        }
    }

    /// A descriptor, with kernel faults if they are `wanted` and available.
    pub(crate) fn open_uffd(&self, wanted: KernelFaults) -> Result<(uffd::Opened, KernelFaults), Errno> {
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
        let kinds =
            [(KernelFaults::Delivered, Facility::KernelFaults), (KernelFaults::Refused, Facility::UserModeOnly)];
        for (faults, kind) in kinds {
            for (at, (door, facility)) in doors.into_iter().enumerate() {
                if self.is_hidden(facility) || self.is_hidden(kind) {
                    continue;
                }
                match uffd::open(door, faults) {
                    Ok(fd) => {
                        for there in [facility, kind, Facility::Uffd] {
                            self.note(there, true);
                        }
                        self.ways.push((door, faults));
                        match uffd_calls::api(fd.as_fd(), 0) {
                            Ok(offered) => {
                                self.note_features(offered);
                                let is_told = offered & feature::WP != 0 && populate::pagemap_tells(fd.as_fd());
                                self.note(Facility::PagemapWp, is_told);
                            }
                            Err(errno) => self.api_errno = Some(errno),
                        }
                    }
                    Err(errno) => self.door_errnos[at] = Some(errno),
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

    /// How pages are checked that must be populated before they are protected; `None` if that is
    /// not necessary.
    pub(crate) fn check_of_populated(&self) -> Option<Check> {
        let check = if self.has(Facility::PagemapWp) { Check::Protected } else { Check::Populated };
        (!self.has(Facility::WpUnpopulated)).then_some(check)
    }

    /// The feature bits of the facilities of `wanted` that the kernel has.
    pub(crate) fn feature_bits(&self, wanted: &[(Facility, u64)]) -> u64 {
        wanted.iter().filter(|(facility, _)| self.has(*facility)).fold(0, |bits, (_, bit)| bits | bit)
    }
}

/// The permissions that let a userfaultfd handle the faults of the kernel's own writes.
const ADVICE_KERNEL_FAULTS: &str =
    "CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1, or read and write permission on /dev/userfaultfd allows that";

/// The reason for a refusal, and the remedy.
fn refusal(what: &str, errno: Option<Errno>) -> String {
    let advice = match errno {
        Some(Errno::MFILE) => "the limit of open files is reached; raise it (ulimit -n)",
        Some(Errno::NFILE) => "the system's limit of open files is reached; raise it (sysctl fs.file-max)",
        Some(Errno::ACCESS) if what.contains("/proc/self") => NOT_DUMPABLE,
        Some(Errno::ACCESS) => "this user has no read and write permission on it",
        Some(Errno::PERM) => "not permitted to this user, or refused by a seccomp filter; allow it there",
        Some(Errno::NOSYS) => "the kernel does not have it, or a seccomp filter hides it",
        _ => "it could not be had",
    };
    match errno {
        Some(errno) => format!("{what}: {advice} ({errno})"),
        None => format!("{what}: {advice}"),
    }
}

/// [`membarrier::register_sync_core`] for a code buffer, unless `CODEWARDEN_HIDE` hides
/// it. Asks for nothing else.
pub(crate) fn register_sync_core() -> Result<(), Error> {
    let (hidden, unknown_names) = parse_hidden(&hidden_names());
    let mut probe = Probe::that_knows_nothing(hidden, unknown_names);
    probe.note(Facility::MembarrierSyncCore, membarrier::has_sync_core());
    probe.check_code()?;
    membarrier::register_sync_core()
}

fn hidden_names() -> String {
    std::env::var("CODEWARDEN_HIDE").unwrap_or_default()
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

/// Reports that a test does not run here, or fails if nothing may be skipped.
#[cfg(test)]
pub(crate) fn skip(why: impl fmt::Display) {
    assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
}

/// Whether this process has `mode`; reports a skip if not.
#[cfg(test)]
pub(crate) fn has_or_skips(mode: crate::mode::Mode) -> bool {
    Probe::with_hidden("").check(mode).map_err(skip).is_ok()
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
        assert!(less.missing(&[&[Facility::Wp], &[Facility::Sigbus]]).unwrap().contains("CODEWARDEN_HIDE"));
    }

    #[test]
    fn a_name_that_nothing_has_is_an_error_of_every_mode() {
        let why = Probe::with_hidden("sigbsu").missing(&[]).unwrap();
        assert!(why.contains("nothing is called: sigbsu") && why.contains("membarrier_sync_core"), "{why}");
    }

    /// Every missing facility names its remedy, in one sentence of its own.
    #[test]
    fn each_reason_names_its_facility_or_its_cause() {
        for (facility, name, _) in Facility::NAMES {
            let why = Probe::with_hidden(name).why_missing(facility).unwrap();
            assert!(why.contains(name) && why.contains("remove it"), "{why}");
        }
        // Facilities of a userfaultfd are missing without one.
        for hidden in ["uffd", "kernel_faults,user_mode_only", "uffd_syscall,uffd_device"] {
            let probe = Probe::with_hidden(hidden);
            for facility in [Facility::Uffd, Facility::Wp, Facility::Sigbus, Facility::WpAsync] {
                let why = probe.why_missing(facility).unwrap();
                assert!(hidden.split(',').all(|name| why.contains(name)) && why.contains("CODEWARDEN_HIDE"), "{why}");
            }
        }
    }

    /// An ordinary user: the kernel allows one way only, and that one is hidden.
    #[test]
    fn what_is_hidden_is_not_blamed_on_the_kernel() {
        for hidden in ["uffd_device", "uffd_syscall", "user_mode_only", "kernel_faults"] {
            let (bits, unknown_names) = parse_hidden(hidden);
            let mut probe = Probe::that_knows_nothing(bits, unknown_names);
            probe.door_errnos = [Some(Errno::PERM), Some(Errno::ACCESS)];
            for mode in [Facility::Uffd, Facility::Wp, Facility::Sigbus] {
                let why = probe.why_missing(mode).unwrap();
                assert!(why.contains(hidden) && why.contains("CODEWARDEN_HIDE") && !why.contains("container"), "{why}");
            }
        }
    }

    #[test]
    fn a_newer_kernel_is_named_if_nothing_else_would_help() {
        let mut probe = Probe::that_knows_nothing(Facility::WpAsync.bit(), Vec::new());
        assert_eq!(probe.newer_kernel(Facility::WpShmem), None, "there is no userfaultfd");
        probe.note(Facility::Uffd, true);
        assert_eq!(probe.newer_kernel(Facility::WpShmem), Some("5.19"));
        assert_eq!(probe.newer_kernel(Facility::WpAsync), None, "hidden");
        assert_eq!(probe.newer_kernel(Facility::KernelFaults), None, "a permission");
        assert_eq!(probe.newer_kernel(Facility::Membarrier), None, "perhaps a seccomp filter");
        probe.api_errno = Some(Errno::PERM);
        assert_eq!(probe.newer_kernel(Facility::WpShmem), None, "a seccomp filter");
    }

    #[test]
    fn a_code_buffer_needs_what_the_probe_says() {
        assert_eq!(Probe::with_hidden("uffd,membarrier").check_code(), Ok(()));
        let error = Probe::with_hidden("membarrier_sync_core").check_code().unwrap_err().to_string();
        assert!(error.contains("executable memory") && error.contains("hidden by CODEWARDEN_HIDE"), "{error}");
    }

    #[test]
    fn without_userfaultfd_nothing_of_it_is_there() {
        let probe = Probe::with_hidden("uffd");
        assert!(!probe.has(Facility::Wp) && !probe.has(Facility::Uffd));
        assert!(probe.open_uffd(KernelFaults::Refused).is_err());
    }
}
