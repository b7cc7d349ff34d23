//! RV64GC with Zba, Zbb, Zbc, Zbs, Zfhmin, Zicbom, Zicbop and Zicboz: instructions, their decoding
//! and their effects.

pub mod csr;
pub mod decode;
pub mod encode;
pub mod exec;
pub mod fetch;
pub mod fp;
pub mod inst;
pub mod interpreter;
pub mod random;
pub mod text;
pub mod trap;

mod atomic;
mod bits;
mod compressed;
