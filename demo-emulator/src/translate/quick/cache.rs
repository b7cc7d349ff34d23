//! The guest's integer registers in host registers, and the known constants.
//!
//! Each value is in the hart as well, so a host register can be given away at any time.

use super::asm::{Host, R8, R9, R10, R11, R12, R13, R14, R15, RBP, RBX};

/// The host registers that hold guest registers; the first ones survive a call.
const HOSTS: [Host; 10] = [RBX, RBP, R12, R13, R14, R15, R8, R9, R10, R11];

/// The number of host registers that survive a call.
const PRESERVED: usize = 6;

const NONE: u8 = 0xff;

/// Which host register holds which guest register.
pub(super) struct Cache {
    /// The guest register in each host register.
    guests: [u8; HOSTS.len()],
    /// The time of each host register's last use.
    used: [u32; HOSTS.len()],
    now: u32,
    /// The place in `HOSTS` of each guest register.
    places: [u8; 32],
    /// The guest registers whose value is known: one bit for each.
    known: u32,
    constants: [u64; 32],
}

impl Cache {
    /// Only register 0 is known.
    pub(super) fn new() -> Self {
        Self {
            guests: [NONE; HOSTS.len()],
            used: [0; HOSTS.len()],
            now: 0,
            places: [NONE; 32],
            known: 1,
            constants: [0; 32],
        }
    }

    /// The value of a guest register, if it is known.
    pub(super) fn known(&self, guest: u8) -> Option<u64> {
        (self.known & 1 << guest != 0).then(|| self.constants[usize::from(guest)])
    }

    /// The host register with a guest register's value, if there is one.
    pub(super) fn find(&mut self, guest: u8) -> Option<Host> {
        let place = self.places[usize::from(guest)];
        (place != NONE).then(|| self.touch(usize::from(place)))
    }

    /// A host register for a new value: not one of the last that were used. Until it is
    /// [set](Self::set) it counts as free.
    pub(super) fn take(&mut self) -> Host {
        let oldest = (0..HOSTS.len()).min_by_key(|&place| match self.guests[place] {
            NONE => 0,
            _ => self.used[place],
        });
        let place = oldest.unwrap_or(0);
        self.free(place);
        self.touch(place)
    }

    /// The guest register has the value of this host register: one that was taken, or its own.
    pub(super) fn set(&mut self, guest: u8, host: Host) {
        let place = self.place_of(host);
        self.forget(guest);
        self.free(place);
        self.guests[place] = guest;
        self.places[usize::from(guest)] = place as u8;
    }

    /// The guest register's known value is in this host register as well.
    pub(super) fn set_known(&mut self, guest: u8, host: Host) {
        let known = self.known;
        self.set(guest, host);
        self.known = known;
    }

    /// The guest register has this value.
    pub(super) fn set_constant(&mut self, guest: u8, value: u64) {
        self.forget(guest);
        self.known |= 1 << guest;
        self.constants[usize::from(guest)] = value;
    }

    /// The guest register has another value, which only the hart has.
    pub(super) fn forget(&mut self, guest: u8) {
        let place = self.places[usize::from(guest)];
        if place != NONE {
            self.free(usize::from(place));
        }
        self.known &= !(1 << guest);
    }

    /// A call has changed the host registers that it may change.
    pub(super) fn pass_call(&mut self) {
        (PRESERVED..HOSTS.len()).for_each(|place| self.free(place));
    }

    fn place_of(&self, host: Host) -> usize {
        HOSTS.iter().position(|&other| other == host).unwrap_or(0)
    }

    fn touch(&mut self, place: usize) -> Host {
        self.now += 1;
        self.used[place] = self.now;
        HOSTS[place]
    }

    fn free(&mut self, place: usize) {
        let guest = std::mem::replace(&mut self.guests[place], NONE);
        if guest != NONE {
            self.places[usize::from(guest)] = NONE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_is_given_away() {
        let mut cache = Cache::new();
        let hosts: Vec<Host> = (1..=10)
            .map(|guest| {
                let host = cache.take();
                cache.set(guest, host);
                host
            })
            .collect();
        assert_eq!(cache.find(1), Some(hosts[0]));
        assert_eq!(cache.take(), hosts[1]);
        assert_eq!((cache.find(2), cache.find(3)), (None, Some(hosts[2])));
    }

    #[test]
    fn a_new_value_ends_the_knowledge_of_the_old_one() {
        let mut cache = Cache::new();
        cache.set_constant(5, 77);
        let host = cache.take();
        cache.set_known(5, host);
        assert_eq!((cache.known(5), cache.find(5)), (Some(77), Some(host)));
        cache.set(5, host);
        assert_eq!((cache.known(5), cache.find(5)), (None, Some(host)));
        cache.set_constant(5, 78);
        assert_eq!((cache.known(5), cache.find(5)), (Some(78), None));
        cache.forget(5);
        assert_eq!((cache.known(5), cache.known(0)), (None, Some(0)));
    }

    #[test]
    fn a_call_leaves_what_it_preserves() {
        let mut cache = Cache::new();
        for guest in 1..=10 {
            let host = cache.take();
            cache.set(guest, host);
        }
        cache.pass_call();
        let left: Vec<u8> = (1..=10).filter(|&guest| cache.find(guest).is_some()).collect();
        assert_eq!(left, [1, 2, 3, 4, 5, 6]);
    }
}
