//! A page that a writer opens again and again while a translator protects it. A kernel that cannot
//! protect a page before it is populated checks the result, and gives up in the end.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::super::{BeginError, RegionOptions, Tracker};
use super::NoObserver;
use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::{Busy, Permit};
use crate::protection::{Access, FaultSink, KernelWrites, Mode, Opening, Protection};
use crate::sys::ranges::WriteFault;

const PAGE: PageSize = PageSize::from_shift(12);

/// Never protects a page.
#[derive(Default)]
struct NeverProtects {
    sink: Mutex<Option<Arc<dyn FaultSink>>>,
    has_writer: AtomicBool,
}

impl std::fmt::Debug for NeverProtects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NeverProtects")
    }
}

impl Protection for NeverProtects {
    fn mode(&self) -> Mode {
        Mode::Sigbus
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
    }

    fn reserve(&self, _: HostRange, _: &Arc<dyn FaultSink>) -> Result<(), Error> {
        Ok(())
    }

    fn give_up(&self, _: HostRange) {}

    fn attach(&self, _: HostRange, sink: &Arc<dyn FaultSink>, _: Access, _: Permit<'_>) -> Result<(), Error> {
        *self.sink.lock().unwrap() = Some(sink.clone());
        Ok(())
    }

    fn detach(&self, _: HostRange, _: Permit<'_>) -> Result<(), Error> {
        *self.sink.lock().unwrap() = None;
        Ok(())
    }

    fn fence_threads(&self) -> Result<(), Error> {
        Ok(())
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        let sink = self.sink.lock().unwrap().clone();
        if self.has_writer.load(SeqCst) {
            sink.map(|sink| sink.on_write(&WriteFault { addr: range.start(), pc: None, tid: 0 }));
        }
        Err(Error::system("UFFDIO_WRITEPROTECT", range.start().0, range.len(), rustix::io::Errno::AGAIN))
    }

    fn unprotect(&self, _: HostRange, _: Opening<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn abandon(&self, _: HostRange, _: Opening<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(())
    }

    fn set_access(&self, _: HostRange, _: Access) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_page_that_is_written_all_the_time_is_busy() {
    let tracker = Tracker::new(Arc::new(NoObserver));
    let mechanism = Arc::new(NeverProtects::default());
    let host = HostRange::of_pages(HostAddr(7 << 44), 4, PAGE);
    let open = |_: &mut _| Ok(mechanism.clone() as Arc<dyn Protection>);
    tracker.add_region_on(RegionOptions::new(GuestAddr(0), host, mechanism.mode()), None, open).unwrap();
    for has_writer in [true, false, true] {
        mechanism.has_writer.store(has_writer, SeqCst);
        match tracker.begin(GuestAddr(0)).map(drop) {
            Err(BeginError::Busy(Busy::Written)) => assert!(has_writer),
            Err(BeginError::Failed(Error::System { errno: libc::EAGAIN, .. })) => assert!(!has_writer),
            other => panic!("{other:?}"),
        }
    }
    tracker.clear();
}
