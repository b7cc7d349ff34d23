//! The report of the demo: a line for each translation, write and invalidation of the guest's
//! changing code. It goes to standard output while the guest runs, between the guest's own lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::sync::Mutex;

use codewarden::RecentWrite;
use codewarden::protection::Mode;
use codewarden::tracker::Cause;

use super::listing;
use crate::engine::{Event, Listener};
use crate::memory::Window;
use crate::style::{self, Style, say};
use crate::symbols::Symbols;
use crate::translate::CompiledBlock;

/// The guest's page of changing code lies between these two symbols.
const CODE_SYMBOLS: [&str; 2] = ["demo_code", "demo_code_end"];
const PAGE_BYTES: u64 = 4096;

/// Reports on the guest's code.
pub struct DemoReport {
    symbols: Symbols,
    /// The code that the guest rewrites; the rest never changes.
    code: Range<u64>,
    window: Window,
    mode: Mode,
    style: Style,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Reachable blocks: first instruction, and whether compiled.
    blocks: BTreeSet<(u64, bool)>,
    /// The source bytes of the last block at each pc.
    bytes: BTreeMap<u64, Vec<u8>>,
    protected: BTreeSet<u64>,
    /// Pages that stay writable, their blocks comparing themselves.
    checked: BTreeSet<u64>,
    /// Store and byte of the last write, and how often it came again.
    last_write: Option<(u64, u64)>,
    repeats: u64,
    /// Kernel ids of the harts' threads, in the order of their appearance.
    harts: Vec<i32>,
}

impl State {
    fn hart(&mut self) -> usize {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        self.harts.iter().position(|hart| *hart == id).unwrap_or_else(|| {
            self.harts.push(id);
            self.harts.len() - 1
        })
    }

    /// The line for repeated writes, once they are over.
    fn end_of_repeats(&mut self, style: Style) -> String {
        let repeats = std::mem::take(&mut self.repeats);
        if repeats == 0 {
            return String::new();
        }
        let verb = style.verb("again");
        let times = if repeats == 1 { "once".to_owned() } else { format!("{repeats} times") };
        format!("    {verb}the same store, fault and translation, {times} more.\n")
    }
}

impl DemoReport {
    /// Of the guest in `window` with these symbols, tracked in `mode`.
    pub fn new(symbols: Symbols, window: Window, mode: Mode, style: Style) -> Self {
        let [start, end] = CODE_SYMBOLS.map(|name| symbols.address_of(name).unwrap_or(0));
        Self { symbols, code: start..end, window, mode, style, state: Mutex::default() }
    }

