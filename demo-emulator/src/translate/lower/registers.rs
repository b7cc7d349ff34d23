//! The guest registers of one file while a region is being built.

use cranelift_codegen::ir::{InstBuilder, Type, Value};
use cranelift_frontend::{FunctionBuilder, Variable};

use super::field::{self, HOST};

/// The registers of one of the two files. Each one that the region uses is a variable.
pub(super) struct Registers {
    /// Offset of the first in the hart.
    offset: i32,
    /// The type of their values.
    value: Type,
    variables: [Option<Variable>; 32],
    /// Registers that the hart may not have yet.
    pub(super) dirty: u32,
}

impl Registers {
    pub(super) fn new(offset: i32, value: Type) -> Self {
        Self { offset, value, variables: [None; 32], dirty: 0 }
    }

    pub(super) fn offset_of(&self, register: u8) -> i32 {
        self.offset + i32::from(register) * field::REGISTER_BYTES
    }

    fn variable(&mut self, register: u8, builder: &mut FunctionBuilder) -> Variable {
        let value = self.value;
        *self.variables[usize::from(register & 31)].get_or_insert_with(|| builder.declare_var(value))
    }

    /// Loads a register from the hart.
    pub(super) fn load(&mut self, register: u8, hart: Value, builder: &mut FunctionBuilder) {
        let value = builder.ins().load(self.value, HOST, hart, self.offset_of(register));
        let variable = self.variable(register, builder);
        builder.def_var(variable, value);
    }

    pub(super) fn get(&mut self, register: u8, builder: &mut FunctionBuilder) -> Value {
        let variable = self.variable(register, builder);
        builder.use_var(variable)
    }

    pub(super) fn set(&mut self, register: u8, value: Value, builder: &mut FunctionBuilder) {
        let variable = self.variable(register, builder);
        builder.def_var(variable, value);
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
