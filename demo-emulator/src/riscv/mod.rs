//! RV64GC: instructions, their decoding and their effects.

pub mod csr;
pub mod decode;
pub mod encode;
pub mod exec;
pub mod fetch;
pub mod fp;
pub mod inst;
pub mod interpreter;
pub mod random;
pub mod trap;

mod atomic;
mod compressed;
