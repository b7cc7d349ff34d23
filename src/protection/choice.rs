//! Which modes this process can use, and the opening of one of them.

use core::ffi::c_int;
use std::sync::Arc;

use super::contract::{FaultLock, Options, Protection};
use super::mprotect::{Mprotect, ThisKernel};
use super::none::NoProtection;
use super::uffd::UffdProtection;
use super::uffd_thread::UffdThread;
use crate::addr::PageSize;
use crate::error::Error;
use crate::mode::Mode;
use crate::sys::pagemap::Pagemap;
use crate::sys::probe::{Facility, Probe};
use crate::sys::uffd::{KernelFaults, Opened, Uffd, feature};
use crate::sys::{membarrier, signal};

/// The facilities that a mode needs. One of each list is enough.
fn needs(mode: Mode) -> &'static [&'static [Facility]] {
    use Facility::{Membarrier, PagemapScan, Populate, Sigbus, Uffd, Wp, WpAsync, WpUnpopulated};
    match mode {
        // A page that was never touched escapes the protection without WpUnpopulated, unless it is
        // populated first.
        Mode::Sigbus => &[&[Membarrier], &[Uffd], &[Wp], &[WpUnpopulated, Populate], &[Sigbus]],
        Mode::Thread => &[&[Membarrier], &[Uffd], &[Wp], &[WpUnpopulated, Populate]],
        // The last that Linux gained comes first: it is the one that an older kernel is told to lack.
        Mode::Deferred => &[&[Uffd], &[WpAsync], &[PagemapScan], &[Wp], &[WpUnpopulated]],
        Mode::Mprotect => &[&[Membarrier]],
        Mode::None => &[],
    }
}

impl Probe {
    /// Whether `mode` is available.
    ///
    /// # Errors
    ///
    /// [`Error::ModeUnavailable`]: the missing facility and the change that helps.
    pub fn check(&self, mode: Mode) -> Result<(), Error> {
        match self.missing(needs(mode)) {
            None => Ok(()),
            Some(why) => Err(Error::ModeUnavailable { mode, why }),
        }
    }

    /// The best synchronous mode that is available, and the reason for the choice.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if none is available: it names the remedy.
    pub fn best_synchronous(&self) -> Result<(Mode, String), Error> {
        let mut refused: Vec<(Mode, String)> = Vec::new();
        for mode in Mode::ALL.into_iter().filter(|mode| mode.is_synchronous()) {
            match self.missing(needs(mode)) {
                None if refused.is_empty() => {
                    return Ok((mode, "the fastest synchronous mode, and this kernel allows it".into()));
                }
                None => return Ok((mode, reasons(&refused))),
                Some(why) => refused.push((mode, why)),
            }
        }
        Err(Error::Unavailable { what: "a synchronous mode", why: reasons(&refused) })
    }
}

/// Why modes are refused; modes with one reason share a sentence.
fn reasons(refused: &[(Mode, String)]) -> String {
    let mut sentences: Vec<(String, &String)> = Vec::new();
    for (mode, why) in refused {
        match sentences.iter_mut().find(|(_, known)| *known == why) {
            Some((modes, _)) => *modes = format!("{modes}, {mode}"),
            None => sentences.push((mode.to_string(), why)),
        }
    }
    let sentences: Vec<_> = sentences.into_iter().map(|(modes, why)| format!("{modes} cannot be had: {why}")).collect();
    sentences.join("; ")
}

/// The best synchronous mode of this kernel and these permissions (sigbus, thread, mprotect, in
/// this order), and the reason for the choice.
///
/// # Errors
///
/// [`Error::Unavailable`] if none is available: each needs `membarrier`, which Linux has from
/// 4.14 on and a seccomp filter may refuse. The message names the remedy.
pub fn best_synchronous() -> Result<(Mode, String), Error> {
    Probe::of_this_process().best_synchronous()
}

/// The signal by which the faults of `mode` arrive.
fn signal_of(mode: Mode) -> Option<c_int> {
    match mode {
        Mode::Sigbus => Some(libc::SIGBUS),
        Mode::Mprotect => Some(libc::SIGSEGV),
        _ => None,
    }
}

/// Opens the mechanism of `mode` for a new region. A handler thread takes `lock` around each fault.
///
/// # Errors
///
/// [`Error::ModeUnavailable`] if it is not available here, [`Error::BadArgument`] if this
/// thread blocks the signal by which the mode's faults arrive.
pub(crate) fn open(
    mode: Mode,
    page: PageSize,
    options: Options,
    lock: Option<Arc<dyn FaultLock>>,
) -> Result<Arc<dyn Protection>, Error> {
    let probe = Probe::of_this_process();
    probe.check(mode)?;
    check_signal(mode)?;
    open_with(&probe, mode, page, options, lock)
}

