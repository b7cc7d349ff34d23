//! Numbers for people: the states of the pages, the pages with the most writes, the mode of a page,
//! the descriptors in use.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use crate::addr::{GuestAddr, HostAddr, HostRange};
use crate::mode::Mode;
use crate::page_table::PageState;
use crate::protection::name_of;
use crate::sys::clock::coarse_ms;

use super::observer::PageData;
use super::region::Region;
use super::regions::Tracker;

/// Pages that a translator ever looked at, by their state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct PagesByState {
    /// Writable; no translation of them can be reached.
    pub open: u64,
    /// Write-protected, or about to be.
    pub protected: u64,
    /// Writable; translations of them compare themselves.
    pub self_checking: u64,
}

/// The number of writes to a page while it had translations, and the last writer.
/// Racing writes may be missed: these are numbers for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HotPage {
    /// First byte of the page.
    pub page: GuestAddr,
    /// Whether it is self-checking now.
    pub is_self_checking: bool,
    /// Faults at lines that hold code.
    pub code_hits: u32,
    /// Faults at other lines.
    pub data_hits: u32,
    /// Harvests that found it written.
    pub harvested: u32,
    /// Announced writes of the kernel, up to 65,535.
    pub kernel_hits: u32,
    /// How often it became self-checking again soon after it had cooled.
    pub relapses: u32,
    /// The byte that was hit last, if a fault reported it.
    pub last_byte: Option<GuestAddr>,
    /// The host instruction that stored last, if a fault reported it. An embedder can
    /// map it to the guest's pc, if it knows from which guest instruction its code was
    /// made.
    pub last_pc: Option<HostAddr>,
}

impl HotPage {
    /// All writes.
    pub fn hits(&self) -> u64 {
        [self.code_hits, self.data_hits, self.harvested, self.kernel_hits].into_iter().map(u64::from).sum()
    }
}

impl<D: PageData> Region<D> {
    fn count_states(&self, pages: &mut PagesByState) {
        self.pages.existing(0..self.pages.pages()).for_each(|(_, desc)| {
            let word = desc.word.load();
            match word.state() {
                PageState::Protected | PageState::Protecting => pages.protected += 1,
                PageState::SelfChecking => pages.self_checking += 1,
                _ if word.is_pristine() => {}
                _ => pages.open += 1,
            }
        });
    }

    fn list_hot(&self, hot: &mut Vec<HotPage>) {
        let now_ms = coarse_ms();
        self.pages.existing(0..self.pages.pages()).for_each(|(page, desc)| {
            let totals = desc.history.totals();
            let first = self.guest_of(page);
            // A store to a deferred region makes no fault.
            let (code_hits, harvested) =
                if self.mode == Mode::Deferred { (0, totals.code_hits) } else { (totals.code_hits, 0) };
            let found = HotPage {
                page: first,
                is_self_checking: desc.word.load().state() == PageState::SelfChecking,
                code_hits,
                data_hits: totals.data_hits,
                harvested,
                kernel_hits: totals.kernel_hits,
                relapses: desc.history.read(now_ms, false).relapses,
                last_byte: totals.last_byte.map(|byte| GuestAddr(first.0 + byte as u64)),
                last_pc: (totals.last_pc != 0).then_some(HostAddr(totals.last_pc)),
            };
            if found.hits() > 0 {
                hot.push(found);
            }
        });
    }
}

impl<D: PageData> Tracker<D> {
    /// The mechanism that learns of writes at `guest`; `None` outside every region.
    pub fn mode_at(&self, guest: GuestAddr) -> Option<Mode> {
        Some(self.gate.region_at(guest)?.mode())
    }

    /// The addresses in this process from the page that holds `guest` to the end of its region; `None`
    /// outside every
    /// region.
    pub fn host_from(&self, guest: GuestAddr) -> Option<HostRange> {
        let region = self.gate.region_at(guest)?;
        let pages = region.page_of(guest).0..region.pages.pages();
        Some(region.host_of(&pages))
    }

    /// The numbers of the descriptors that the regions keep open. In some emulators the guest
    /// shares its descriptors with the process. Such an emulator keeps the guest from closing
    /// or replacing these: once all of a mode's are gone, so is the protection of its regions.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let (mut descriptors, mut asked) = (Vec::new(), BTreeSet::new());
        self.gate.for_each_region(|region| {
            if asked.insert(name_of(&region.protection)) {
                descriptors.extend(region.protection.descriptors());
            }
        });
        descriptors
    }

    /// The number of pages in each state. It looks at every page that a translator ever
    /// looked at.
    pub fn pages_by_state(&self) -> PagesByState {
        let mut pages = PagesByState::default();
        self.gate.for_each_region(|region| region.count_states(&mut pages));
        pages
    }

    /// Memory of the descriptors of pages, in bytes.
    pub(crate) fn descriptor_bytes(&self) -> usize {
        let mut bytes = 0;
        self.gate.for_each_region(|region| bytes += region.pages.bytes());
        bytes
    }

    /// The pages that were written to most, `most` of them at most, the hottest
    /// first. It looks at every page that a translator ever looked at.
    pub fn hottest_pages(&self, most: usize) -> Vec<HotPage> {
        let mut hot = Vec::new();
        self.gate.for_each_region(|region| region.list_hot(&mut hot));
        hot.sort_by_key(|page| (core::cmp::Reverse(page.hits()), page.page.0));
        hot.truncate(most);
        hot
    }
}
