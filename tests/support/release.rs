//! The kernel's release, for what kernels do differently.

/// Whether Linux `major.minor` or a newer one runs here.
pub(crate) fn is_since(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(|number| number.parse::<u32>());
    let mut number = || numbers.next().and_then(Result::ok).expect("a number");
    (number(), number()) >= (major, minor)
}
