//! What `userfaultfd` needs of its -sys crate, from `linux-raw-sys` in place of
//! bindgen over the system's headers: nothing runs at build time and no
//! libclang is needed.
#![no_std]
#![allow(non_upper_case_globals)]

use linux_raw_sys::general as sys;
pub use sys::{
    uffd_msg, uffdio_api, uffdio_continue, uffdio_copy, uffdio_range, uffdio_register, uffdio_writeprotect,
    uffdio_zeropage, UFFD_USER_MODE_ONLY, _UFFDIO_API, _UFFDIO_CONTINUE, _UFFDIO_COPY, _UFFDIO_REGISTER,
    _UFFDIO_UNREGISTER, _UFFDIO_WAKE, _UFFDIO_WRITEPROTECT, _UFFDIO_ZEROPAGE,
};

/// Constants with the types that bindgen gave them.
macro_rules! constants {
    ($type:ty: $($name:ident)*) => { $(pub const $name: $type = sys::$name as $type;)* };
}

constants! { u64:
    UFFD_API
    UFFD_FEATURE_PAGEFAULT_FLAG_WP UFFD_FEATURE_EVENT_FORK UFFD_FEATURE_EVENT_REMAP UFFD_FEATURE_EVENT_REMOVE
    UFFD_FEATURE_EVENT_UNMAP UFFD_FEATURE_MISSING_HUGETLBFS UFFD_FEATURE_MISSING_SHMEM UFFD_FEATURE_SIGBUS
    UFFD_FEATURE_THREAD_ID
    UFFDIO_REGISTER_MODE_MISSING UFFDIO_REGISTER_MODE_WP UFFDIO_REGISTER_MODE_MINOR
    UFFD_PAGEFAULT_FLAG_WRITE UFFD_PAGEFAULT_FLAG_WP UFFD_PAGEFAULT_FLAG_MINOR
    UFFDIO_COPY_MODE_DONTWAKE UFFDIO_ZEROPAGE_MODE_DONTWAKE
}
constants! { u8:
    UFFD_EVENT_PAGEFAULT UFFD_EVENT_FORK UFFD_EVENT_REMAP UFFD_EVENT_REMOVE UFFD_EVENT_UNMAP
}

// The header writes these three as shifts of a cast, which `linux-raw-sys` leaves out.
pub const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;

/// The ioctl type of a userfaultfd and of `/dev/userfaultfd`.
pub const UFFDIO: u8 = 0xaa;
/// The ioctl type of `/dev/userfaultfd`.
pub const USERFAULTFD_IOC: u8 = UFFDIO;
