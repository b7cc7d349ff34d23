//! Names of a guest's functions and variables, from its ELF file.

use object::{Object, ObjectKind, ObjectSegment, ObjectSymbol, SymbolKind};

use crate::linux::program::PIE_BASE;

/// A named range of guest addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// First byte.
    pub address: u64,
    /// Its length; 0 if the file gives none.
    pub len_bytes: u64,
}

/// The symbols of a program, by address.
#[derive(Clone, Debug, Default)]
pub struct Symbols(Vec<Symbol>);

impl Symbols {
    /// The symbols of the ELF file with these bytes, at the addresses that they have once it is
    /// loaded as the guest's program. None if the file has none or is broken: names only help the
    /// reader.
    pub fn of_elf(elf: &[u8]) -> Self {
        let Ok(file) = object::File::parse(elf) else { return Self::default() };
        let bias = load_bias(&file);
        let named = file.symbols().filter(|symbol| {
            !matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File) && !symbol.is_undefined()
        });
        let mut symbols: Vec<_> = named
            .filter_map(|symbol| {
                let name = symbol.name().ok().filter(|name| !name.is_empty() && !name.starts_with('$'))?;
                Some(Symbol {
                    name: name.to_owned(),
                    address: symbol.address().wrapping_add(bias),
                    len_bytes: symbol.size(),
                })
            })
            .collect();
        // Of several names for one address, the one with a length tells most.
        symbols.sort_by_key(|symbol| (symbol.address, symbol.len_bytes));
        Self(symbols)
    }

    /// The address of the symbol of that name.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.address)
    }

    /// The symbol that `address` lies in.
    pub fn at(&self, address: u64) -> Option<&Symbol> {
        let before = &self.0[..self.0.partition_point(|symbol| symbol.address <= address)];
        before.iter().rev().find(|symbol| address < symbol.address + symbol.len_bytes.max(1))
    }

    /// `name` or `name+0x10`.
    pub fn name(&self, address: u64) -> Option<String> {
        let symbol = self.at(address)?;
        let offset = address - symbol.address;
        Some(if offset == 0 { symbol.name.clone() } else { format!("{}+{offset:#x}", symbol.name) })
    }
}

/// The value that the loader adds to a program's addresses.
fn load_bias(file: &object::File<'_>) -> u64 {
    const PAGE_BYTES: u64 = 4096;
    match file.segments().map(|segment| segment.address()).min() {
        Some(first) if file.kind() == ObjectKind::Dynamic => PIE_BASE.wrapping_sub(first & !(PAGE_BYTES - 1)),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let symbol = |name: &str, address, len_bytes| Symbol { name: name.to_owned(), address, len_bytes };
        Symbols(vec![symbol("first", 0x100, 8), symbol("label", 0x108, 0), symbol("second", 0x108, 16)])
    }

    #[test]
    fn an_address_is_named_by_the_range_that_holds_it() {
        let name = |address| symbols().name(address);
        assert_eq!(name(0x100).as_deref(), Some("first"));
        assert_eq!(name(0x104).as_deref(), Some("first+0x4"));
        assert_eq!(name(0x108).as_deref(), Some("second"));
        assert_eq!(name(0x117).as_deref(), Some("second+0xf"));
        assert_eq!((name(0x118), name(0xff)), (None, None));
    }

    #[test]
    fn other_files_have_no_symbols() {
        assert!(Symbols::of_elf(b"#!/bin/sh").name(0).is_none());
    }
}
