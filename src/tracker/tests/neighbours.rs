//! Pages that are protected together with one that a translator begins on.

use std::sync::Arc;

use super::super::{BeginError, RegionOptions, Tracker};
use super::NoObserver;
use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::policy::Adaptive;
use crate::protection::model::Model;
use crate::protection::{Access, Mode, Protection};

const PAGE: PageSize = PageSize::from_shift(12);
const HOST: HostAddr = HostAddr(5 << 44);

/// Read-only pages are protected in one call. Those that are not attached, or not read-only, are left out.
#[test]
fn a_page_that_is_not_attached_is_no_neighbour() {
    let tracker = Tracker::with_policy(Arc::new(NoObserver), Arc::new(Adaptive::new()));
    let host = HostRange::of_pages(HOST, 8, PAGE);
    let model = Arc::new(Model::new(Mode::Sigbus, host, PAGE));
    let open = |_: &mut _| Ok(model.clone() as Arc<dyn Protection>);
    let options = RegionOptions::new(GuestAddr(0), host, Mode::Sigbus).with_access(Access::Read);
    tracker.add_region_on(options, None, open).unwrap();
    let guest = |page: usize| GuestAddr((page << PAGE.shift()) as u64);
    tracker.change_mapping(guest(1), 1).unwrap().finish_unmapped().unwrap();
    tracker.set_access(guest(6), PAGE.bytes() as u64, Access::ReadWrite).unwrap();
    tracker.begin(guest(3)).unwrap();
    let protected = || tracker.pages_by_state().protected;
    assert!(tracker.begin(guest(5)).is_ok() && protected() == 4, "{} of 2, 3, 4, 5", protected());
    assert_eq!(tracker.begin(guest(1)).map(drop), Err(BeginError::Untrackable));
    tracker.begin(guest(0)).unwrap();
    assert_eq!(protected(), 5);
}