/// An error if this thread blocks the signal by which the faults of `mode` arrive.
pub(super) fn check_signal(mode: Mode) -> Result<(), Error> {
    // Threads inherit the mask, but a thread can read only its own.
    match signal_of(mode).filter(|&signo| signal::is_blocked_here(signo)) {
        Some(libc::SIGBUS) => Err(Error::BadArgument(
            "this thread blocks SIGBUS, so the kernel would end the process at its first store to a protected page of \
             a region in mode sigbus: unblock it in each thread that stores to guest memory",
        )),
        Some(_) => Err(Error::BadArgument(
            "this thread blocks SIGSEGV, so the kernel would end the process at its first store to a protected page of \
             a region in mode mprotect: unblock it in each thread that stores to guest memory",
        )),
        None => Ok(()),
    }
}

/// Opens the mechanism after a probe of the kernel.
pub(crate) fn open_with(
    probe: &Probe,
    mode: Mode,
    page: PageSize,
    options: Options,
    lock: Option<Arc<dyn FaultLock>>,
) -> Result<Arc<dyn Protection>, Error> {
    probe.check(mode)?;
    prepare(mode, options)?;
    match mode {
        Mode::Mprotect => Ok(Arc::new(Mprotect::new(page, ThisKernel)?)),
        Mode::None => Ok(Arc::new(NoProtection)),
        Mode::Sigbus | Mode::Thread | Mode::Deferred => {
            let (uffd, kernel_faults) = open_uffd(probe, mode)?;
            let uffd = Uffd::new(uffd, uffd_features(probe, mode), probe.check_of_populated())?;
            on_uffd(mode, uffd, kernel_faults, page, lock)
        }
    }
}

/// Sets up the process for a mode before its first region.
pub(super) fn prepare(mode: Mode, options: Options) -> Result<(), Error> {
    if mode.is_synchronous() {
        membarrier::register_fence()?;
    }
    if signal_of(mode).is_some() && !options.embedder_owns_signals {
        signal::install()?;
    }
    Ok(())
}

/// The mechanism of `mode` over a descriptor that was negotiated for it.
pub(super) fn on_uffd(
    mode: Mode,
    uffd: Uffd,
    kernel_faults: KernelFaults,
    page: PageSize,
    lock: Option<Arc<dyn FaultLock>>,
) -> Result<Arc<dyn Protection>, Error> {
    Ok(match mode {
        Mode::Sigbus => Arc::new(UffdProtection::sigbus(uffd)),
        Mode::Thread => Arc::new(UffdThread::start(uffd, kernel_faults, page, lock)?),
        Mode::Deferred => Arc::new(UffdProtection::deferred(uffd, Pagemap::open(page)?)),
        Mode::Mprotect | Mode::None => return Err(NO_UFFD),
    })
}

/// The error for a mode that uses none.
pub(super) const NO_UFFD: Error = Error::BadArgument("modes mprotect and none track without a userfaultfd");

/// A descriptor for `mode`, not negotiated yet.
pub(super) fn open_uffd(probe: &Probe, mode: Mode) -> Result<(Opened, KernelFaults), Error> {
    let wanted = if mode == Mode::Thread { KernelFaults::Delivered } else { KernelFaults::Refused };
    probe
        .open_uffd(wanted)
        .map_err(|errno| Error::ModeUnavailable { mode, why: format!("userfaultfd cannot be opened: {errno}") })
}

/// The features that a descriptor for `mode` must have been asked for.
pub(super) fn needed_uffd_features(mode: Mode) -> u64 {
    let own = match mode {
        Mode::Sigbus => feature::SIGBUS,
        Mode::Deferred => feature::WP_ASYNC,
        Mode::Thread | Mode::Mprotect | Mode::None => 0,
    };
    feature::WP | own
}

