//! The flags of open and fcntl. riscv64 has the asm-generic numbers, as x86-64 has; aarch64 has
//! others for four of them.

/// `O_LARGEFILE`, which libc's headers give as 0.
const LARGE_FILE: u64 = if cfg!(target_arch = "aarch64") { 0o400_000 } else { 0o100_000 };

/// The numbers of the guest and of the host.
const FLAGS: [[u64; 2]; 4] = [
    [0o40_000, libc::O_DIRECT as u64],
    [0o100_000, LARGE_FILE],
    [0o200_000, libc::O_DIRECTORY as u64],
    [0o400_000, libc::O_NOFOLLOW as u64],
];

/// The host's flags for the guest's.
pub(super) fn to_host(flags: u64) -> u64 {
    exchanged(flags, 0, 1)
}

/// The guest's flags for the host's.
pub(super) fn to_guest(flags: u64) -> u64 {
    exchanged(flags, 1, 0)
}

fn exchanged(flags: u64, from: usize, to: usize) -> u64 {
    let rest = FLAGS.iter().fold(flags, |rest, numbers| rest & !numbers[from]);
    FLAGS.iter().filter(|numbers| flags & numbers[from] != 0).fold(rest, |all, numbers| all | numbers[to])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_flags_become_the_hosts_and_back() {
        // O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC | O_RDWR
        let guest = 0o400_000 | 0o200_000 | 0o2_000_000 | 2;
        let host = (libc::O_NOFOLLOW | libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_RDWR) as u64;
        assert_eq!(to_host(guest), host);
        for flags in [guest, 0, 0o40_000, 0o100_001, 0o140_000] {
            assert_eq!(to_guest(to_host(flags)), flags, "{flags:o}");
        }
    }
}
