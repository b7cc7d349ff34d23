//! One operation over a range that may have holes and several VMAs.
//!
//! `UFFDIO_WRITEPROTECT` over a span with an unregistered piece fails with ENOENT after
//! it has changed a part. Over several registered VMAs it works on new kernels only.
//! `mprotect` fails with ENOMEM at a hole in the same way. So the span is halved if the
//! call fails, down to one page, and grows again after a success. No memory map is
//! read: this runs in signal handlers too.

use rustix::io::Errno;

use crate::addr::{HostAddr, HostRange, PageSize};

/// Calls `apply` for parts of `range` until all of it is done. If a single page fails
/// with one of `split_on`, `leaf` decides: `Ok` goes on behind it.
pub(crate) fn split_on_error(
    range: HostRange,
    page: PageSize,
    split_on: &[Errno],
    mut apply: impl FnMut(usize, usize) -> Result<(), Errno>,
    mut leaf: impl FnMut(HostAddr, Errno) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let (mut at, end) = (range.start().0, range.end().0);
    let mut step = range.len();
    while at < end {
        let len = step.min(end - at);
        match apply(at, len) {
            Ok(()) => {
                at += len;
                step = len.saturating_mul(2);
            }
            Err(errno) if !split_on.contains(&errno) => return Err(errno),
            Err(errno) if len == page.bytes() => {
                leaf(HostAddr(at), errno)?;
                at += len;
                step = len;
            }
            Err(_) => step = page.floor(len / 2).max(page.bytes()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize::from_shift(12);

    /// Applies to 16 pages from page 16 on, of which `holes` fail. Returns the applied
    /// pages, the skipped ones and the number of calls.
    fn run(holes: &[usize]) -> (Vec<usize>, Vec<usize>, usize) {
        let range = HostRange::new(HostAddr(16 << 12), 16 << 12, PAGE).unwrap();
        let (mut done, mut skipped, mut calls) = (Vec::new(), Vec::new(), 0);
        split_on_error(
            range,
            PAGE,
            &[Errno::NOENT],
            |start, len| {
                calls += 1;
                let pages = start >> 12..(start + len) >> 12;
                if holes.iter().any(|hole| pages.contains(hole)) {
                    return Err(Errno::NOENT);
                }
                done.extend(pages);
                Ok(())
            },
            |page, _| {
                skipped.push(page.0 >> 12);
                Ok(())
            },
        )
        .unwrap();
        (done, skipped, calls)
    }

    #[test]
    fn whole_range_is_one_call() {
        assert_eq!(run(&[]), ((16..32).collect(), vec![], 1));
    }

    #[test]
    fn holes_are_skipped_and_nothing_else() {
        for holes in [vec![16], vec![31], vec![20, 21, 27], (16..32).collect()] {
            let (done, skipped, _) = run(&holes);
            assert_eq!(skipped, holes);
            assert_eq!(done, (16..32).filter(|page| !holes.contains(page)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn other_errors_end_it() {
        let range = HostRange::new(HostAddr(0x1000), 0x4000, PAGE).unwrap();
        let result = split_on_error(range, PAGE, &[Errno::NOENT], |_, _| Err(Errno::BUSY), |_, _| Ok(()));
        assert_eq!(result, Err(Errno::BUSY));
    }
}