/// The features that a descriptor for `mode` is asked for: the needed ones, and useful ones
/// that the kernel has.
pub(super) fn uffd_features(probe: &Probe, mode: Mode) -> u64 {
    let kinds = [(Facility::WpUnpopulated, feature::WP_UNPOPULATED), (Facility::WpShmem, feature::WP_SHMEM)];
    let wanted = [(Facility::ThreadId, feature::THREAD_ID), (Facility::ExactAddress, feature::EXACT_ADDRESS)];
    let told = if mode == Mode::Thread { probe.feature_bits(&wanted) } else { 0 };
    needed_uffd_features(mode) | probe.feature_bits(&kinds) | told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::probe::{has_or_skips, skip};

    #[test]
    fn the_next_best_mode_is_taken_and_says_why() {
        if !has_or_skips(Mode::Sigbus) {
            return;
        }
        let best = |hidden| Probe::with_hidden(hidden).best_synchronous().unwrap();
        assert_eq!(best("").0, Mode::Sigbus);
        let (mode, why) = best("sigbus");
        assert_eq!(mode, Mode::Thread);
        assert!(why.contains("CODEWARDEN_HIDE"), "{why}");
        // Without WP_UNPOPULATED pages are populated first.
        assert_eq!(best("wp_unpopulated").0, Mode::Sigbus);
        assert_eq!(best("wp_unpopulated,pagemap_wp").0, Mode::Sigbus);
        for hidden in ["uffd", "wp", "wp_unpopulated,populate", "uffd_syscall,uffd_device"] {
            assert_eq!(best(hidden).0, Mode::Mprotect, "{hidden}");
        }
    }

    /// Without membarrier no synchronous mode is available, and none is named.
    #[test]
    fn the_best_mode_is_one_that_can_be_had() {
        for (_, hidden, _) in Facility::NAMES {
            let probe = Probe::with_hidden(hidden);
            match probe.best_synchronous() {
                Ok((mode, _)) => assert_eq!(probe.check(mode), Ok(()), "{hidden}"),
                Err(error) => {
                    assert_eq!(hidden, "membarrier");
                    let text = error.to_string();
                    assert!(text.contains("a synchronous mode cannot be had") && text.contains("remove it"), "{text}");
                }
            }
        }
    }

    /// Hides each facility, alone or with another. A mode that is unavailable names itself, the
    /// hidden facility and the list, and never the kernel.
    #[test]
    fn each_mode_says_what_is_hidden_from_it() {
        // Of two that stand for each other an older kernel lacks one, hidden or not.
        let has_all = |mode: &Mode| needs(*mode).iter().flat_map(|either| *either).all(|&each| finds_or_skips(each));
        let modes: Vec<_> = Mode::ALL.into_iter().filter(has_all).collect();
        for (first, first_name, _) in Facility::NAMES {
            for (second, second_name, _) in Facility::NAMES {
                let probe = Probe::with_hidden(&format!("{first_name},{second_name}"));
                for &mode in &modes {
                    let Err(error) = probe.check(mode) else { continue };
                    let text = error.to_string();
                    let is_named = [first, second].iter().any(|facility| text.contains(facility.name()));
                    assert!(text.starts_with(&format!("tracking mode {mode} ")), "{text}");
                    assert!(is_named && text.contains("hidden by CODEWARDEN_HIDE; remove it"), "{text}");
                    assert!(
                        needs(mode).iter().flat_map(|either| *either).any(|needed| text.contains(needed.name())),
                        "{text}"
                    );
                    assert!(!text.contains("Linux") && !text.contains("kernel ("), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_blocked_signal_is_reported_when_a_region_is_added() {
        for (mode, signo, name) in [(Mode::Sigbus, libc::SIGBUS, "SIGBUS"), (Mode::Mprotect, libc::SIGSEGV, "SIGSEGV")]
        {
            if !has_or_skips(mode) {
                continue;
            }
            for embedder_owns_signals in [false, true] {
                let options = Options { embedder_owns_signals };
                let refused = signal::with_all_blocked(|| {
                    assert!(signal::is_blocked_here(signo));
                    open(mode, PageSize::host(), options, None).map(drop)
                });
                let text = refused.unwrap_err().to_string();
                assert!(text.contains(name) && text.contains(mode.name()) && text.contains("unblock"), "{text}");
            }
        }
        for mode in [Mode::Thread, Mode::Deferred, Mode::None] {
            let opened = signal::with_all_blocked(|| open(mode, PageSize::host(), Options::default(), None));
            assert_eq!(opened.map(drop), Probe::of_this_process().check(mode), "{mode}");
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
            let error = open_with(&probe, mode, PageSize::host(), Options::default(), None).unwrap_err();
            assert!(matches!(error, Error::ModeUnavailable { mode: at, .. } if at == mode), "{error}");
        }
        for mode in Mode::ALL {
            let opened = open(mode, PageSize::host(), Options::default(), None);
            assert_eq!(opened.map(|opened| opened.mode()), Probe::of_this_process().check(mode).map(|()| mode));
        }
    }

    /// Whether the probe has it; reports a skip if not.
    fn finds_or_skips(facility: Facility) -> bool {
        Probe::with_hidden("").why_missing(facility).map(skip).is_none()
    }

    #[test]
    fn thread_mode_without_kernel_faults_says_so() {
        use crate::protection::contract::KernelWrites;
        if !has_or_skips(Mode::Thread) || !finds_or_skips(Facility::UserModeOnly) {
            return;
        }
        let kernel_writes = |hidden| {
            let probe = Probe::with_hidden(hidden);
            open_with(&probe, Mode::Thread, PageSize::host(), Options::default(), None).unwrap().kernel_writes()
        };
        if finds_or_skips(Facility::UserModeOnly) {
            assert_eq!(kernel_writes("kernel_faults"), KernelWrites::Refused);
        }
        if finds_or_skips(Facility::KernelFaults) {
            assert_eq!(kernel_writes(""), KernelWrites::Tracked);
        }
    }

    #[test]
    fn either_door_is_enough() {
        for (door, hidden) in [(Facility::UffdDevice, "uffd_syscall"), (Facility::UffdSyscall, "uffd_device")] {
            if finds_or_skips(door) && has_or_skips(Mode::Sigbus) {
                let probe = Probe::with_hidden(hidden);
                assert!(
                    open_with(&probe, Mode::Sigbus, PageSize::host(), Options::default(), None).is_ok(),
                    "{hidden}"
                );
            }
        }
    }
}
