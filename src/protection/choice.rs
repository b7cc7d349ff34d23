//! Which modes can be had here, and opening one of them.

use std::sync::Arc;

use super::mprotect::Mprotect;
use super::none::NoProtection;
use super::uffd_deferred::UffdDeferred;
use super::uffd_sigbus::UffdSigbus;
use super::uffd_thread::UffdThread;
use super::{Facility, Mode, Options, Probe, Protection};
use crate::addr::PageSize;
use crate::error::Error;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::{KernelFaults, Uffd, feature};
use crate::sys::{membarrier, signal};

/// What a mode cannot do without.
fn needs(mode: Mode) -> &'static [Facility] {
    use Facility::{Membarrier, PagemapScan, Sigbus, Uffd, Wp, WpAsync, WpUnpopulated};
    match mode {
        // A page that was never touched escapes the protection without WpUnpopulated.
        Mode::Sigbus => &[Membarrier, Uffd, Wp, WpUnpopulated, Sigbus],
        Mode::Thread => &[Membarrier, Uffd, Wp, WpUnpopulated],
        Mode::Deferred => &[Uffd, Wp, WpUnpopulated, WpAsync, PagemapScan],
        Mode::Mprotect => &[Membarrier],
        Mode::None => &[],
    }
}

impl Probe {
    /// Whether `mode` can be had.
    ///
    /// # Errors
    ///
    /// [`Error::ModeUnavailable`], which says what is missing and what to change.
    pub fn check(&self, mode: Mode) -> Result<(), Error> {
        match self.missing(needs(mode)) {
            None => Ok(()),
            Some(why) => Err(Error::ModeUnavailable { mode, why }),
        }
    }

    /// The best synchronous mode that can be had, and why it and no better one.
    pub fn best_synchronous(&self) -> (Mode, String) {
        let mut why = String::new();
        for mode in [Mode::Sigbus, Mode::Thread] {
            match self.check(mode) {
                Ok(()) if why.is_empty() => {
                    return (mode, "the fastest synchronous mode, and this kernel allows it".into());
                }
                Ok(()) => return (mode, why),
                Err(error) => {
                    if !why.is_empty() {
                        why.push_str("; ");
                    }
                    why.push_str(&error.to_string());
                }
            }
        }
        (Mode::Mprotect, why)
    }
}

/// The best synchronous mode of this kernel and these permissions (sigbus,
/// thread, mprotect, in this order), and why it was taken.
pub fn best_synchronous() -> (Mode, String) {
    Probe::of_this_process().best_synchronous()
}

/// Opens the mechanism of `mode`.
///
/// # Errors
///
/// [`Error::ModeUnavailable`] where it cannot be had here.
pub(crate) fn open(mode: Mode, page: PageSize, options: Options) -> Result<Arc<dyn Protection>, Error> {
    open_with(&Probe::of_this_process(), mode, page, options)
}

/// Like [`open`], with the kernel asked already.
pub(crate) fn open_with(
    probe: &Probe,
    mode: Mode,
    page: PageSize,
    options: Options,
) -> Result<Arc<dyn Protection>, Error> {
    probe.check(mode)?;
    if mode.is_synchronous() {
        membarrier::register_fence()?;
    }
    if matches!(mode, Mode::Sigbus | Mode::Mprotect) && !options.embedder_owns_signals {
        signal::install()?;
    }
    Ok(match mode {
        Mode::Sigbus => {
            let (uffd, _) = open_uffd(probe, mode, page, KernelFaults::Refused, feature::SIGBUS)?;
            Arc::new(UffdSigbus::new(uffd))
        }
        Mode::Thread => {
            let wanted = [(Facility::ThreadId, feature::THREAD_ID), (Facility::ExactAddress, feature::EXACT_ADDRESS)];
            let extra = probe.feature_bits(&wanted);
            let (uffd, kernel_faults) = open_uffd(probe, mode, page, KernelFaults::Delivered, extra)?;
            Arc::new(UffdThread::start(uffd, kernel_faults, page)?)
        }
        Mode::Deferred => {
            let (uffd, _) = open_uffd(probe, mode, page, KernelFaults::Refused, feature::WP_ASYNC)?;
            Arc::new(UffdDeferred::new(uffd, Pagemap::open(page)?))
        }
        Mode::Mprotect => Arc::new(Mprotect::new(page)?),
        Mode::None => Arc::new(NoProtection),
    })
}

fn open_uffd(
    probe: &Probe,
    mode: Mode,
    page: PageSize,
    wanted: KernelFaults,
    extra: u64,
) -> Result<(Uffd, KernelFaults), Error> {
    let (fd, kernel_faults) = probe
        .open_uffd(wanted)
        .map_err(|errno| Error::ModeUnavailable { mode, why: format!("userfaultfd cannot be opened: {errno}") })?;
    let shmem = probe.feature_bits(&[(Facility::WpShmem, feature::WP_SHMEM)]);
    let features = feature::WP | feature::WP_UNPOPULATED | shmem | extra;
    Ok((Uffd::new(fd, features, page)?, kernel_faults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_best_mode_is_taken_and_says_why() {
        let best = |hidden| Probe::with_hidden(hidden).best_synchronous();
        assert_eq!(best("").0, Mode::Sigbus);
        let (mode, why) = best("sigbus");
        assert_eq!(mode, Mode::Thread);
        assert!(why.contains("CODEWARDEN_HIDE"), "{why}");
        for hidden in ["uffd", "wp", "wp_unpopulated", "uffd_syscall,uffd_device"] {
            assert_eq!(best(hidden).0, Mode::Mprotect, "{hidden}");
        }
    }

    #[test]
    fn a_mode_asked_for_by_name_is_that_mode_or_an_error() {
        for (mode, hidden) in [
            (Mode::Sigbus, "sigbus"),
            (Mode::Thread, "wp"),
            (Mode::Deferred, "wp_async"),
            (Mode::Deferred, "pagemap_scan"),
            (Mode::Sigbus, "uffd"),
        ] {
            let probe = Probe::with_hidden(hidden);
            let error = open_with(&probe, mode, PageSize::host(), Options::default()).unwrap_err();
            assert!(matches!(error, Error::ModeUnavailable { mode: at, .. } if at == mode), "{error}");
        }
        for mode in Mode::ALL {
            assert_eq!(open(mode, PageSize::host(), Options::default()).unwrap().mode(), mode);
        }
    }

    /// Whether the probe has it; a skip that is printed where it has not.
    fn has_or_skips(facility: Facility) -> bool {
        let has = Probe::with_hidden("").has(facility);
        if !has {
            assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "no {facility}");
            eprintln!("SKIPPED: this process has no {facility}");
        }
        has
    }

    #[test]
    fn thread_mode_without_kernel_faults_says_so() {
        use crate::protection::KernelWrites;
        let kernel_writes = |hidden| {
            let probe = Probe::with_hidden(hidden);
            open_with(&probe, Mode::Thread, PageSize::host(), Options::default()).unwrap().kernel_writes()
        };
        assert_eq!(kernel_writes("kernel_faults"), KernelWrites::Refused);
        if has_or_skips(Facility::KernelFaults) {
            assert_eq!(kernel_writes(""), KernelWrites::Tracked);
        }
    }

    #[test]
    fn either_door_is_enough() {
        for (door, hidden) in [(Facility::UffdDevice, "uffd_syscall"), (Facility::UffdSyscall, "uffd_device")] {
            if has_or_skips(door) {
                let probe = Probe::with_hidden(hidden);
                assert!(open_with(&probe, Mode::Sigbus, PageSize::host(), Options::default()).is_ok(), "{hidden}");
            }
        }
    }
}
