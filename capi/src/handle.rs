//! Pointers from C: each is checked once, when it comes in.
//!
//! # Safety
//!
//! C follows the first section of the header for every pointer. A handle comes from
//! this library and was not freed. An out parameter can be written. A handle that is
//! not for all threads is used by one thread at a time.
#![allow(unsafe_code)]

use std::mem::{MaybeUninit, transmute};
use std::ptr;

use crate::status::Failure;

/// The object behind `pointer`.
///
/// # Safety
///
/// NULL, or as this module's head says, for as long as `'a`.
pub(crate) unsafe fn borrow<'a, T>(pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: this function's contract.
    unsafe { pointer.as_ref() }.ok_or(Failure::bad_argument(c"a handle that must not be NULL is NULL"))
}

/// The object behind `pointer`, for one thread alone.
///
/// # Safety
///
/// NULL, or as this module's head says, for as long as `'a`.
pub(crate) unsafe fn borrow_mut<'a, T>(pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: this function's contract.
    unsafe { pointer.as_mut() }.ok_or(Failure::bad_argument(c"a handle that must not be NULL is NULL"))
}

/// The place for a result.
///
/// # Safety
///
/// NULL, or as this module's head says, for as long as `'a`.
pub(crate) unsafe fn out<'a, T>(pointer: *mut T) -> Result<&'a mut MaybeUninit<T>, Failure> {
    // SAFETY: this function's contract; the old contents need not be valid.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }
        .ok_or(Failure::bad_argument(c"an out parameter that must not be NULL is NULL"))
}

/// The place for a new handle: NULL until there is one.
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

/// Takes a handle back from C; `None` for NULL.
///
/// # Safety
///
/// NULL, or from [`NewHandle::give`] and not taken back before.
pub(crate) unsafe fn take_back<T>(pointer: *mut T) -> Option<Box<T>> {
    // SAFETY: this function's contract.
    (!pointer.is_null()).then(|| unsafe { Box::from_raw(pointer) })
}

/// Reads a structure that C fills in, and that may get more fields later. Its first
/// field is its size in bytes, as the calling program was compiled.
///
/// # Safety
///
/// `pointer` is NULL or as this module's head says; `T` is `repr(C)`, starts with that
/// `usize`, and is valid for all bytes that C may write.
pub(crate) unsafe fn filled_in<T: Copy>(pointer: *const T) -> Result<T, Failure> {
    if pointer.is_null() {
        return Err(Failure::bad_argument(c"a structure that must not be NULL is NULL"));
    }
    // SAFETY: this function's contract.
    let size_bytes = unsafe { pointer.cast::<usize>().read() };
    // So far there has been one size. A smaller, older structure will be read up to its
    // size.
    if size_bytes != size_of::<T>() {
        return Err(Failure::bad_argument(
            c"size_bytes must be the structure's sizeof: set it, and compile with the header of this library",
        ));
    }
    // SAFETY: this function's contract; the size is right.
    Ok(unsafe { pointer.read() })
}

/// Reads a bool in a C structure, which may hold another byte there.
pub(crate) fn read_bool(raw: MaybeUninit<bool>) -> Result<bool, Failure> {
    // SAFETY: C filled the structure in, so that the byte is a number.
    match unsafe { transmute::<MaybeUninit<bool>, u8>(raw) } {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::bad_argument(c"a bool of a structure is neither true nor false: set each field")),
    }
}

/// Fills in a C structure that may have fewer fields than `value`, or more.
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
    // SAFETY: C's structure has `size_bytes` bytes. `value` has the first `known_bytes`
    // of them, including the size itself.
    unsafe {
        let into = pointer.cast::<u8>();
        into.copy_from_nonoverlapping(ptr::from_ref(value).cast(), known_bytes);
        into.add(known_bytes).write_bytes(0, size_bytes - known_bytes);
        pointer.cast::<usize>().write(known_bytes);
    }
    Ok(())
}
