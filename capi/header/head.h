/*
 * codewarden: keeps translated code true to the guest bytes that it came from.
 *
 * For authors of emulators and JITs on Linux. The library write-protects the guest pages
 * that translations come from and learns of every write to them. It makes stale
 * translations unreachable before they can run. It knows no guest instruction set and no
 * compiler.
 *
 * Link with the flags that pkg-config has for codewarden, or with CMake's target
 * codewarden::codewarden. If the library's folder is not one that the dynamic linker searches,
 * name it at run time too (LD_LIBRARY_PATH, or -Wl,-rpath), or link statically (pkg-config
 * --static, codewarden::static).
 *
 * Programs to copy from are installed in share/doc/codewarden/examples: embed.c, tiny_jit.c, and
 * for a cache of your own tracker.c and own_cache.cpp.
 *
 *
 * Two ways
 *
 * With the library's cache (cw_cache): blocks are found by key, and a write makes them
 * unreachable. With a cache of your own (cw_tracker): the library tells you which pages'
 * blocks have become stale. Regions, mappings and writes are the same for both; a cache has
 * a tracker, cw_cache_tracker().
 *
 *
 * The life of a block in the library's cache
 *
 *   1. cw_cache_begin() a ticket, cw_ticket_claim() every page of the block. CW_BUSY:
 *      interpret, and come back.
 *   2. Read the guest's bytes, each once, and only after the claim. Name the bytes that
 *      the block is made from, cw_ticket_add_source(), and ask whether a retained block
 *      of the same bytes can be used again, cw_ticket_revive(). If not, translate.
 *   3. cw_ticket_commit(): the block is reachable, or CW_WRITTEN: a write came.
 *   4. cw_lookup() and run it under a vCPU's pin.
 *   5. Report the writes that the kernel cannot report: cw_tracker_sync() and the functions
 *      after it.
 *
 *
 * With a cache of your own: the tracker
 *
 * QEMU, FEX and box64 have tables of blocks already. Keep them.
 *
 *   1. Once: cw_tracker_new() with told(), your invalidation of a page. cw_tracker_add_region()
 *      the guest's memory.
 *   2. To translate: cw_tracker_claim() each page that the block is made from, cw_claim_read() its
 *      bytes there, translate, enter the block in your table. CW_BUSY: translate for one run.
 *   3. A store to a claimed page faults. told() names the page before the store goes
 *      through: unlink its blocks there. If you own the signals, your handler calls
 *      cw_handle_fault() first.
 *   4. Report what the kernel cannot: cw_tracker_map() and the functions beside it for
 *      mappings, cw_tracker_announce_write() before a system call that writes to guest memory,
 *      cw_tracker_before_fork().
 *   5. From a timer: cw_tracker_maintain().
 *
 * One lock of yours, around all of that, is allowed, and makes it simple. The section about
 * the reports has the rule, the section about claims the code.
 *
 *
 * Rules, for every function that does not say otherwise
 *
 * Answers. A function that can fail returns a cw_status. A failed call changed nothing
 * unless it says so. The message of the failure is cw_last_error_message(). A panic in the
 * library becomes CW_INTERNAL, and ends the process in a function that does not return a
 * cw_status. CW_NO_MEMORY is for mappings of the library's; if malloc fails the process ends.
 *
 * Pointers. A handle is one that this library gave and that was not freed. NULL is
 * CW_BAD_ARGUMENT; a _free function does nothing for it. An out parameter is not NULL. It
 * is written if CW_OK is returned; otherwise a handle that is given through one is NULL. No
 * other pointer is NULL, and it is read before the return, not kept.
 *
 * Alignment. A pointer to a structure, a handle or a number is aligned for its type, as C
 * demands; a pointer to void need not be. Whole pages are needed only by guest, host and
 * len_bytes of a cw_region_options, and by the range and the offset of
 * cw_tracker_declare_shared(). Every other guest address and length is any number of bytes,
 * and stands for each page that it touches. Keys, entries and stubs need no alignment.
 *
 * Ownership. Free each handle once, by the _free function of its kind or by a function that
 * says that it takes it. Handles may be freed in any order, but a cache or a tracker after its
 * tickets, vCPUs, holds and fork guards (otherwise it answers CW_IN_USE). A claim is a value,
 * and is used no more when its tracker is freed. Strings belong to the library. The library
 * cannot detect the use of a freed handle, or a second free: the behaviour is undefined.
 *
 * Threads. Any thread may call any function at any time, with two exceptions. An object
 * that is passed by a pointer to non-const is used by one thread at a time. No thread uses
 * an object that is being freed. So threads may share a cache, a tracker, a claim, a link, a
 * code buffer and an allocation. A ticket and a vCPU belong to one thread at a time, and may be handed to
 * another. cw_fork_guard and cw_alt_stack stay with their thread.
 *
 * Signals. Only cw_handle_fault() may be called in a signal handler. Of your functions the
 * library calls told() and others_may_look() of a cw_tracker_options in one, no other.
 *
 * Pins. While its own vCPU is pinned a thread may call everything except
 * cw_cache_wait_for_vcpus(), which would wait for it for ever, cw_tracker_before_fork(), and
 * cw_cache_evict(), which frees less than it could.
 *
 * Exceptions and longjmp must not leave a function of yours that the library calls. A thread that
 * is cancelled in a call (pthread_cancel) ends the process: disable that around calls.
 *
 * Structures that begin with size_bytes may get more fields at their end: set it to the
 * structure's sizeof.
 *
 *
 * This interface lacks some parts of the Rust library: policies of your own, a userfaultfd that
 * you open yourself, and guest memory (mmap it).
 */

/*
 * Made from the sources of the package codewarden-capi: change those, and then
 *     CODEWARDEN_UPDATE_HEADER=1 cargo test -p codewarden-capi --test header
 */

#ifndef CODEWARDEN_H
#define CODEWARDEN_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The version of this header. cw_version() tells the library's. */
#define CW_VERSION_MAJOR @MAJOR@
#define CW_VERSION_MINOR @MINOR@
#define CW_VERSION_PATCH @PATCH@
#define CW_VERSION "@VERSION@"

#ifdef __cplusplus
extern "C" {
#endif
