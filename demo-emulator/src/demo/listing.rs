//! A guest function before and after it was written.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::style::Style;
use crate::translate::disasm;

/// Columns of one instruction's text.
const TEXT: usize = 26;

/// The instructions of a block: address, and bytes with text.
pub(super) fn instructions(pc: u64, bytes: &[u8]) -> BTreeMap<u64, String> {
    disasm::guest_instructions(pc, bytes).into_iter().map(|inst| (inst.address, inst.text)).collect()
}

/// Both listings side by side; lines that differ have a star.
pub(super) fn before_and_after(pc: u64, before: &[u8], after: &[u8], style: Style) -> String {
    let (before, after) = (instructions(pc, before), instructions(pc, after));
    let mut text = format!("{:18}{:10}{:<TEXT$}  after\n", "", "", "before");
    let addresses: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for at in addresses {
        let [old, new] = [&before, &after].map(|side| side.get(at).map_or("", String::as_str));
        let mark = if old == new { ' ' } else { '*' };
        let line = format!("{mark} {:<10}{old:<TEXT$}  {new}", format!("{at:#x}"));
        let line = if old == new { line } else { style.strong(&line) };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:16}{}", "", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_and_new_lines_are_marked() {
        // li a0, 1; ret; and li a0, 2; ret with one more behind it.
        let before = [0x0010_0513u32, 0x0000_8067];
        let after = [0x0020_0513u32, 0x0000_8067, 0x0000_8067];
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let text = before_and_after(0x1000, &bytes(&before), &bytes(&after), Style::of_stdout());
        let marks: Vec<_> = text.lines().skip(1).map(|line| line.contains("* 0x")).collect();
        assert_eq!(marks, [true, false, true], "{text}");
    }
}
