//! The guest registers of one file while a region is being built.
//!
//! Each one that the region uses is a variable. The region *keeps* some of them: those variables
//! have the registers' values in every block. Any other register lives in the hart between blocks,
//! and a block loads it before the first instruction that reads it.

use cranelift_codegen::ir::{InstBuilder, Type, Value};
use cranelift_frontend::{FunctionBuilder, Variable};

use super::field::{self, HOST};

/// The registers of one of the two files.
pub(super) struct Registers {
    /// Offset of the first in the hart.
    offset: i32,
    /// The type of their values.
    value: Type,
    variables: [Option<Variable>; 32],
    /// The registers that the region keeps.
    pub(super) kept: u32,
    /// Registers that the variables have.
    present: u32,
    /// Registers that the hart may not have yet.
    pub(super) dirty: u32,
}

impl Registers {
    pub(super) fn new(offset: i32, value: Type, kept: u32) -> Self {
        Self { offset, value, variables: [None; 32], kept, present: kept, dirty: 0 }
    }

    /// A block begins; `dirty` of the kept registers may be dirty.
    pub(super) fn begin(&mut self, dirty: u32) {
        (self.present, self.dirty) = (self.kept, dirty);
    }

    pub(super) fn offset_of(&self, register: u8) -> i32 {
        self.offset + i32::from(register) * field::REGISTER_BYTES
    }

    fn variable(&mut self, register: u8, builder: &mut FunctionBuilder) -> Variable {
        let value = self.value;
        *self.variables[usize::from(register & 31)].get_or_insert_with(|| builder.declare_var(value))
    }

    /// Loads registers from the hart.
    pub(super) fn load(&mut self, mut registers: u32, hart: Value, builder: &mut FunctionBuilder) {
        while registers != 0 {
            let register = registers.trailing_zeros() as u8;
            registers &= registers - 1;
            let value = builder.ins().load(self.value, HOST, hart, self.offset_of(register));
            let variable = self.variable(register, builder);
            builder.def_var(variable, value);
        }
    }

    /// Loads those of these registers that the variables lack.
    pub(super) fn load_missing(&mut self, registers: u32, hart: Value, builder: &mut FunctionBuilder) {
        self.load(registers & !self.present, hart, builder);
        self.present |= registers;
    }

    pub(super) fn get(&mut self, register: u8, builder: &mut FunctionBuilder) -> Value {
        debug_assert!(self.present & 1 << register != 0, "register {register} was not loaded");
        let variable = self.variable(register, builder);
        builder.use_var(variable)
    }

    pub(super) fn set(&mut self, register: u8, value: Value, builder: &mut FunctionBuilder) {
        let variable = self.variable(register, builder);
        builder.def_var(variable, value);
        self.present |= 1 << register;
        self.dirty |= 1 << register;
    }

    /// Stores the dirty registers to the hart, but for those in `kept`. They stay dirty.
    pub(super) fn store_dirty(&mut self, kept: u32, hart: Value, builder: &mut FunctionBuilder) {
        let mut dirty = self.dirty & !kept;
        while dirty != 0 {
            let register = dirty.trailing_zeros() as u8;
            dirty &= dirty - 1;
            let value = self.get(register, builder);
            builder.ins().store(HOST, value, hart, self.offset_of(register));
        }
    }
}