    /// Prints the lines before the guest's first one.
    pub fn open(&self, why: &str) {
        let title = self.style.strong("A RISC-V guest that rewrites its own code, and the effect on its translations");
        let warning = if self.mode == Mode::None { " Nothing is protected: expect stale code." } else { "" };
        let mut text = format!("{title}\n\n");
        for line in [
            "The emulator translates guest code once and keeps the translation. It write-protects the page",
            "before it reads the code. A store to the page then faults, and the emulator invalidates every",
            "translation made from the page.",
            "A page with many stores stays writable for a while. Its translations then compare their source",
            "bytes with memory at each entry.",
            "Lines that begin with a verb are the emulator's, the others are the guest's own.",
        ] {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(&style::wrapped(&format!("Tracking {}: {why}.{warning}", self.mode)));
        text.push('\n');
        say(&text);
    }

    fn name(&self, address: u64) -> String {
        self.symbols.name(address).unwrap_or_else(|| format!("{address:#x}"))
    }

    fn block_name(&self, (pc, compiled): (u64, bool)) -> String {
        format!("{} ({})", self.name(pc), if compiled { "compiled" } else { "tier 0" })
    }

    fn translated(
        &self,
        state: &mut State,
        pc: u64,
        bytes: &[u8],
        host: Option<&CompiledBlock>,
        is_self_checking: bool,
    ) -> String {
        let hart = state.hart();
        let is_new = state.blocks.insert((pc, host.is_some()));
        let before = state.bytes.insert(pc, bytes.to_vec());
        let changed = before.as_ref().is_some_and(|before| before != bytes);
        let page = pc & !(PAGE_BYTES - 1);
        let checks = is_self_checking && state.checked.insert(page);
        let protects = !is_self_checking && state.protected.insert(page) && self.mode != Mode::None;
        if (state.repeats > 0 && !changed || !is_new) && !checks {
            return String::new();
        }
        let mut text = state.end_of_repeats(self.style);
        if protects {
            let _ = writeln!(text, "    {}page {page:#x}", self.style.verb("protect"));
        }
        if checks {
            let _ = writeln!(text, "    {}page {page:#x} stays writable, its blocks compare", self.style.verb("check"));
        }
        let count = listing::instructions(pc, bytes).len();
        let plural = if count == 1 { "" } else { "s" };
        let what = match host {
            Some(block) => format!("compiled to {} bytes of host code", block.len_bytes()),
            None => "decoded (tier 0)".to_owned(),
        };
        let verb =
            self.style.verb(if before.is_some() && (changed || host.is_none()) { "retranslate" } else { "translate" });
        let name = self.name(pc);
        let _ = writeln!(text, "    {verb}{name} at {pc:#x}: {count} instruction{plural}, {what}, on hart {hart}");
        if let (Some(before), true) = (before, changed) {
            text.push_str(&listing::before_and_after(pc, &before, bytes, self.style));
        }
        text
    }

    /// A block found at its entry that its bytes have changed.
    fn overwritten(&self, state: &mut State, block: (u64, bool)) -> String {
        state.blocks.remove(&block);
        let text = state.end_of_repeats(self.style);
        let verb = self.style.verb("compare");
        let name = self.block_name(block);
        format!("{text}    {verb}{name} was entered and found its bytes changed\n")
    }

    fn written(&self, state: &mut State, write: &RecentWrite, store_pc: Option<u64>, hart: Option<usize>) -> String {
        let page = write.page.0;
        let killed: Vec<_> = state.blocks.iter().copied().filter(|(pc, _)| pc & !(PAGE_BYTES - 1) == page).collect();
        state.blocks.retain(|block| !killed.contains(block));
        state.protected.remove(&page);
        state.checked.remove(&page);
        let changes = self.changes(state, page);
        let this = match write.cause {
            Cause::Store { byte, .. } => store_pc.map(|pc| (pc, byte.0)),
            _ => None,
        };
        if this.is_some() && this == state.last_write && changes.is_empty() {
            state.repeats += 1;
            return String::new();
        }
        let mut text = state.end_of_repeats(self.style);
        state.last_write = this;
        let by = match (store_pc, hart) {
            (Some(pc), Some(hart)) => format!("{} ({pc:#x}) on hart {hart}", self.name(pc)),
            (Some(pc), None) => format!("{} ({pc:#x})", self.name(pc)),
            (None, _) => "a store".to_owned(),
        };
        let verb = self.style.verb("write");
        let _ = match write.cause {
            Cause::Store { byte, .. } => {
                writeln!(text, "    {verb}{by} stored to {} ({byte:#x})", self.name(byte.0), byte = byte.0)
            }
            Cause::Cooled => {
                writeln!(text, "    {}page {page:#x} is protected again from now on", self.style.verb("cool"))
            }
            Cause::Harvest => writeln!(text, "    {verb}the flush found page {page:#x} written"),
            _ => writeln!(text, "    {verb}page {page:#x} was announced as changed"),
        };
        if changes.is_empty() && this.is_some() {
            let _ = writeln!(text, "{:16}no translated byte of the page differs: it was data beside the code", "");
        }
        text.push_str(&changes);
        if !killed.is_empty() {
            let names: Vec<_> = killed.into_iter().map(|block| self.block_name(block)).collect();
            let verb = self.style.verb("invalidate");
            text.push_str(&style::listed(&format!("    {verb}"), &names));
        }
        text
    }

    /// The words of translated code in `page` that have changed.
    fn changes(&self, state: &State, page: u64) -> String {
        let mut text = String::new();
        let mut seen = BTreeSet::new();
        for (pc, bytes) in state.bytes.range(page..page + PAGE_BYTES) {
            for (offset, before) in (0..).step_by(4).zip(bytes.chunks_exact(4)) {
                let at = pc + offset;
                let Ok(after) = self.window.load_u32(at) else { continue };
                let before = u32::from_le_bytes([before[0], before[1], before[2], before[3]]);
                if before != after && seen.insert(at) {
                    let _ = writeln!(text, "{:16}{at:#x}: was {before:08x}, is {after:08x}", "");
                }
            }
        }
        text
    }
}

impl Listener for DemoReport {
    fn on_event(&self, event: &Event<'_>) {
        // The guest does not fork. After a panic the report goes on.
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = match event {
            Event::Translated { pc, bytes, host, is_self_checking } if self.code.contains(pc) => {
                self.translated(&mut state, *pc, bytes, *host, *is_self_checking)
            }
            Event::Revived { pc, is_compiled } if self.code.contains(pc) => {
                state.blocks.insert((*pc, *is_compiled));
                return;
            }
            Event::Overwritten { pc, is_compiled } if self.code.contains(pc) => {
                self.overwritten(&mut state, (*pc, *is_compiled))
            }
            Event::Written { write, store_pc, by_this_hart } if self.code.contains(&write.page.0) => {
                let hart = by_this_hart.then(|| state.hart());
                self.written(&mut state, write, *store_pc, hart)
            }
            Event::Refused(pc) => {
                state.blocks.retain(|(other, _)| other != pc);
                return;
            }
            Event::SystemCall => state.end_of_repeats(self.style),
            _ => return,
        };
        say(&text);
    }
}
