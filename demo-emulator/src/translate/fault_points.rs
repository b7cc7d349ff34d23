//! The places in a block's host code that can fault, in few bytes: there are about as many of them
//! as loads and stores in the whole program, and a fault is rare.
//!
//! Each point is three numbers: the distance of its start from the end of the point before, its
//! length, and the distance of its guest instruction from that of the point before. A number takes
//! seven bits of each byte, the lowest first. The highest bit of a byte says that more follow. So
//! most points take three bytes instead of twelve.

use std::iter;

/// Host code of one guest instruction that can fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FaultPoint {
    /// Offset of the first byte.
    pub(super) start: u32,
    /// Offset one past the last.
    pub(super) end: u32,
    /// Distance of the guest instruction from the block's first.
    pub(super) guest_offset: i32,
}

/// The points of a block.
#[derive(Debug)]
pub(super) struct FaultPoints(Box<[u8]>);

impl FaultPoints {
    /// These points, in the order of their starts. They do not overlap.
    pub(super) fn new(points: &[FaultPoint]) -> Self {
        let mut bytes = Vec::with_capacity(4 * points.len());
        let (mut end, mut guest_offset) = (0, 0);
        for point in points {
            debug_assert!(point.start >= end && point.end >= point.start);
            put(&mut bytes, point.start.wrapping_sub(end));
            put(&mut bytes, point.end.wrapping_sub(point.start));
            put(&mut bytes, zigzag(point.guest_offset.wrapping_sub(guest_offset)));
            (end, guest_offset) = (point.end, point.guest_offset);
        }
        Self(bytes.into())
    }

    /// The points again.
    fn iter(&self) -> impl Iterator<Item = FaultPoint> {
        let mut bytes = self.0.iter().copied();
        let (mut end, mut guest_offset) = (0_u32, 0_i32);
        iter::from_fn(move || {
            let start = end.wrapping_add(take(&mut bytes)?);
            end = start.wrapping_add(take(&mut bytes)?);
            guest_offset = guest_offset.wrapping_add(from_zigzag(take(&mut bytes)?));
            Some(FaultPoint { start, end, guest_offset })
        })
    }

    /// The guest instruction of the host code at `offset`, as its distance from the block's first.
    /// Async-signal-safe.
    pub(super) fn guest_offset(&self, offset: u32) -> Option<i32> {
        let point = self.iter().find(|point| offset < point.end)?;
        (point.start <= offset).then_some(point.guest_offset)
    }

    /// Its size on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.len()
    }
}

/// Small numbers for the distances near 0, to both sides: a jump backward takes no more bytes.
fn zigzag(distance: i32) -> u32 {
    (distance << 1 ^ distance >> 31) as u32
}

fn from_zigzag(number: u32) -> i32 {
    (number >> 1) as i32 ^ -((number & 1) as i32)
}

fn put(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The next number. `None` at the end.
fn take(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_come_back_as_they_were() {
        let points = [
            (0, 1, 0),
            (1, 5, 4),
            (127, 128, i32::MAX),
            (300, 300 + 128, i32::MIN),
            (1 << 20, (1 << 20) + 9, -2),
            (u32::MAX - 1, u32::MAX, 126),
        ]
        .map(|(start, end, guest_offset)| FaultPoint { start, end, guest_offset });
        for count in 0..=points.len() {
            let some = &points[..count];
            assert!(FaultPoints::new(some).iter().eq(some.iter().copied()));
        }
    }

    #[test]
    fn a_point_of_short_distances_takes_three_bytes() {
        let points =
            [(9, 13, 6), (20, 27, 2)].map(|(start, end, guest_offset)| FaultPoint { start, end, guest_offset });
        assert_eq!(FaultPoints::new(&points).heap_bytes(), 6);
    }

    #[test]
    fn only_the_code_of_a_point_has_a_guest_instruction() {
        let points = [(4, 9, 6), (9, 12, 2), (20, 24, 8)];
        let table = FaultPoints::new(&points.map(|(start, end, guest_offset)| FaultPoint { start, end, guest_offset }));
        for offset in 0..30 {
            let wanted = points.iter().find(|(start, end, _)| (*start..*end).contains(&offset)).map(|point| point.2);
            assert_eq!(table.guest_offset(offset), wanted, "{offset}");
        }
    }
}
