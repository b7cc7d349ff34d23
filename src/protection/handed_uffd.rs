//! A userfaultfd that the embedder has opened, as an object of the `userfaultfd` crate.
//!
//! A process may have the right to open one only at its start, and give it up before it runs a
//! guest. It opens one for each region by [`open_uffd`], or by the crate's own builder with
//! [`uffd_features`], and gives it to
//! [`Tracker::add_region_on_uffd`](crate::tracker::Tracker::add_region_on_uffd). (A descriptor
//! tracks the memory of the process that opened it. One that another process opened and sent is of
//! no use here.)
//!
//! # Safety
//!
//! A descriptor that changes its owner is given up by the previous one.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use userfaultfd::FeatureFlags;

use super::choice;
use super::contract::{FaultLock, Options, Protection};
use crate::addr::PageSize;
use crate::error::Error;
use crate::mode::Mode;
use crate::sys::probe::Probe;
use crate::sys::uffd::{KernelFaults, Uffd, feature};
use crate::sys::{populate, uffd_calls};

/// The features to ask for when a userfaultfd is opened for a region of `mode`. A bit that the
/// kernel lacks makes [`UffdBuilder::create`](userfaultfd::UffdBuilder::create) fail.
pub fn uffd_features(mode: Mode) -> FeatureFlags {
    FeatureFlags::from_bits_retain(choice::uffd_features(&Probe::of_this_process(), mode))
}

/// Opens a userfaultfd for a region of `mode`, by the system call or by `/dev/userfaultfd`,
/// depending on this process's permissions.
///
/// # Errors
///
/// [`Error::ModeUnavailable`]: the missing facility. [`Error::BadArgument`] for a mode that
/// uses none.
pub fn open_uffd(mode: Mode) -> Result<userfaultfd::Uffd, Error> {
    let probe = Probe::of_this_process();
    probe.check(mode)?;
    check_uses_one(mode)?;
    let fd = choice::open_uffd(&probe, mode)?.0.into_fd();
    uffd_calls::api(fd.as_fd(), choice::uffd_features(&probe, mode))
        .map_err(|errno| Error::system("UFFDIO_API", 0, 0, errno))?;
    // SAFETY: a userfaultfd that nothing else owns.
    Ok(unsafe { userfaultfd::Uffd::from_raw_fd(fd.into_raw_fd()) })
}

fn check_uses_one(mode: Mode) -> Result<(), Error> {
    if matches!(mode, Mode::Mprotect | Mode::None) {
        return Err(choice::NO_UFFD);
    }
    Ok(())
}

/// The mechanism of `mode` over the embedder's descriptor.
pub(crate) fn open_on(
    uffd: userfaultfd::Uffd,
    mode: Mode,
    page: PageSize,
    options: Options,
    lock: Option<Arc<dyn FaultLock>>,
) -> Result<Arc<dyn Protection>, Error> {
    check_uses_one(mode)?;
    choice::check_signal(mode)?;
    // (Its `into_raw_fd` closes the descriptor.)
    let uffd = ManuallyDrop::new(uffd);
    // SAFETY: the object owned it, and is not used or dropped any more.
    let fd = unsafe { OwnedFd::from_raw_fd(uffd.as_raw_fd()) };
    let features = uffd_calls::features_of(fd.as_fd())?;
    let needed = choice::needed_uffd_features(mode);
    // These two decide how a fault is reported.
    let told_by = feature::SIGBUS | feature::WP_ASYNC;
    if features & needed != needed || (features ^ needed) & told_by != 0 {
        return Err(Error::BadArgument(
            "the userfaultfd was not opened with the features of the region's mode: ask for protection::uffd_features",
        ));
    }
    choice::prepare(mode, options)?;
    // The kernel has no call that tells whether it delivers the faults of the kernel's own
    // writes.
    // The probe would open descriptors, which this process may no longer be able to do.
    let is_populated = features & (feature::WP_UNPOPULATED | feature::WP_ASYNC) == 0;
    let check = is_populated.then(|| populate::check_on(fd.as_fd())).transpose()?;
    let uffd = Uffd::of_embedder(fd, features, check)?;
    choice::on_uffd(mode, uffd, KernelFaults::Refused, page, lock)
}
