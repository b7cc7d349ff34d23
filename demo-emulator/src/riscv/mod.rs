//! RV64GC: instructions, their decoding and what they do.

pub mod inst;
