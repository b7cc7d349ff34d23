/*
 * codewarden: keeps translated code true to the guest bytes that it came from.
 *
 * For authors of emulators and JITs on Linux. The library write-protects the guest pages
 * that translations come from and learns of every write to them. It makes stale
 * translations unreachable before they can run. It knows no guest instruction set and no
 * compiler.
 *
 * Link with the flags that pkg-config has for codewarden, or with CMake's target
 * codewarden::codewarden.
 *
 *
 * The life of a block
 *
 *   1. cw_cache_begin() a ticket, cw_ticket_claim() every page of the block. CW_BUSY:
 *      interpret, and come back.
 *   2. Read the guest's bytes, each once, and only after the claim. Name the bytes that
 *      the block is made from, cw_ticket_add_source(), and ask whether a retained block
 *      of the same bytes can be used again, cw_ticket_revive(). If not, translate.
 *   3. cw_ticket_commit(): the block is reachable, or CW_WRITTEN: a write came.
 *   4. cw_lookup() and run it under a vCPU's pin.
 *   5. Report the writes that the kernel cannot report: cw_cache_sync() and the functions
 *      after it.
 *
 *
 * With a cache of your own
 *
 *   QEMU, FEX and box64 have tables of blocks already. Then let a "block" stand for a
 *   guest page, its key be the page's address, and its entry a number: the next one each
 *   time. The stubs are 0 and 1, numbers begin with 2.
 *
 *   1. Once a page: cw_cache_link(), and keep the address of its cell. Once a thread:
 *      cw_cache_attach_vcpu(). Pin the vCPU while the thread looks blocks up and runs them.
 *   2. To translate, load the cell. If it holds a number, the page is tracked. If it holds
 *      a stub, begin, claim and commit the next number; CW_BUSY or CW_WRITTEN: interpret.
 *   3. Only now read the guest's bytes, translate, and enter your block in your table
 *      with the address of the cell and the number.
 *   4. Before you enter a block, load the cell (with acquire, under the pin): the block is
 *      valid while the cell holds its number. Any write to the page changes the cell, at the
 *      moment that the page's mode promises. A block on two pages has two cells and two
 *      numbers. Without a pin a thread may still load the old number behind its own store,
 *      when another thread's store has just opened the page: a processor runs loads ahead.
 *
 *
 * Rules, for every function that does not say otherwise
 *
 * Answers. A function that can fail returns a cw_status. A failed call changed nothing
 * unless it says so. The message of the failure is cw_last_error_message(). A panic in the
 * library becomes CW_INTERNAL, and ends the process in a function that does not return a
 * cw_status.
 *
 * Pointers. A handle is one that this library gave and that was not freed. NULL is
 * CW_BAD_ARGUMENT; a _free function does nothing for it. An out parameter is not NULL. It
 * is written if CW_OK is returned; otherwise a handle that is given through one is NULL. No
 * other pointer is NULL, and it is read before the return, not kept.
 *
 * Alignment. A pointer to a structure, a handle or a number is aligned for its type, as C
 * demands; a pointer to void need not be. Whole pages are needed only by guest, host and
 * len_bytes of a cw_region_options, and by the range and the offset of
 * cw_cache_declare_shared(). Every other guest address and length is any number of bytes,
 * and stands for each page that it touches. Keys, entries and stubs need no alignment.
 *
 * Ownership. Free each handle once, by the _free function of its kind or by a function that
 * says that it takes it. Handles may be freed in any order, but a cache after its tickets,
 * vCPUs, holds, mapping changes and fork guards (otherwise it answers CW_IN_USE). Strings
 * belong to the library. The library cannot detect the use of a freed handle, or a second
 * free: the behaviour is undefined.
 *
 * Threads. Any thread may call any function at any time, with two exceptions. An object
 * that is passed by a pointer to non-const is used by one thread at a time. No thread uses
 * an object that is being freed. So threads may share a cache, a link, a code buffer and an
 * allocation. A ticket and a vCPU belong to one thread at a time, and may be handed to
 * another. cw_fork_guard and cw_alt_stack stay with their thread.
 *
 * Signals. Only cw_handle_fault() may be called in a signal handler. The library calls no
 * function of yours in one.
 *
 * Pins. While its own vCPU is pinned a thread may call everything except
 * cw_cache_wait_for_vcpus(), which would wait for it for ever, cw_before_fork(), and
 * cw_cache_evict(), which frees less than it could.
 *
 * Exceptions and longjmp must not leave a function of yours that the library calls.
 *
 * Structures that begin with size_bytes may get more fields at their end: set it to the
 * structure's sizeof.
 *
 *
 * This interface lacks some parts of the Rust library: a tracker without a cache (its
 * observer runs in signal handlers; numbers replace it, as above), policies of your own,
 * histograms, the journal of writes, the pages written to most, and guest memory (mmap it).
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
