/*
 * codewarden: keeps translated code true to the guest bytes that it came from.
 *
 * For authors of emulators and JITs on Linux. The library write-protects the guest
 * pages that translations come from, learns of every write to them, and makes stale
 * translations unreachable before they can run. It knows no guest instruction set and
 * no compiler.
 *
 * Link with -lcodewarden (README.md, "Embed it from C"). Made from the sources of the
 * package codewarden-capi: change those, and then
 *     CODEWARDEN_UPDATE_HEADER=1 cargo test -p codewarden-capi --test header
 *
 *
 * The life of a block
 *
 *   1. cw_cache_begin() a ticket, cw_ticket_claim() every page of the block. CW_BUSY:
 *      interpret, and come back.
 *   2. Read the guest's bytes, once each: not before the claim. Say which of them the
 *      block is made from, cw_ticket_made_from(), and ask whether one that was made from
 *      the same can be used again, cw_ticket_revive(). If not, translate.
 *   3. cw_ticket_commit(): the block is reachable, or CW_WRITTEN: a write came.
 *   4. cw_lookup() and run it under a vCPU's pin.
 *   5. Tell of what the kernel cannot tell: cw_cache_sync() and what follows it.
 *
 *
 * With a cache of your own
 *
 *   QEMU, FEX and box64 have tables of blocks already. Then let a "block" stand for a
 *   guest page, its key be the page's address, and its entry a number: the next one each
 *   time. The stubs are 0 and 1, numbers begin with 2.
 *
 *   1. Once a page: cw_cache_link(), and keep the address of its cell.
 *   2. To translate, load the cell. Where it holds a number, the page is tracked. Where
 *      it holds a stub, begin, claim and commit the next number; CW_BUSY or CW_WRITTEN:
 *      interpret.
 *   3. Only now read the guest's bytes, translate, and enter your block in your table
 *      with the address of the cell and the number.
 *   4. Before a block of yours is entered, load the cell (with acquire): the block is
 *      valid while the cell holds its number. Any write to the page changes it, at the
 *      moment that the page's mode promises. A block on two pages has two of them.
 *
 *
 * Rules, for every function that does not say otherwise
 *
 * Answers. A function that can fail returns a cw_status. What failed changed nothing
 * unless it says so. The message of the failure is cw_last_error_message(). A panic of
 * the library's becomes CW_INTERNAL, and ends the process in a function that returns
 * something else.
 *
 * Pointers. A handle is one that this library gave and that was not freed; NULL is
 * CW_BAD_ARGUMENT, and nothing for a _free function. An out parameter is not NULL; it is
 * written where CW_OK is returned, and a handle that is given through one is NULL
 * elsewhere. What else is passed by pointer is not NULL, and is read before the return,
 * not kept.
 *
 * Alignment. A pointer to a structure, a handle or a number is aligned for its type, as C
 * demands; a pointer to void need not be. Whole pages are needed only by guest, host and
 * len_bytes of a cw_region_options, and by the range and the offset of
 * cw_cache_declare_shared(). Every other guest address and length is any number of bytes,
 * and stands for each page that it touches. Keys, entries and stubs need no alignment.
 *
 * Ownership. Each handle is freed once, by the _free function of its kind or by the
 * function that says that it takes it. Handles may be freed in any order, but a cache is
 * freed after its tickets, vCPUs, holds, mapping changes and fork guards
 * (CW_IN_USE tells). Strings are the library's. A handle that was freed, and is used or
 * freed again, cannot be told: the behaviour is undefined.
 *
 * Threads. Any thread may call any function at any time, with two exceptions: an object
 * that is passed by a pointer to non-const is used by one thread at a time, and nobody
 * uses what is being freed. So a cache, a link, a code buffer and an allocation may be
 * shared; a ticket and a vCPU belong to one thread at a time, and may be handed to
 * another. cw_fork_guard and cw_alt_stack stay with their thread.
 *
 * Signals. Only cw_handle_fault() may be called in a signal handler. No function of yours
 * is called in one.
 *
 * Pins. While its own vCPU is pinned a thread may call everything but
 * cw_cache_wait_for_vcpus(), which waits for it for ever, cw_before_fork(), and
 * cw_cache_evict(), which frees less than it could.
 *
 * Exceptions and longjmp must not leave a function of yours that the library calls.
 *
 * Structures whose first field is size_bytes may get more fields at their end: set it to
 * the structure's sizeof.
 *
 *
 * What the Rust library has and this has not: a tracker without a cache (its observer
 * runs in signal handlers; numbers do, as above), policies of your own, histograms, the
 * journal of writes, the pages written to most, and guest memory (mmap it).
 */

#ifndef CODEWARDEN_H
#define CODEWARDEN_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
