//! What a claim and its page tell, and refuse.

use std::sync::Arc;

use super::super::{BeginError, Tracker};
use super::NoObserver;
use crate::addr::GuestAddr;
use crate::error::Error;
use crate::memory::guest_memory::GuestMemory;
use crate::mode::Mode;
use crate::protection::Access;

#[test]
fn the_bytes_of_a_claim_are_read_from_its_page_while_it_is_tracked() {
    let tracker = Tracker::new(Arc::new(NoObserver));
    let page = tracker.page_size().bytes();
    let start = 8 * page as u64;
    let memory = Arc::new(GuestMemory::anonymous(3 * page).unwrap());
    tracker.add_memory(GuestAddr(start), memory.clone(), Mode::None).unwrap();
    memory.write(page, &[1, 2, 3]).unwrap();
    memory.write(2 * page - 1, &[9]).unwrap();
    let at = |offset: usize| GuestAddr(start + offset as u64);
    let claim = tracker.begin(at(page + 5)).unwrap();
    let read = |offset: usize, len: usize| {
        let mut bytes = vec![0; len];
        tracker.read(&claim, at(offset), &mut bytes).map(|()| bytes)
    };
    assert_eq!(read(page + 1, 2), Ok(vec![2, 3]));
    assert_eq!(read(2 * page - 1, 1), Ok(vec![9]));
    assert_eq!(read(page, page).map(|bytes| bytes.len()), Ok(page));
    for (offset, len) in [(page - 1, 1), (2 * page, 1), (2 * page - 1, 2), (page, page + 1)] {
        assert!(matches!(read(offset, len), Err(BeginError::Failed(Error::BadRange { .. }))), "{offset} {len}");
    }

    // Reading would fault.
    tracker.set_access(at(page), page as u64, Access::None).unwrap();
    assert!(matches!(read(page, 1), Err(BeginError::Failed(Error::BadRange { .. }))));
    tracker.set_access(at(page), page as u64, Access::Read).unwrap();
    assert_eq!(read(page + 1, 2), Ok(vec![2, 3]));

    let data = tracker.data(at(page)).unwrap();
    assert!(data.is_own() && tracker.data(GuestAddr(start - 1)).is_none());
    assert_eq!(tracker.host_from(at(page + 7)).map(|host| host.len()), Some(2 * page));
    assert_eq!((tracker.host_from(GuestAddr(start - 1)), tracker.host_from(at(3 * page))), (None, None));
    tracker.remove_region(GuestAddr(start)).unwrap();
    assert!(matches!(read(page, 1), Err(BeginError::Failed(Error::NotTracked { .. }))));
    assert!(tracker.data(at(page)).is_none() && tracker.host_from(at(page)).is_none());
}
