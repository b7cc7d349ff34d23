//! `-d in_asm,out_asm`: guest and host code of each translation, in the style of QEMU's logs.

use std::fmt::Write;

use crate::cli::Log;
use crate::engine::{Event, Listener};
use crate::linux::log::LogFile;
use crate::symbols::Symbols;
use crate::translate::disasm;

/// Writes translations to the log.
#[derive(Debug)]
pub struct AsmLog {
    items: Log,
    log: LogFile,
    symbols: Symbols,
}

impl AsmLog {
    /// Logs `items`; guest functions are called by their names in `symbols`.
    pub fn new(items: Log, log: LogFile, symbols: Symbols) -> Self {
        Self { items, log, symbols }
    }
}

impl Listener for AsmLog {
    fn on_event(&self, event: &Event<'_>) {
        let Event::Translated { pc, bytes, host, .. } = event else { return };
        let mut text = String::new();
        // Writing to a string does not fail.
        if self.items.in_asm {
            let tier = if host.is_some() { "" } else { "  (tier 0)" };
            let name = self.symbols.name(*pc).unwrap_or_default();
            let _ = writeln!(text, "----------------\nIN: {name}{tier}\n{}", disasm::guest_listing(*pc, bytes));
        }
        if let (true, Some(block)) = (self.items.out_asm, host) {
            let _ = writeln!(text, "OUT: [size={}]", block.len_bytes());
            let _ = writeln!(text, "  -- guest addr {pc:#018x}\n{}", disasm::host_listing(block));
        }
        self.log.write(&text);
    }
}
