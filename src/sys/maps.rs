//! The mappings of a range of host memory, as `/proc/self/maps` lists them.

use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::addr::{HostAddr, HostRange, PageSize};

/// The parts of `range` with one mapping each, in whole pages of `page`, in order; parts where
/// nothing is mapped are left out. None if the file cannot be read. Not for signal handlers.
///
/// A page that is larger than the kernel's may have several mappings: then it is a part.
pub(crate) fn mappings(range: HostRange, page: PageSize) -> Vec<HostRange> {
    let Ok(file) = File::open("/proc/self/maps") else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    let (start, end) = (range.start().0, range.end().0);
    let mapped: Vec<(usize, usize)> = lines
        .filter_map(|line| bounds(&line))
        .skip_while(|at| at.1 <= start)
        .take_while(|at| at.0 < end)
        .map(|at| (at.0.max(start), at.1.min(end)))
        .collect();
    let edges = mapped.iter().flat_map(|at| [at.0, at.1]);
    // The end of the range is whole pages, so rounding does not wrap.
    let mut cuts: Vec<usize> = edges.flat_map(|edge| [page.floor(edge), page.ceil(edge).unwrap_or(end)]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let is_mapped = |start: usize, end: usize| {
        let first = mapped.partition_point(|at| at.1 <= start);
        mapped.get(first).is_some_and(|at| at.0 < end)
    };
    let parts = cuts.windows(2).filter(|part| is_mapped(part[0], part[1]));
    parts.map(|part| HostRange::of_pages(HostAddr(part[0]), (part[1] - part[0]) >> page.shift(), page)).collect()
}

/// The first address of a mapping and the one behind it.
fn bounds(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mmap::{Mapping, set_access};

    #[test]
    fn each_mapping_is_a_part_of_its_own() {
        let host = PageSize::host();
        let large = PageSize::from_shift(host.shift() + 2);
        let memory = Mapping::anonymous(20 * host.bytes(), host).unwrap();
        let first = large.ceil(memory.range().start().0).unwrap();
        let pages = |from: usize, count: usize| HostRange::of_pages(HostAddr(first + from * host.bytes()), count, host);
        set_access(pages(2, 3), true, false).unwrap();
        set_access(pages(9, 3), false, false).unwrap();
        let found = |range, page| mappings(range, page);
        assert_eq!(found(pages(0, 12), host), [pages(0, 2), pages(2, 3), pages(5, 4), pages(9, 3)]);
        assert_eq!(found(pages(3, 1), host), [pages(3, 1)]);
        assert_eq!(found(pages(0, 12), large), [pages(0, 4), pages(4, 4), pages(8, 4)]);
        let beyond = HostRange::of_pages(HostAddr(host.bytes()), 1, host);
        assert_eq!(found(beyond, host), []);
    }
}
