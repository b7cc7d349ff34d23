//! The places in a block's host code that can fault, in few bytes: there are about as many of them
//! as loads and stores in the whole program, and a fault is rare.
//!
//! Each point is three numbers or four: the distance of its start from the end of the point before,
//! its length, the distance of its guest instruction from that of the point before, and the distance
//! of that instruction from its [restart](super::restart), unless it is its own. A number takes
//! seven bits of each byte, the lowest first. The highest bit of a byte says that more follow. So
//! most points take three bytes instead of sixteen.

use std::iter;

use smallvec::SmallVec;

/// Points of up to this size need no memory of their own. Most blocks have no more than four accesses.
const INLINE_BYTES: usize = 16;

/// Host code of one guest instruction that can fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FaultPoint {
    /// Offset of the first byte.
    pub(super) start: u32,
    /// Offset one past the last.
    pub(super) end: u32,
    /// Distance of the guest instruction from the block's first.
    pub(super) guest_offset: i32,
    /// Distance of its restart from the block's first instruction.
    pub(super) restart_offset: i32,
    /// Whether the restart is [far](super::restart).
    pub(super) is_far: bool,
}

/// The points of a block.
#[derive(Debug)]
pub(super) struct FaultPoints(Bytes);

type Bytes = SmallVec<[u8; INLINE_BYTES]>;

/// Bytes on the stack, for nearly every block.
type Scratch = SmallVec<[u8; 256]>;

/// The lowest bit of a point's third number: a fourth follows.
const HAS_RESTART: u64 = 1;
/// The lowest bit of the fourth number.
const IS_FAR: u64 = 1;

impl FaultPoints {
    /// These points, in the order of their starts. They do not overlap.
    pub(super) fn new(points: &[FaultPoint]) -> Self {
        // Then the block's own are allocated once, in their length: no allocation grows and shrinks.
        let mut bytes = Scratch::new();
        let (mut end, mut guest_offset) = (0, 0);
        for point in points {
            debug_assert!(point.start >= end && point.end >= point.start);
            put(&mut bytes, (point.start - end).into());
            put(&mut bytes, (point.end - point.start).into());
            let back = point.guest_offset.wrapping_sub(point.restart_offset);
            let distance = zigzag(point.guest_offset.wrapping_sub(guest_offset)) << 1;
            // The first access of a loop is its own restart, in an earlier round.
            if back == 0 && !point.is_far {
                put(&mut bytes, distance);
            } else {
                put(&mut bytes, distance | HAS_RESTART);
                put(&mut bytes, zigzag(back) << 1 | if point.is_far { IS_FAR } else { 0 });
            }
            (end, guest_offset) = (point.end, point.guest_offset);
        }
        Self(Bytes::from_slice(&bytes))
    }

    /// The points again.
    fn iter(&self) -> impl Iterator<Item = FaultPoint> {
        let mut bytes = self.0.iter().copied();
        let (mut end, mut guest_offset) = (0_u32, 0_i32);
        iter::from_fn(move || {
            let start = end.wrapping_add(take(&mut bytes)? as u32);
            end = start.wrapping_add(take(&mut bytes)? as u32);
            let distance = take(&mut bytes)?;
            guest_offset = guest_offset.wrapping_add(from_zigzag(distance >> 1));
            let back = if distance & HAS_RESTART == 0 { 0 } else { take(&mut bytes)? };
            let (restart_offset, is_far) = (guest_offset.wrapping_sub(from_zigzag(back >> 1)), back & IS_FAR != 0);
            Some(FaultPoint { start, end, guest_offset, restart_offset, is_far })
        })
    }

    /// The point whose host code is at `offset`. Async-signal-safe.
    pub(super) fn at(&self, offset: u32) -> Option<FaultPoint> {
        self.iter().find(|point| offset < point.end).filter(|point| point.start <= offset)
    }

    /// Its size on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        if self.0.spilled() { self.0.capacity() } else { 0 }
    }
}

/// Small numbers for the distances near 0, to both sides: a jump backward takes no more bytes.
fn zigzag(distance: i32) -> u64 {
    ((distance << 1 ^ distance >> 31) as u32).into()
}

fn from_zigzag(number: u64) -> i32 {
    (number >> 1) as i32 ^ -((number & 1) as i32)
}

fn put(bytes: &mut Scratch, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The next number. `None` at the end.
fn take(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point((start, end, guest_offset, back): (u32, u32, i32, i32)) -> FaultPoint {
        let restart_offset = guest_offset.wrapping_sub(back);
        FaultPoint { start, end, guest_offset, restart_offset, is_far: start % 2 == 0 && end > 4 }
    }

    #[test]
    fn points_come_back_as_they_were() {
        let points = [
            (0, 1, 0, 0),
            (1, 5, 4, 4),
            (127, 128, i32::MAX, -1),
            (300, 300 + 128, i32::MIN, 0),
            (1 << 20, (1 << 20) + 9, -2, i32::MIN),
            (u32::MAX - 1, u32::MAX, 126, i32::MAX),
        ]
        .map(point);
        for count in 0..=points.len() {
            let some = &points[..count];
            assert!(FaultPoints::new(some).iter().eq(some.iter().copied()));
        }
    }

    #[test]
    fn a_point_of_short_distances_takes_three_bytes_and_one_more_for_its_restart() {
        let points = [(9, 13, 6, 0), (21, 27, 2, 0), (30, 34, 8, 6)].map(point);
        for (count, len_bytes) in [(2, 6), (3, 10)] {
            let points = FaultPoints::new(&points[..count]);
            assert_eq!((points.0.len(), points.heap_bytes()), (len_bytes, 0));
        }
    }

    #[test]
    fn only_the_code_of_a_point_has_a_guest_instruction() {
        let points = [(4, 9, 6, 0), (9, 12, 2, 2), (20, 24, 8, 0)].map(point);
        let table = FaultPoints::new(&points);
        for offset in 0..30 {
            let wanted = points.iter().find(|point| (point.start..point.end).contains(&offset));
            assert_eq!(table.at(offset), wanted.copied(), "{offset}");
        }
    }
}
