//! No arithmetic by the host's instructions: `None` from each function. It is written for x86-64
//! only; elsewhere all is in integers.

use super::format::{Format, Rounded, Rounding};

macro_rules! none {
    ($($name:ident($($operand:ident),*);)*) => {$(
        /// `None`.
        pub fn $name(_: Format, $(_: none!(@u64 $operand),)* _: Rounding) -> Option<Rounded> {
            None
        }
    )*};
    (@u64 $operand:ident) => { u64 };
}

none! {
    add(a, b);
    sub(a, b);
    mul(a, b);
    div(a, b);
    sqrt(a);
    fused(a, b, c);
}
