//! The time that a test may take. One that takes longer hangs, and is ended.

/// `seconds`, times the number in `CODEWARDEN_LIMIT_TIMES`: a virtual machine that translates is slow.
pub(crate) fn limit_s(seconds: u32) -> u32 {
    let times = std::env::var("CODEWARDEN_LIMIT_TIMES").map_or(1, |times| times.parse().expect("a number"));
    seconds * times
}
