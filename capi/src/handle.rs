//! Pointers of C's: how they are looked at once, where they come in.
//!
//! # Safety
//!
//! C keeps what the header's first section asks of every pointer: a handle is one
//! that this library gave and that was not freed, an out parameter can be written, and
//! who has a handle that is not for all threads has it alone.
#![allow(unsafe_code)]

use std::mem::{MaybeUninit, transmute};
use std::ptr;

use crate::status::Failure;

/// What `pointer` leads to.
///
/// # Safety
///
/// NULL, or as this module's head says, for as long as `'a`.
pub(crate) unsafe fn borrow<'a, T>(pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: this function's contract.
    unsafe { pointer.as_ref() }.ok_or(Failure::bad_argument(c"a handle that must not be NULL is NULL"))
}

/// What `pointer` leads to, for one thread alone.
///
/// # Safety
///
/// NULL, or as this module's head says, for as long as `'a`.
pub(crate) unsafe fn borrow_mut<'a, T>(pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: this function's contract.
    unsafe { pointer.as_mut() }.ok_or(Failure::bad_argument(c"a handle that must not be NULL is NULL"))
}

/// Where a result goes.
///
/// # Safety
///
/// NULL, or as this module's head says, for as long as `'a`.
pub(crate) unsafe fn out<'a, T>(pointer: *mut T) -> Result<&'a mut MaybeUninit<T>, Failure> {
    // SAFETY: this function's contract; what was there need not be valid.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }
        .ok_or(Failure::bad_argument(c"an out parameter that must not be NULL is NULL"))
}

/// Where a new handle goes: NULL until there is one.
///
/// # Safety
///
/// As [`out`].
pub(crate) unsafe fn out_handle<'a, T>(pointer: *mut *mut T) -> Result<NewHandle<'a, T>, Failure> {
    // SAFETY: this function's contract.
    Ok(NewHandle(unsafe { out(pointer) }?.write(ptr::null_mut())))
}

/// See [`out_handle`].
pub(crate) struct NewHandle<'a, T>(&'a mut *mut T);

impl<T> NewHandle<'_, T> {
    pub(crate) fn give(self, object: T) {
        *self.0 = Box::into_raw(Box::new(object));
    }
}

/// Takes a handle back from C; nothing for NULL.
///
/// # Safety
///
/// NULL, or from [`NewHandle::give`] and not taken back before.
pub(crate) unsafe fn take_back<T>(pointer: *mut T) -> Option<Box<T>> {
    // SAFETY: this function's contract.
    (!pointer.is_null()).then(|| unsafe { Box::from_raw(pointer) })
}

/// A structure that C fills in, and that may have more fields one day: the first one
/// says how many bytes it has for whoever compiled the call.
///
/// # Safety
///
/// `pointer` is NULL or as this module's head says; `T` is `repr(C)`, starts with a
/// `usize` of that meaning, and is valid whatever C put in.
pub(crate) unsafe fn filled_in<T: Copy>(pointer: *const T) -> Result<T, Failure> {
    if pointer.is_null() {
        return Err(Failure::bad_argument(c"a structure that must not be NULL is NULL"));
    }
    // SAFETY: this function's contract.
    let size_bytes = unsafe { pointer.cast::<usize>().read() };
    // There has been one size so far. An older one will be read as far as it goes.
    if size_bytes != size_of::<T>() {
        return Err(Failure::bad_argument(
            c"size_bytes must be the structure's sizeof: set it, and compile with the header of this library",
        ));
    }
    // SAFETY: this function's contract; as long as it should be.
    Ok(unsafe { pointer.read() })
}

/// A bool in a structure of C's, which may have another byte there.
pub(crate) fn read_bool(raw: MaybeUninit<bool>) -> Result<bool, Failure> {
    // SAFETY: C filled the structure in, so that the byte is some number.
    match unsafe { transmute::<MaybeUninit<bool>, u8>(raw) } {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::bad_argument(c"a bool of a structure is neither true nor false: set each field")),
    }
}

/// Fills in a structure of C's that may have less fields than `value`, or more.
///
/// # Safety
///
/// As [`filled_in`], and the structure can be written; `T` has no padding.
pub(crate) unsafe fn fill_in<T: Copy>(pointer: *mut T, value: &T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::bad_argument(c"a structure that must not be NULL is NULL"));
    }
    // SAFETY: this function's contract.
    let size_bytes = unsafe { pointer.cast::<usize>().read() };
    if size_bytes < size_of::<usize>() {
        return Err(Failure::bad_argument(c"size_bytes must be the structure's sizeof: set it before the call"));
    }
    let known_bytes = size_bytes.min(size_of::<T>());
    // SAFETY: C's structure has `size_bytes` bytes, of which `value` has the first
    // `known_bytes`, the size itself among them.
    unsafe {
        let into = pointer.cast::<u8>();
        into.copy_from_nonoverlapping(ptr::from_ref(value).cast(), known_bytes);
        into.add(known_bytes).write_bytes(0, size_bytes - known_bytes);
        pointer.cast::<usize>().write(known_bytes);
    }
    Ok(())
}
