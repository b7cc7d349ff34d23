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
#define CW_VERSION_MAJOR 0
#define CW_VERSION_MINOR 1
#define CW_VERSION_PATCH 0
#define CW_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The answers of calls, and their reasons ---------------------------------------
 *
 * Every call that can fail returns a cw_status. After a failure, cw_last_error_message()
 * of the same thread names the reason and the remedy.
 */

/// The result of a call. New codes may be added: treat an unknown code as an error.
typedef enum cw_status {
    /// Done.
    CW_OK = 0,
    /// Not now: the page is being written to. Interpret the instruction and come back.
    CW_BUSY = 1,
    /// A write came to the bytes while they were translated. Begin again.
    CW_WRITTEN = 2,
    /// A page of the block stays writable: the block needs a self-checking entry. (Or interpret.)
    CW_NEEDS_CHECK = 3,
    /// The object has parts that are still alive, or is in use. Nothing was done.
    CW_IN_USE = 4,
    /// An unusable argument, NULL for instance, or an object in the wrong state for the
    /// call.
    CW_BAD_ARGUMENT = 5,
    /// A range that wraps, is not aligned, is not mapped or is in no tracked region.
    CW_BAD_RANGE = 6,
    /// The system refused a call: see cw_last_errno().
    CW_SYSTEM = 7,
    /// The mode, or a kernel feature that the call needs, is not available here; the
    /// message names the change that provides it.
    CW_MODE_UNAVAILABLE = 8,
    /// Another tracker has a part of the range already.
    CW_ALREADY_TRACKED = 9,
    /// No room: a code buffer is full (evict blocks and try again), or a table.
    CW_FULL = 10,
    /// Memory is short.
    CW_NO_MEMORY = 11,
    /// This process is a fork's child and cw_after_fork_child() was not called.
    CW_IN_FORK_CHILD = 12,
    /// The kernel no longer tracks the region: its descriptor was closed or its handler
    /// died. Every translation of it is unreachable.
    CW_TRACKING_LOST = 13,
    /// A mistake in the library. Its promises no longer hold.
    CW_INTERNAL = 14,
    /// Nothing is mapped at the page, or a mapping that the region's mode cannot track.
    /// Interpret, or translate for one run, until another mapping comes.
    CW_UNTRACKABLE = 15,
} cw_status;

/// The reason and the remedy for the last failed call of this thread, in UTF-8; "" if none
/// has failed. Owned by the library, and valid until the next call of this thread that
/// fails.
const char *cw_last_error_message(void);

/// The errno of the last failed call of this thread if that returned CW_SYSTEM,
/// otherwise 0.
int cw_last_errno(void);

/// The library's version, "0.1.0" for instance. Static.
const char *cw_version(void);


/* ---- Modes: how the library learns of writes to a region ---------------------------
 *
 * Take cw_best_synchronous(), or the deferred mode if the guest announces its code
 * changes (RISC-V FENCE.I, Arm IC IVAU). The environment variable CODEWARDEN_HIDE
 * hides kernel features, to try the library without them.
 */

/// How the library learns of writes to a region.
typedef enum cw_mode {
    /// userfaultfd; the fault is handled by SIGBUS in the storing thread. Synchronous:
    /// once the store has retired, every block on the bytes is unreachable.
    CW_MODE_SIGBUS = 0,
    /// userfaultfd; a thread of the library handles the fault. The library learns of
    /// the kernel's own writes if the permissions allow. Synchronous.
    CW_MODE_THREAD = 1,
    /// mprotect and SIGSEGV, for kernels without userfaultfd. Synchronous.
    CW_MODE_MPROTECT = 2,
    /// userfaultfd without faults: cw_tracker_sync() finds the writes. When that has
    /// returned, every block on bytes that were written before is unreachable.
    CW_MODE_DEFERRED = 3,
    /// No tracking at all. It promises nothing: a baseline to measure the cost of the
    /// others.
    CW_MODE_NONE = 4,
} cw_mode;

/// The guest's own rights to memory, as its mprotect sets them. The right to run it does not
/// count: memory that may be run but not read is CW_ACCESS_READ.
typedef enum cw_access {
    /// Nothing.
    CW_ACCESS_NONE = 0,
    /// Read.
    CW_ACCESS_READ = 1,
    /// Read and write.
    CW_ACCESS_READ_WRITE = 2,
} cw_access;

/// The best synchronous mode of this kernel and these permissions: sigbus, thread or
/// mprotect, in this order. CW_MODE_UNAVAILABLE if none is available (each needs
/// membarrier, which a seccomp filter may refuse). Then the message says how to change
/// that, and neither mode nor why is written.
///
/// mode: receives the mode.
/// why: if it is not NULL, receives the reason in UTF-8, and the change that would give
/// a better mode. Owned by the library, valid until this thread calls this again.
cw_status cw_best_synchronous(cw_mode *mode, const char **why);

/// Whether a mode is available here: CW_OK, or CW_MODE_UNAVAILABLE with a message that
/// names the missing feature or permission and the change that provides it.
cw_status cw_mode_check(cw_mode mode);

/// The mode's name: "sigbus", "thread", "mprotect", "deferred" or "none". Static; NULL
/// for a number that is no mode.
const char *cw_mode_name(cw_mode mode);

/// The mode of that name. CW_BAD_ARGUMENT for a name that no mode has: mode is as before.
cw_status cw_mode_from_name(const char *name, cw_mode *mode);


/* ---- Policies: how each page's blocks are kept true --------------------------------
 */

/// How each page's translations are kept true.
typedef enum cw_policy {
    /// Protect; open pages ahead of a stream of writes and protect them again in
    /// batches. Blocks need no self-checking entry. A page that the same store keeps hitting
    /// is CW_BUSY for a while: interpret.
    CW_POLICY_ADAPTIVE = 0,
    /// The same, and pages with data that is written, or that are written again and
    /// again, become self-checking: they stay writable, and their blocks compare their
    /// bytes at each entry. Blocks should have a self-checking entry
    /// (cw_ticket_commit()).
    CW_POLICY_ADAPTIVE_WITH_CHECKS = 1,
    /// One page for each fault, as mprotect trackers do it: a baseline for
    /// measurements. A store over two pages may fault many times before it makes
    /// progress.
    CW_POLICY_PLAIN = 2,
} cw_policy;


/* ---- The cache: finds translated code by key, and never gives stale code -----------
 *
 * A key is the guest's pc and any other guest state that a block depends on, in one
 * number that you make; UINT64_MAX is not a key. One cache has all regions (by its
 * tracker) and all vCPUs of a guest. Any thread may call a function that takes a const cw_cache at any
 * time, except in a signal handler and while another thread frees the cache.
 */

/// A cache of translated code.
typedef struct cw_cache cw_cache;

/// The options of a new cache. cw_cache_options_default() gives options for blocks that
/// are never jumped to through entry cells.
typedef struct cw_cache_options {
    /// sizeof(cw_cache_options).
    size_t size_bytes;
    /// The address in the entry cell of a dead block: your code that goes back to the
    /// dispatcher.
    uintptr_t dead_stub;
    /// The address in the entry cell of a block that is being committed: code that does
    /// the same, at another address.
    uintptr_t pending_stub;
    /// How each page's translations are kept true.
    cw_policy policy;
} cw_cache_options;

/// An empty cache without regions. Free it with cw_cache_free().
///
/// CW_BAD_ARGUMENT if the two stubs are equal.
cw_status cw_cache_new(const cw_cache_options *options, cw_cache **cache);

/// Stops tracking every region, calls the destructor of every remaining payload, and
/// frees the cache. Then guest memory may be unmapped. Does nothing for NULL.
///
/// CW_IN_USE while a ticket, vCPU, hold, mapping change or fork guard of it is alive:
/// free that first; the cache is unchanged. Links and allocations may outlive the
/// cache. Code of the cache must not be running.
cw_status cw_cache_free(cw_cache *cache);

/// Makes the block of the key unreachable: its self-checking entry found that its bytes have
/// changed, or you no longer want it. Does nothing if there is no block.
cw_status cw_cache_remove(const cw_cache *cache, uint64_t key);

/// Frees the payloads of dead blocks if no vCPU can be inside them and they are not
/// retained for cw_ticket_revive(). Commits do this too, for some at a time; call it if you stop
/// translating for long.
cw_status cw_cache_collect(const cw_cache *cache);

/// Asks every vCPU that is inside translated code now to leave, and returns when each
/// has been outside since. A block made unreachable before this call runs on no vCPU
/// after it.
///
/// CW_BAD_ARGUMENT if the calling thread has a vCPU pinned itself.
cw_status cw_cache_wait_for_vcpus(const cw_cache *cache);

/// Keeps the memory of translations within limits from now on: live_bytes for reachable
/// blocks (1 GiB without this call), retained_bytes for dead and evicted blocks that are
/// retained for cw_ticket_revive() (4 MiB). Each commit evicts the oldest blocks beyond
/// the limit; the block that was committed last stays.
///
/// Three things count: the bytes declared by cw_ticket_set_payload_bytes(), the
/// allocations that blocks keep (cw_ticket_keep_allocation()), and the cache's own
/// records.
cw_status cw_cache_set_limit(const cw_cache *cache,
                             size_t live_bytes,
                             size_t retained_bytes);

/// Discards blocks with payload_bytes of payloads, the oldest first, and all blocks if
/// there are not as many bytes: for a code buffer that answers CW_FULL. SIZE_MAX
/// discards all.
///
/// Call it while your own vCPU is not pinned, and try the allocation again. If another
/// vCPU may be inside a block, it is asked to leave, and the block is freed when it has
/// unpinned. Until the memory is free, do without it for a while (interpret).
cw_status cw_cache_evict(const cw_cache *cache, size_t payload_bytes);


/* ---- The reports of a tracker to a cache of your own, and your lock around them ----
 *
 * told(context, page, why) is called for a page that you have claimed, before the store
 * goes through (synchronous modes) or before cw_tracker_sync() returns. It names the page
 * with the code, by its guest address: if memory is mapped twice, that may be another page
 * than the one that was stored to. It may be called for a page that has no blocks any more, or whose
 * mapping has changed since (claims of the new one stay current), and twice for one. The calling thread is the one that stored, in its
 * signal handler; the library's (CW_MODE_THREAD); or one that is in a call of yours for this
 * tracker. So several threads may call it at once, unless you have a lock:
 *
 * One lock of yours may be held around every call for the tracker and around
 * cw_handle_fault(). Then told() runs under it, and may use all that it guards: unlink
 * blocks, free them (those that another thread is running when that has left them). For that:
 *
 * - In modes sigbus and mprotect own the signals (embedder_owns_signals), and take the lock
 *   in your handler before cw_handle_fault(). Any lock will do, a pthread mutex too: the thread
 *   that faults does not hold it, by the third rule.
 * - Give lock() and unlock(): the library's thread of CW_MODE_THREAD calls them around each
 *   fault, and cw_tracker_free() around the end. No other call takes the lock.
 * - Store to no tracked page while you hold it, unless the write was announced
 *   (cw_tracker_announce_write(), cw_tracker_prepare_kernel_write()). Your store would wait for the lock that you hold. (If a thread may take your lock twice it does not wait
 *   in modes sigbus and mprotect, but told() may then run amid your own work under the lock.)
 *
 * Without a lock told() may only change atomic words: it may interrupt a thread that holds
 * any other lock. In either case it must not call this library, store to tracked memory,
 * unwind or longjmp, and it takes no other lock that a thread may hold while it calls this
 * library or stores to guest memory.
 */

/// Why no block of a page may be reached when told() returns.
typedef enum cw_told {
    /// The page's bytes are about to change, or have changed, or may have.
    CW_TOLD_WRITTEN = 0,
    /// The page is self-checking from now on: it stays writable, and changes without further
    /// notice. Blocks that compare their bytes at each entry may stay, no other.
    CW_TOLD_CHECKED = 1,
    /// The page was self-checking and has cooled: its next blocks need not compare their
    /// bytes. No block may stay, also none that compares: nothing more is told of it.
    CW_TOLD_COOLED = 2,
    /// The page is tracked no more: its region was removed, the kernel's tracking was lost, or
    /// the process is a fork's child that cannot keep its blocks. A claim tells whether that has
    /// changed.
    CW_TOLD_LOST = 3,
} cw_told;

/// The options of a new tracker. cw_tracker_options_default() fills in the rest.
typedef struct cw_tracker_options {
    /// sizeof(cw_tracker_options).
    size_t size_bytes;
    /// How each page's blocks are kept true.
    cw_policy policy;
    /// See above. Not NULL.
    void (*told)(void *context, uint64_t page, cw_told why);
    /// Takes your lock; NULL if there is none.
    void (*lock)(void *context);
    /// Gives your lock back; NULL if there is none.
    void (*unlock)(void *context);
    /// Whether a thread other than the calling one may be looking blocks up or running them
    /// now. It is asked between told() and the opening of the page, in the same thread. If so,
    /// all threads pass a barrier, which is a system call: a processor may run the look-up of
    /// a block ahead of its own store. The thread whose store it is need not count, also in mode
    /// thread, where the library's thread asks: its fault has ended everything that it ran ahead. False is
    /// right only if each other thread that looks blocks up passes a sequentially consistent
    /// fence between this call and its next look-up. NULL: always a barrier.
    bool (*others_may_look)(void *context);
    /// Passed to these functions. It stays valid until cw_tracker_free() has returned: also behind the end
    /// of its last region the library's thread (CW_MODE_THREAD) may be waiting in lock().
    void *context;
} cw_tracker_options;


/* ---- Trackers: what learns of writes to guest memory -------------------------------
 *
 * A cache of this library has a tracker, cw_cache_tracker(). If your blocks are in a cache
 * of your own, make a tracker for it, cw_tracker_new(): it tells you which pages' blocks
 * have become stale. Regions, mappings, announced writes, forks and statistics are the same
 * for both. Any thread may call a function that takes a const cw_tracker at any time, except
 * in a signal handler and while another thread frees the tracker.
 */

/// A tracker.
typedef struct cw_tracker cw_tracker;

/// A tracker without regions, for a cache of your own. Free it with cw_tracker_free().
///
/// CW_BAD_ARGUMENT if told is NULL, or only one of lock and unlock.
cw_status cw_tracker_new(const cw_tracker_options *options, cw_tracker **tracker);

/// Stops tracking every region, tells CW_TOLD_LOST of every page that was claimed, and frees
/// the tracker. When it has returned none of its functions is called any more, and guest
/// memory may be unmapped. Does nothing for NULL.
///
/// Not under your lock: this takes it, and waits until the library's thread has left it.
///
/// CW_IN_USE while a hold or fork guard of it is alive: free that first; the tracker is
/// unchanged. CW_BAD_ARGUMENT for a cache's tracker, which ends with the cache. Claims of it
/// must not be used any more.
cw_status cw_tracker_free(cw_tracker *tracker);

/// Lets self-checking pages that have cooled be protected again, and checks whether regions
/// are still tracked. Call it some times a second, from a timer. It costs next to
/// nothing if there is nothing to do. If you never call it, pages that have become self-checking
/// stay so, and a lost descriptor is noticed only by the next call that asks the kernel.
cw_status cw_tracker_maintain(const cw_tracker *tracker);


/* ---- Claims: pages that blocks of your own cache are made from ---------------------
 *
 *     switch (cw_tracker_claim(tracker, pc, &claim)) {        // protects the page
 *     case CW_OK: break;
 *     case CW_NEEDS_CHECK: block->compares = true; break;     // only if the policy has checks
 *     default: return run_once(pc);                           // CW_BUSY, CW_UNTRACKABLE, ...
 *     }
 *     if (cw_claim_read(&claim, pc, block->bytes, len) != CW_OK)  // once, and only after the claim
 *         return run_once(pc);
 *     cw_claim_add_code(&claim, pc, len);                     // may be left out
 *     translate(block);
 *     enter(block);                                           // told() finds it, a look-up does not yet
 *     if (cw_claim_is_current(&claim))                        // not needed under your lock
 *         allow(block);                                       // now a look-up finds it
 *     else
 *         unlink(block);
 *
 * If your lock is held from the claim until the block is entered, and around every fault, no
 * write comes between: cw_claim_is_current() is not needed, and a look-up may find the block at
 * once. If not, enter the block so that told() finds it, ask, and only then let it be run: an
 * earlier write ends the claim, a later one finds the block. What told() has killed stays dead,
 * also if allow() comes after it. A number for each page does all of that: take it before the
 * claim, keep it in the block, compare it at each look-up; told() raises it (own_cache.cpp).
 * A lock that is held at the end only does it, too: take it, ask, and enter the block if the claim is
 * current.
 *
 * Claim every page that you read code from, also if the guest may not write it: another
 * mapping of its bytes may be writable (a JIT's writable half). Such a claim is cheap, as one
 * system call protects its read-only neighbours too. Only private memory that the guest may not
 * write needs none, if your own hooks end its blocks when it may be written or is mapped anew.
 * Read the bytes of blocks through their claims (cw_claim_read()): then no claim can be forgotten. A claim covers all declared
 * mappings of its page; a block on two pages has two claims.
 *
 * A store into the running block. Some processors (x86) run the new bytes at the next instruction.
 * If cw_handle_fault() returned true, look whether the block that stored is dead: if so, carry out
 * its store alone and look the next instruction up. That needs the signal of mode sigbus or
 * mprotect. In every mode: told() sets a flag of each vCPU, and blocks ask for it at their entry and
 * behind each store, and leave. A self-checking page does not fault, so end its blocks behind each
 * store, or let them compare there again.
 *
 * Self-checking. A page with the answer CW_NEEDS_CHECK stays writable. Its blocks compare the
 * guest's bytes with those that they were made from at each entry. The guest may store while you
 * translate, so translate from the bytes of one cw_claim_read(), and compare with the same
 * ones: a second reading may differ.
 *
 * CW_BUSY without an interpreter. A write to the page is in progress, or the same store keeps
 * hitting it. Then translate for one run: read the bytes anew (memcpy), end the block behind its
 * first store or system call, run it once, and throw it away. Enter it nowhere, and link no
 * block to it. That is what an interpreter does, and it makes progress however often the page is
 * written. To make it rare choose CW_POLICY_ADAPTIVE_WITH_CHECKS: with CW_POLICY_ADAPTIVE a page
 * that the same store keeps hitting is busy for 32 ms at a time, with checks it becomes
 * self-checking. Then, under one lock, a claim is busy only while a hold lasts.
 *
 *     for (;;) {
 *         struct block *block = find(pc);
 *         if (!block && !(block = translate(pc)))            // CW_BUSY, CW_UNTRACKABLE
 *             block = translate_for_one_run(pc);
 *         pc = run(block);
 *         if (block->runs_once)
 *             free(block);
 *     }
 */

/// A page that was claimed: a value, which you may copy and need not free. Its fields are the
/// library's, except page.
typedef struct cw_claim {
    /// NULL if the claim failed.
    const cw_tracker *tracker;
    /// The first byte of the page for the guest.
    uint64_t page;
    /// Names the page's blocks until they are reported.
    uint64_t stamp;
    /// The same of its bytes at other addresses.
    uint64_t shared_stamp;
} cw_claim;

/// Protects the page that holds guest, and every page that is known to show the same bytes.
/// From now on its bytes may be read, each of them once.
///
/// After CW_OK and CW_NEEDS_CHECK the page is claimed. After any other answer it is not, and
/// claim is of no page. The next step after each answer:
///
/// CW_OK: read the page's bytes.
/// CW_NEEDS_CHECK: the same, and the block compares its bytes at each entry. Only if the policy
/// has checks.
/// CW_BUSY: a write to the page is in progress or announced. Interpret, or translate for one run
/// (see above).
/// CW_UNTRACKABLE: no mapping is there, or one that the region's mode cannot track. The same;
/// or track it by other means. The answer costs no system call.
/// CW_BAD_RANGE: no region holds guest. Add the region, or interpret.
/// CW_TRACKING_LOST, CW_SYSTEM, CW_NO_MEMORY, CW_IN_FORK_CHILD: as for cw_ticket_claim().
/// CW_BAD_ARGUMENT: NULL, a cache's tracker, or this thread holds the guard of a fork.
cw_status cw_tracker_claim(const cw_tracker *tracker, uint64_t guest, cw_claim *claim);

/// Copies len_bytes at guest, which lie on the claimed page, into your buffer. It is one
/// snapshot for the block: each byte is read once, an aligned word of 8, 4 or 2 bytes whole.
/// So read all that you need of a page, the whole of it if you do not know yet, in one call.
///
/// CW_WRITTEN: the claim is not current, as cw_claim_is_current() tells. Claim again, or translate for one run.
/// CW_BAD_RANGE: not all of the bytes lie on the page, or the guest may not read it (CW_ACCESS_NONE).
/// CW_BAD_ARGUMENT: NULL, or the claim failed.
/// Other answers are those of a claim.
cw_status cw_claim_read(const cw_claim *claim,
                        uint64_t guest,
                        void *buffer,
                        size_t len_bytes);

/// Declares that a block is made from len_bytes at guest, which lie on the claimed page.
/// Call it before the block is entered.
///
/// Then stores to other bytes of the page are data: if the policy has checks they make the page
/// self-checking instead of stale. And pages with declared code are opened and protected in
/// batches. Without it every byte of the page belongs to the block.
///
/// CW_BAD_RANGE: not all of the bytes lie on the page. A block on two pages calls it for each part.
/// CW_BAD_ARGUMENT: NULL, or the claim failed.
cw_status cw_claim_add_code(const cw_claim *claim, uint64_t guest, size_t len_bytes);

/// Whether told() was not called for the page since it was claimed, and the region is there.
/// False for a claim that failed, and for NULL.
bool cw_claim_is_current(const cw_claim *claim);


/* ---- Regions: the guest memory that is tracked -------------------------------------
 *
 * Guest memory is yours (mmap it): the library takes write permission from its pages
 * and gives it back. Use anonymous memory for private memory, not of MAP_HUGETLB. Memory that the guest
 * maps at several places is a memfd, with each mapping in a region and declared. If
 * you write through a mapping of your own, it is not tracked: call
 * cw_tracker_invalidate(). Never leave tracked memory to MADV_FREE or MADV_MERGEABLE by a call of
 * your own: the kernel changes it, or forgets its protection, later and without notice.
 */

/// The device of memory that has no file: see cw_shared_memory.
#define CW_NO_DEVICE UINT64_MAX

/// The options of a new region. cw_region_options_default() fills in the rest.
typedef struct cw_region_options {
    /// sizeof(cw_region_options).
    size_t size_bytes;
    /// Its address for the guest. A multiple of the page size.
    uint64_t guest;
    /// Its address in this process, on a page boundary: mapped, at least with PROT_NONE,
    /// unless it is reserved. Not NULL: if guest addresses are your own, begin at the lowest
    /// that can be mapped.
    void *host;
    /// Its length: whole pages.
    size_t len_bytes;
    /// How the library learns of writes to it.
    cw_mode mode;
    /// The guest's rights to it, as it is mapped now.
    cw_access access;
    /// Whether your own handlers of SIGBUS and SIGSEGV call cw_handle_fault(): the
    /// library installs no handler then. Modes thread and deferred use no signal.
    bool embedder_owns_signals;
    /// The guest's processor may run old bytes until it executes an instruction for that
    /// (FENCE.I on RISC-V, ISB on Arm, isync on POWER), at which you call cw_tracker_sync()
    /// on the thread of that vCPU, in every mode. Then a write fault needs no barrier on
    /// all threads while other vCPUs run. Off by default.
    bool explicit_fetch;
    /// Address space without a mapping of the guest's yet: cw_tracker_map() each that comes.
    /// Only what was mapped so is touched, and holes and memory of your own may lie between. It
    /// may be as large as the guest's address space: its size costs nothing. access is of no
    /// meaning then. Off by default.
    bool reserved;
} cw_region_options;

/// Memory that is mapped at several places. Two mappings with one device and one number show
/// the same memory. cw_shared_file() and cw_shared_number() make one.
typedef struct cw_shared_memory {
    /// st_dev of the file or memfd, from fstat. CW_NO_DEVICE for memory without a file (shared
    /// anonymous memory).
    uint64_t device;
    /// st_ino. For memory without a file a number of yours, another one for each memory.
    uint64_t number;
    /// The offset in it at which the mapping begins, in bytes.
    uint64_t offset_bytes;
} cw_shared_memory;

/// The tracker of a cache, valid until the cache is freed: for regions, mappings and writes.
/// NULL for NULL.
const cw_tracker *cw_cache_tracker(const cw_cache *cache);

/// Starts to track a region. All of it is writable until it is translated from.
///
/// The memory stays mapped as guest memory until cw_tracker_remove_region() or the _free of
/// the tracker or its cache has returned. If you replace or unmap parts of it, or change
/// their protection, use the functions of the section about mappings. A thread that stores to it must not have the mode's signal
/// blocked (SIGBUS for sigbus, SIGSEGV for mprotect): the kernel would end the process
/// there.
///
/// CW_BAD_RANGE if it is not whole pages, overlaps another region or is not mapped.
/// CW_MODE_UNAVAILABLE if the mode is not available. CW_SYSTEM if the mode cannot track
/// this mapping. CW_ALREADY_TRACKED if another userfaultfd tracks it. CW_BAD_ARGUMENT if the
/// tracker has a lock, the mode is sigbus or mprotect, and the signals are not yours: the
/// library's handler takes no lock.
cw_status cw_tracker_add_region(const cw_tracker *tracker,
                                const cw_region_options *options);

/// Stops tracking the region that starts at guest: its translations are unreachable,
/// its pages are writable, and the memory is yours alone.
///
/// CW_BAD_ARGUMENT if no region starts there: nothing was done. After any other failure
/// the region is gone all the same, and its translations are unreachable, but pages of
/// it may have been left protected: map the memory anew before you store to it.
cw_status cw_tracker_remove_region(const cw_tracker *tracker, uint64_t guest);

/// How the library learns of writes at guest; CW_BAD_RANGE outside every region.
cw_status cw_tracker_mode_at(const cw_tracker *tracker, uint64_t guest, cw_mode *mode);


/* ---- Mappings that come, go and change, and memory with several of them ------------
 *
 * If you change a mapping in a region, call the library before and after:
 *
 *     cw_tracker_unmap(tracker, guest, len);              // before: none of its blocks is reachable
 *     mmap(..., MAP_FIXED, ...);
 *     cw_tracker_map(tracker, guest, len, access, NULL);  // after: what is there now is tracked
 *
 * Between the two a claim of the range answers CW_UNTRACKABLE. So when the new bytes are there
 * no thread runs a block of the old ones, or makes one. If nothing was mapped before, the second
 * call is enough. If nothing is mapped afterwards (munmap), the first one is. If your system
 * call failed, tell by cw_tracker_map() what is there still.
 *
 * cw_tracker_protect(), cw_tracker_discard() and cw_tracker_move() carry the guest's system call
 * out themselves. If the kernel refuses it, they answer CW_SYSTEM with its errno, and the mapping
 * is tracked as before.
 *
 * Bounds are rounded to whole pages.
 */

/// The mapping of len_bytes from guest is about to go, or another one is about to take its
/// place. When this returns no block of the range can be reached, and none is made until
/// cw_tracker_map(): a claim answers CW_UNTRACKABLE. The range is yours: unmap it, reserve it
/// (PROT_NONE), or use it for yourself.
///
/// CW_BAD_RANGE, and nothing is done, if the range wraps or no byte of it lies in a region.
/// After another failure no block can be reached either.
cw_status cw_tracker_unmap(const cw_tracker *tracker, uint64_t guest, uint64_t len_bytes);

/// A mapping is in place now at len_bytes from guest, with this access for the guest: tracks
/// it. memory: the memory that its first page shows, if that may be mapped elsewhere too; NULL if
/// it is private. What was there before counts as gone.
///
/// CW_UNTRACKABLE if the mode cannot track the mapping, or another userfaultfd does: a claim there answers
/// the same until another mapping comes; parts that can be tracked are. CW_BAD_RANGE if the offset in
/// memory is not a multiple of the page size or wraps: then nothing is tracked there. CW_BAD_RANGE too, and nothing is done, if the range
/// wraps or no byte of it lies in a region.
cw_status cw_tracker_map(const cw_tracker *tracker,
                         uint64_t guest,
                         uint64_t len_bytes,
                         cw_access access,
                         const cw_shared_memory *memory);

/// Carries out the guest's mprotect of len_bytes from guest. The tracking's protection stays,
/// and no block dies. CW_BAD_RANGE, and nothing is done, if the range wraps or not all of its
/// pages lie in regions and are tracked: carry it out yourself on those that are
/// CW_UNTRACKABLE. Try each half of the range to find them.
/// Mode mprotect does not ask the kernel about pages that it protects itself: if they may never be written
/// (a file that was opened for reading) a store is refused, and tracking is lost.
///
/// If the guest may no longer run the pages, or read them, call cw_tracker_unmap() before and
/// cw_tracker_map() after your own mprotect instead, or end their blocks yourself.
cw_status cw_tracker_protect(const cw_tracker *tracker,
                             uint64_t guest,
                             uint64_t len_bytes,
                             cw_access access);

/// Carries out the guest's madvise(len_bytes from guest, advice), for advice that changes
/// contents: MADV_DONTNEED, MADV_REMOVE, MADV_FREE. No block of the range can be reached from
/// before the call on, and none is made until it is over. MADV_FREE frees at once: the kernel
/// would do so later, without notice.
///
/// CW_BAD_RANGE, and nothing is done, if the range wraps or does not lie in one region.
/// CW_BAD_ARGUMENT, and nothing is done, for MADV_MERGEABLE, by which protection is lost (it is a hint:
/// leave it out), and for MADV_GUARD_INSTALL: call cw_tracker_unmap() before your own.
cw_status cw_tracker_discard(const cw_tracker *tracker,
                             uint64_t guest,
                             uint64_t len_bytes,
                             int advice);

/// Carries out the guest's mremap: the mapping of from_bytes at from is at to afterwards, with
/// to_bytes. Blocks of both ranges can be reached no more; access and declared memory move along.
/// flags: MREMAP_DONTUNMAP, or 0; where to differs from from the kernel is told to put it there
/// (MREMAP_FIXED). If to is from, it grows or shrinks in its place. If from has a hole
/// (Linux 6.17), what was at to there stays mapped, and is not tracked: cw_tracker_map() it.
///
/// CW_BAD_RANGE, and nothing is done, if a range wraps or does not lie in one region, or to
/// begins inside a page. CW_BAD_ARGUMENT for another flag, and for a from_bytes of 0, which makes a second
/// mapping of shared memory: carry that out yourself, and call cw_tracker_map() with the memory that from
/// was declared to show. (If it was not, give it a number of yours, and declare from as well:
/// cw_shared_number(), cw_tracker_declare_shared().) CW_UNTRACKABLE if the mapping was moved but
/// a part of it that was tracked cannot be at its new place: a claim there answers the same.
cw_status cw_tracker_move(const cw_tracker *tracker,
                          uint64_t from,
                          uint64_t from_bytes,
                          uint64_t to,
                          uint64_t to_bytes,
                          int flags);

/// Declares that len_bytes from guest, in a region and mapped already, show memory that
/// may be mapped elsewhere too. Then a store through any declared mapping reaches the
/// blocks of all. If memory has several mappings, declare each of them before the guest
/// can store to it. (cw_tracker_map() declares too.) While one of them lies where nothing is mapped, the others
/// cannot be claimed (CW_UNTRACKABLE). CW_BAD_RANGE, and nothing is done, if the range or the offset is
/// not whole pages or wraps, or if not all of the range lies in regions.
cw_status cw_tracker_declare_shared(const cw_tracker *tracker,
                                    uint64_t guest,
                                    uint64_t len_bytes,
                                    cw_shared_memory memory);


/* ---- Executable memory, for embedders that have no allocator for it ----------------
 *
 * The memory is mapped twice: write code through one address, run it at another. No
 * mapping is writable and executable, and none changes its protection.
 *
 *     cw_code_buffer_alloc(buffer, len, 16, &code);         // CW_FULL: evict, try again
 *     memcpy(cw_allocation_rw(code), ...);                  // runs at cw_allocation_rx()
 *     cw_allocation_publish(code);                          // before any other code gets the address
 *     cw_ticket_keep_allocation(ticket, code);              // freed with its block
 *
 * Any thread may use a buffer. Any thread may free an allocation, when no thread runs
 * in it.
 */

/// A piece of it.
typedef struct cw_allocation cw_allocation;

/// Executable memory of bounded size.
typedef struct cw_code_buffer cw_code_buffer;

/// The use of a code buffer. May get more fields at its end.
typedef struct cw_code_buffer_stats {
    /// sizeof(cw_code_buffer_stats); afterwards the number of bytes that were filled
    /// in.
    size_t size_bytes;
    /// The bytes that it can hold.
    size_t limit_bytes;
    /// The bytes allocated now, rounded up to the allocator's unit.
    size_t used_bytes;
    /// The most bytes that may have memory behind them now.
    size_t resident_bytes;
    /// The largest allocation that would succeed now.
    size_t largest_free_bytes;
    /// Allocations that are alive.
    size_t allocations;
    /// The bytes given back to the system so far.
    uint64_t given_back_bytes;
} cw_code_buffer_stats;

/// A buffer for limit_bytes of code, rounded up to whole pages. It takes twice as much
/// address space, and memory as code is put into it.
cw_status cw_code_buffer_new(size_t limit_bytes, cw_code_buffer **buffer);

/// Frees the handle. The memory is freed with its last allocation. Does nothing for
/// NULL.
void cw_code_buffer_free(cw_code_buffer *buffer);

/// Memory for len_bytes of code at a multiple of align_bytes, a power of two up to the
/// page size. Its contents are undefined.
///
/// CW_FULL if no free range is large enough: cw_cache_evict(), and try again.
cw_status cw_code_buffer_alloc(const cw_code_buffer *buffer,
                               size_t len_bytes,
                               size_t align_bytes,
                               cw_allocation **allocation);

/// Fills in the buffer's use. Set stats->size_bytes before.
cw_status cw_code_buffer_get_stats(const cw_code_buffer *buffer,
                                   cw_code_buffer_stats *stats);

/// The address to write the code to. NULL for NULL.
void *cw_allocation_rw(const cw_allocation *allocation);

/// The address at which the code runs. NULL for NULL.
const void *cw_allocation_rx(const cw_allocation *allocation);

/// The number of bytes that were asked for. 0 for NULL.
size_t cw_allocation_len_bytes(const cw_allocation *allocation);

/// Makes every thread fetch the bytes written there as code. Call it after the last
/// write and before any other code gets the address: processors may have fetched the
/// old bytes. If it fails, the code must not be run.
cw_status cw_allocation_publish(const cw_allocation *allocation);

/// Publishes allocation_count allocations, of any buffers, by one interruption of the other
/// processors. It costs more than to compile a small block quickly: so write many blocks,
/// publish them together, then commit each. If it fails, none of the code must be run.
cw_status cw_allocation_publish_all(const cw_allocation *const *allocations,
                                    size_t allocation_count);

/// Frees it. No thread may be running in it, or come to it. Does nothing for NULL.
void cw_allocation_free(cw_allocation *allocation);


/* ---- Links: jumps from block to block ----------------------------------------------
 *
 * A block is reached only through its entry cell: one word that holds the address of
 * its code, of the dead stub or of the pending stub. Emitted code jumps to the address
 * in the cell, so killing a block is one store and reaches every link to it:
 *
 *     mov rax, imm64 cell     ; x86-64, the address of the cell
 *     jmp [rax]
 */

/// Leads to the present and future blocks of one key.
typedef struct cw_link cw_link;

/// A link to the blocks of the key. Keep it as long as code jumps through its cell. A
/// block keeps the links of its code with cw_ticket_keep_link(); free other links with
/// cw_link_free(). A link may outlive the cache.
cw_status cw_cache_link(const cw_cache *cache, uint64_t key, cw_link **link);

/// The cell to jump through: load it atomically with acquire, or let the processor's
/// indirect jump do so, in either case under a vCPU's pin. While there is a link to the
/// key, the address is valid, and the same for every such link. NULL for NULL.
const uintptr_t *cw_link_cell(const cw_link *link);

/// Frees a link. No code may jump through its address any more, unless there is another
/// link to the key. Does nothing for NULL.
void cw_link_free(cw_link *link);


/* ---- Tickets: a translation in progress --------------------------------------------
 *
 *     cw_cache_begin(cache, pc, &ticket);
 *     cw_ticket_claim(ticket, pc, NULL);                    // protects the page
 *     ... read the guest's bytes, each once, translate ...
 *     cw_ticket_add_source(ticket, pc, bytes, len);         // the bytes that it is made from
 *     cw_ticket_commit(ticket, entry, 0, payload, destroy); // reachable, or CW_WRITTEN
 *     cw_ticket_free(ticket);                               // in any case
 *
 * A ticket belongs to one thread at a time. After a commit, or a revival that found a
 * block, it is spent: then only cw_ticket_free() may follow. A ticket that is freed
 * before leaves nothing behind.
 */

/// The stale flag of a valid block: go on.
#define CW_STALE_VALID 0

/// The block is dead: leave right after the store.
#define CW_STALE_DEAD 1

/// The block's page is writable: leave after a store that may have hit the block's own
/// bytes.
#define CW_STALE_CHECKED 2

/// The same, and the bytes have other addresses too: leave after any store.
#define CW_STALE_CHECKED_SHARED 3

/// A commit is in progress: as for a dead one.
#define CW_STALE_PENDING 4

/// A translation in progress.
typedef struct cw_ticket cw_ticket;

/// Begins a translation that will be found by key.
cw_status cw_cache_begin(const cw_cache *cache, uint64_t key, cw_ticket **ticket);

/// Protects the page that holds guest, if this ticket has not yet, and every page that
/// is known to show the same bytes. From now on its bytes may be read, each of them
/// once: in a deferred region a second reading may differ.
///
/// host_page: if it is not NULL, receives the page's address in this process.
///
/// Unless the answer is CW_OK this page is not claimed. Earlier claims of the ticket
/// stay, and the ticket may be used as before. The next step after each answer:
///
/// CW_OK: read the page's bytes.
/// CW_BUSY: a write to the page is in progress or announced. Interpret, and claim it later, by
/// this ticket or another one.
/// CW_BAD_RANGE: no region holds guest. Add the region, or interpret.
/// CW_TRACKING_LOST: the kernel no longer tracks the region. Interpret, or take the region
/// away and add it again (cw_tracker_remove_region(), cw_tracker_add_region()).
/// CW_SYSTEM, CW_NO_MEMORY: the kernel did not protect the page; the message names
/// the remedy. Interpret; a later claim asks the kernel again, or answers CW_TRACKING_LOST.
/// CW_IN_FORK_CHILD: the fork that made this process was not announced, and the mode has a
/// userfaultfd, which is the parent's. Interpret; later claims are CW_TRACKING_LOST.
/// CW_BAD_ARGUMENT: the ticket is NULL or spent. Begin another one.
cw_status cw_ticket_claim(cw_ticket *ticket, uint64_t guest, const void **host_page);

/// Declares that the block is made from these bytes, which were read at guest after the
/// pages there were claimed. Call it for each piece of the guest's code, in the same
/// order each time that the same code is translated. The bytes are copied: pass the
/// bytes that you read, not the guest's memory, which may have changed.
///
/// With it, a write to other bytes of the pages is a data write, which may leave the
/// block, and the block can be revived. Without it, every byte of the pages belongs to
/// the block. Code that depends on anything but the key and these bytes must not call
/// it.
///
/// CW_BAD_RANGE if a page of the range was not claimed or the range wraps,
/// CW_BAD_ARGUMENT if bytes is NULL or there are none. After any failure the ticket
/// makes no block any more: begin another one.
cw_status cw_ticket_add_source(cw_ticket *ticket,
                               uint64_t guest,
                               const void *bytes,
                               size_t len_bytes);

/// Records every other input of the translation, as one number that you make: a retained
/// block with another number is not revived. The default is 0.
cw_status cw_ticket_set_options(cw_ticket *ticket, uint64_t options);

/// Declares how many bytes of memory the payload owns, in addition to the allocations
/// that the block keeps. They count against cw_cache_set_limit().
cw_status cw_ticket_set_payload_bytes(cw_ticket *ticket, size_t payload_bytes);

/// Gives an allocation to the block. It is freed with the block, when no vCPU can be
/// inside, or with the ticket if that is not committed. If this returns CW_OK the
/// handle is gone; its addresses stay. It counts against cw_cache_set_limit().
cw_status cw_ticket_keep_allocation(cw_ticket *ticket, cw_allocation *allocation);

/// Gives a link to the block whose code jumps through its cell. It is freed with the
/// block, or with the ticket if that is not committed. If this returns CW_OK the handle
/// is gone.
cw_status cw_ticket_keep_link(cw_ticket *ticket, cw_link *link);

/// Whether the block needs a self-checking entry, because a claimed page is written to
/// all the time and stays writable. If it needs none, a page may still become
/// self-checking later. False for a spent ticket.
bool cw_ticket_needs_check(const cw_ticket *ticket);

/// Whether no write came since the pages were claimed. Otherwise a commit would be
/// refused. False for a spent ticket.
bool cw_ticket_is_current(const cw_ticket *ticket);

/// The block's stale flag: a byte that is CW_STALE_VALID while the block is valid and
/// entered by its plain entry, and otherwise another CW_STALE_ value. Emitted code that
/// may store to its own bytes polls it after stores, and leaves the block if it is not
/// CW_STALE_VALID. It lives as long as the block's payload. NULL for a spent ticket.
const uint8_t *cw_ticket_stale_flag(cw_ticket *ticket);

/// Looks for a retained block of the same key, made from the same bytes
/// (cw_ticket_add_source(), called for all of them before) with the same options. Makes
/// it reachable again, unless such a block is reachable already.
///
/// revived: receives true if such a block is reachable now: there is nothing to
/// translate, and the ticket is spent. Otherwise translate, and commit.
///
/// CW_WRITTEN: a write came since a page was claimed. The ticket is spent: begin again.
/// CW_BAD_ARGUMENT: cw_ticket_add_source() failed, and the ticket is spent; or it was before.
cw_status cw_ticket_revive(cw_ticket *ticket, bool *revived);

/// Makes the block reachable: lookups of its key and links to it lead to plain until a
/// write to its bytes arrives. It supersedes a block of the same key. The ticket is
/// spent after any answer.
///
/// plain: the address of the block's code.
/// checked: the address of the self-checking entry: code that first compares the guest's
/// bytes with the bytes that the block was made from. If they are the same, it goes on
/// like the plain entry. If not, it goes back to the dispatcher, which calls
/// cw_cache_remove(). 0 if there is none. The two differ from each other, from both stubs
/// and from 0.
///
/// payload, destroy: the data that the block owns; both may be NULL. destroy(payload)
/// is called once after any answer: when no vCPU can be inside the block any more and
/// it is not retained for cw_ticket_revive(). For a block that was refused that may be
/// before the return. Any thread that is in a call of this library may call it, never
/// in a signal handler. It must not call the library except to free links and
/// allocations, nor unwind or longjmp.
///
/// CW_WRITTEN: a write came since a page was claimed: begin again, or interpret.
/// CW_NEEDS_CHECK: cw_ticket_needs_check() is true, and there is no self-checking entry.
/// CW_BAD_ARGUMENT: no page was claimed, cw_ticket_add_source() failed, an address or the
/// key cannot be used, or an allocation that the block keeps was never published
/// (cw_allocation_publish()).
cw_status cw_ticket_commit(cw_ticket *ticket,
                           uintptr_t plain,
                           uintptr_t checked,
                           void *payload,
                           void (*destroy)(void *payload));

/// Frees a ticket, spent or not. Does nothing for NULL.
void cw_ticket_free(cw_ticket *ticket);


/* ---- vCPUs: looking blocks up and running them -------------------------------------
 *
 * A vCPU is pinned while it looks blocks up and runs them: the blocks that it finds
 * live until it is unpinned. Unpin around guest system calls and anything else that
 * may last, and when asked to leave: pinned vCPUs keep the memory of dead blocks back.
 * A vCPU belongs to one thread at a time, and may move between threads while it is not
 * pinned.
 *
 *     cw_vcpu_pin(vcpu);
 *     entry = cw_lookup(vcpu, &front, key);                 // 0: translate, or interpret
 *     if (entry) ((run *)entry)(state);
 *     cw_vcpu_unpin(vcpu);
 *
 * Emitted code may probe the front itself. The slot of a key is
 * front.slots[CW_FRONT_INDEX(key)]; if its key is the wanted one, jump to the
 * address in its cell. Do so only under the vCPU's pin: without it the cells may be
 * freed, or belong to other keys by now. cw_lookup() asserts the pin unless NDEBUG is
 * defined; emitted code can test the byte front.is_pinned itself.
 */

/// Slots of a vCPU's front; a power of two.
#define CW_FRONT_SLOTS 4096

/// One vCPU.
typedef struct cw_vcpu cw_vcpu;

/// One slot of a vCPU's front, 16 bytes on 64-bit hosts.
typedef struct cw_front_slot {
    /// The key, or UINT64_MAX if the slot is empty.
    uint64_t key;
    /// Its entry cell: one word that is read atomically, with acquire. An empty slot
    /// has a cell that leads to the dead stub.
    const uintptr_t *cell;
} cw_front_slot;

/// The data for a lookup without a call. Valid until the vCPU is freed.
typedef struct cw_front {
    /// CW_FRONT_SLOTS slots.
    const cw_front_slot *slots;
    /// The dead stub of the cache: nothing to run.
    uintptr_t dead_stub;
    /// The pending stub of the cache: nothing to run.
    uintptr_t pending_stub;
    /// A byte that is 1 while the vCPU is pinned, and 0 while it is not.
    const uint8_t *is_pinned;
} cw_front;

/// A new vCPU, not pinned. Free it with cw_vcpu_free().
///
/// ask_to_leave(context), if it is not NULL, is called if this vCPU holds memory back
/// for long or cw_cache_wait_for_vcpus() waits for it. Other threads call it, and so
/// does this vCPU's own thread if that is in a call of the library while the vCPU is
/// pinned. It should make emitted code return to its dispatcher soon (set a byte that
/// back edges poll), so that the vCPU is unpinned. It must not call the library, and is
/// not called any more when cw_vcpu_free() has returned.
cw_status cw_cache_attach_vcpu(const cw_cache *cache,
                               void (*ask_to_leave)(void *context),
                               void *context,
                               cw_vcpu **vcpu);

/// Frees a vCPU. Does nothing for NULL. CW_IN_USE while it is pinned; then it is
/// unchanged.
cw_status cw_vcpu_free(cw_vcpu *vcpu);

/// Pins the vCPU: the code and the payload of every block that is looked up or jumped
/// to from now on live until cw_vcpu_unpin(). Costs some nanoseconds.
///
/// CW_BAD_ARGUMENT if it is pinned already: pins do not nest.
cw_status cw_vcpu_pin(cw_vcpu *vcpu);

/// Unpins the vCPU: it is in no translated code and has no address of any. Does nothing
/// if it is not pinned.
cw_status cw_vcpu_unpin(cw_vcpu *vcpu);

/// The entry of the valid block of the key; 0 if there is none. Lookups are lock-free
/// and write nothing that other threads read. The vCPU must be pinned: otherwise the
/// answer is 0 and cw_last_error_message() says so. cw_lookup() below does the same,
/// and is quicker if the front has the key.
uintptr_t cw_vcpu_lookup(cw_vcpu *vcpu, uint64_t key);

/// Gives the vCPU's front, for cw_lookup() and for emitted code. The vCPU need not be
/// pinned.
cw_status cw_vcpu_front(const cw_vcpu *vcpu, cw_front *front);


/* ---- Writes that the kernel cannot report ------------------------------------------
 *
 * The library learns of stores by guest threads by itself. These calls are for
 * announcements by the guest (deferred regions) and for writes by the kernel or by others. None may be called in a signal handler. They may
 * be called while your own vCPU is pinned, but unpin it around a call that may last.
 *
 * A call for a range answers CW_BAD_RANGE, and does nothing, if the range wraps or if
 * no byte of it lies in a region. A range of no bytes is CW_OK, and nothing is done.
 */

/// Pages that are held writable for writes that no mode reports.
typedef struct cw_hold cw_hold;

/// The guest announces that code may have changed. When this returns, no translation of
/// bytes that were written in a deferred region before the call can be reached. In the
/// other modes it costs a fence, which a guest with explicit_fetch needs.
///
/// If it fails, everything that was asked about counts as written.
cw_status cw_tracker_sync(const cw_tracker *tracker);

/// cw_tracker_sync() for len_bytes from guest, through whichever view of their memory
/// they were written.
cw_status cw_tracker_sync_range(const cw_tracker *tracker, uint64_t guest, uint64_t len_bytes);

/// The bytes changed unseen by the tracker (through a mapping of your own, by a
/// debugger, by a device). When this returns, no translation of the pages in the range
/// can be reached, in any mode.
cw_status cw_tracker_invalidate(const cw_tracker *tracker, uint64_t guest, uint64_t len_bytes);

/// The kernel is about to write len_bytes from guest for the guest (read, recvmsg, an
/// out parameter of any system call). Until cw_hold_free() the pages are writable, and
/// no block is made from them except one with a self-checking entry, if the policy has
/// checks. Where the kernel's writes are tracked like the guest's it does nothing, and the pages stay
/// protected: in mode deferred, and in mode thread with the permission for the kernel's faults, if the tracker has no lock().
/// Without it such a system call may fail with EFAULT in modes sigbus, mprotect and (without the permission)
/// thread. With the permission it waits for your lock(): for ever, if you hold that.
cw_status cw_tracker_prepare_kernel_write(const cw_tracker *tracker,
                                          uint64_t guest,
                                          uint64_t len_bytes,
                                          cw_hold **hold);

/// cw_tracker_prepare_kernel_write() without an end, for a hook that has none (access_ok, a
/// lock of user memory): announces one write by the kernel. When this returns the pages are
/// writable and none of their blocks can be reached; those that compare their bytes may stay. (Where
/// cw_tracker_prepare_kernel_write() does nothing this does nothing either.) The next claim of a page protects it again, so announce as late as possible.
///
/// If another thread claims a page between this call and the write, the kernel refuses the
/// write: the system call fails with EFAULT or is cut short, and no block is stale. Announce
/// again, and repeat it. If that may not be (a read that has taken data already), hold the pages
/// by cw_tracker_prepare_kernel_write().
cw_status cw_tracker_announce_write(const cw_tracker *tracker,
                                    uint64_t guest,
                                    uint64_t len_bytes);

/// Announces a write to len_bytes from guest for which the kernel delivers no fault in
/// any mode: into pinned pages (io_uring's registered buffers, aio and O_DIRECT in
/// progress), by a debugger, at a thread's end (clear_child_tid, robust lists). As
/// cw_tracker_prepare_kernel_write(), in every mode.
cw_status cw_tracker_prepare_unseen_write(const cw_tracker *tracker,
                                          uint64_t guest,
                                          uint64_t len_bytes,
                                          cw_hold **hold);

/// The writes are over. Does nothing for NULL. Any thread may call it.
void cw_hold_free(cw_hold *hold);


/* ---- Signals, if the handlers are yours --------------------------------------------
 *
 * In modes sigbus and mprotect the library handles write faults by SIGBUS and SIGSEGV.
 * Its handler passes faults that are not its own to the handler that was there before.
 * With embedder_owns_signals it installs none, and your handlers call
 * cw_handle_fault() first. Install them with SA_SIGINFO, and with SA_ONSTACK if the
 * guest may own the stack pointer.
 */

/// An alternate signal stack of one thread.
typedef struct cw_alt_stack cw_alt_stack;

/// Decides about one SIGBUS or SIGSEGV. True: it was a store to a protected page, which
/// can be tried again; return from the handler. False: go on as without this library.
///
/// The arguments are those that the kernel gave to the handler (siginfo_t *, ucontext_t
/// *). Async-signal-safe: it takes no lock, allocates nothing, uses no thread-local,
/// keeps errno. No other function here may be called in a signal handler.
bool cw_handle_fault(int signo, void *info, void *context);

/// Whether the kernel calls the library's handler for signo (SIGBUS or SIGSEGV). False
/// before the first region in such a mode, and if another handler was installed after
/// it: then write faults reach the library only if that handler passes them on.
bool cw_handler_is_ours(int signo);

/// Whether this thread has signo blocked: at a store to a protected page the kernel
/// would end the process.
bool cw_is_blocked_here(int signo);

/// Gives this thread an alternate signal stack with a guard page below it, for guests
/// that own the stack pointer or have their stack in tracked memory.
cw_status cw_alt_stack_new(cw_alt_stack **stack);

/// Frees this stack. The thread gets its previous one back, or keeps a later one:
/// stacks may be freed in any order. Does nothing for NULL.
///
/// CW_BAD_ARGUMENT, and nothing is done, in any thread but the one that made it. The
/// kernel keeps the address of the stack for that thread, so that thread must free it
/// before it ends.
cw_status cw_alt_stack_free(cw_alt_stack *stack);


/* ---- Fork --------------------------------------------------------------------------
 *
 * A userfaultfd that a child inherits acts on its parent, so announce each fork:
 *
 *     cw_tracker_before_fork(tracker, &buffer, 1, &guard);  // not from code of the buffer
 *     if ((pid = fork()) == 0)
 *         cw_after_fork_child(guard);                       // before anything else
 *     else
 *         cw_after_fork_parent(guard);                      // also if fork failed
 *
 * For a cache it is the cache's tracker. One thread makes all these calls. If you have a lock
 * around the calls for a tracker, hold it from the first to the last: told() runs in the child.
 * Between the two no other thread gets into the tracker, its cache or the buffers; faults are
 * handled. The forking thread holds their locks. If a call by it would wait for itself, it
 * answers CW_BAD_ARGUMENT, and the guard stays as it was. The thread may look blocks up, ask for statistics, and free its tickets,
 * links, vCPUs, holds and allocations.
 *
 * The child of a tracker of yours keeps its blocks: its memory has the bytes that the parent's had, and
 * cw_after_fork_child() protects the same pages again. So told() is called, with CW_TOLD_LOST, for
 * these pages alone: another thread was writing it or held it; it shows shared memory that you
 * declared, which the parent may have written since; it cannot be tracked here (no descriptor is
 * left, for instance); its region is in mode deferred. For that, nothing in the child stores to guest memory
 * between fork and cw_after_fork_child(), unless you hold the page (cw_tracker_prepare_kernel_write()):
 * store a thread id for the guest after it. If the fork itself has changed memory
 * (MADV_WIPEONFORK, MADV_DONTFORK), call cw_tracker_unmap() for it after that, and cw_tracker_map()
 * if it is still there. A child that shares the descriptors of its parent (clone with CLONE_FILES) must not
 * call it: it would close those of the parent.
 *
 * In a child without a guard no call touches anything of the parent's, not even a
 * _free. A call that needs a userfaultfd or a code buffer answers CW_IN_FORK_CHILD
 * there, and then CW_TRACKING_LOST. cw_tracker_free() takes your lock there too. Another thread of the parent
 * may have had it, also the library's, and is missing: make your lock anew before.
 */

/// A tracker, its cache and the code buffers that stand still during a fork.
typedef struct cw_fork_guard cw_fork_guard;

/// Call it before fork: it waits until no other thread is inside the tracker, its cache or the
/// buffers. Until the guard is given back no other thread adds or removes a region or a
/// code buffer of any other. If several threads each take the guards of several trackers, all take them in
/// the same order.
///
/// buffers: every code buffer that contains blocks of the cache, buffer_count of them,
/// each once; NULL if there is none. They are shared mappings: otherwise a child's code
/// would land in its parent's.
cw_status cw_tracker_before_fork(const cw_tracker *tracker,
                                 cw_code_buffer *const *buffers,
                                 size_t buffer_count,
                                 cw_fork_guard **guard);

/// In the parent: everything goes on as before. Frees the guard. Does nothing for NULL.
///
/// CW_BAD_ARGUMENT, and nothing is done, in any thread but the one that made it.
cw_status cw_after_fork_parent(cw_fork_guard *guard);

/// In the child: its own memory is tracked from now on. Every block of a cache is dead. A tracker of
/// yours tells CW_TOLD_LOST of the pages whose blocks it cannot keep; the other blocks, and claims, go on.
/// The buffers have new memory, empty of code: emit the stubs anew, at the same
/// addresses. vCPUs of the parent's other threads hold nothing back; free them or leave
/// them. A vCPU that this thread has pinned stays pinned, and its holds hold here too; those of
/// other threads hold nothing any more, but count for CW_IN_USE until they are freed. Frees the guard.
///
/// CW_BAD_ARGUMENT in the process that made the guard: nothing was changed, and the
/// guard is given back as by cw_after_fork_parent(). CW_BAD_ARGUMENT too, and nothing
/// is done, in any thread but the one that forked.
///
/// If it fails, the regions or buffers that are not available here cannot be used:
/// nothing can be translated from them, and code must not be run.
cw_status cw_after_fork_child(cw_fork_guard *guard);


/* ---- Statistics: events so far, the pages that cost most, a cache's memory ---------
 *
 * Each structure has its size in its first field, so that it can grow: set size_bytes
 * to its sizeof before the call. Fields of a newer header that this library does not
 * know are 0. Afterwards size_bytes is the number of bytes that were filled in.
 */

/// The number of buckets of a histogram.
#define CW_HISTOGRAM_BUCKETS 65

/// Which histogram.
typedef enum cw_histogram_of {
    /// Nanoseconds from a fault to its end, in this process. About one fault in 16 is timed.
    CW_HISTOGRAM_FAULT_NS = 0,
    /// Pages that one fault opened: its own, and those ahead of a stream.
    CW_HISTOGRAM_FAULT_OPENED_PAGES = 1,
    /// Pages that one system call protected.
    CW_HISTOGRAM_PROTECT_PAGES = 2,
    /// Pages that one harvest asked the kernel about.
    CW_HISTOGRAM_HARVEST_SCANNED_PAGES = 3,
    /// Pages with code that one harvest found written.
    CW_HISTOGRAM_HARVEST_FOUND_PAGES = 4,
    /// Nanoseconds that a cw_tracker_sync() took for one deferred region.
    CW_HISTOGRAM_SYNC_NS = 5,
} cw_histogram_of;

/// How the library learned of a write.
typedef enum cw_cause {
    /// A store to a protected page.
    CW_CAUSE_STORE = 0,
    /// A harvest found the page written.
    CW_CAUSE_HARVEST = 1,
    /// You announced it, or a change of the mapping.
    CW_CAUSE_ANNOUNCED = 2,
    /// The page was opened ahead of a stream of stores.
    CW_CAUSE_AHEAD = 3,
    /// No write: the page was self-checking and has cooled.
    CW_CAUSE_COOLED = 4,
    /// The page is tracked no more.
    CW_CAUSE_LOST = 5,
    /// A cause that this header does not know.
    CW_CAUSE_OTHER = 6,
} cw_cause;

/// Counters since the tracker was made. Those of a cache are 0 for a tracker of yours.
typedef struct cw_stats {
    /// sizeof(cw_stats); afterwards the number of bytes that were filled in.
    size_t size_bytes;
    /// Write faults that were resolved: each hit code or data.
    uint64_t faults;
    /// Write faults that hit a line with code.
    uint64_t faults_code;
    /// Write faults that hit no line with code: data.
    uint64_t faults_data;
    /// Write faults of either kind that the handler thread resolved. It cannot tell a
    /// store by the guest from a write that the kernel makes for it.
    uint64_t faults_by_thread;
    /// Pages that a fault opened ahead of a stream of writes, in addition to its own.
    uint64_t opened_ahead;
    /// Pages that became self-checking.
    uint64_t self_checking;
    /// Self-checking pages that cooled.
    uint64_t cooled;
    /// Pages that harvests asked the kernel about, with data pages between pages with code.
    uint64_t pages_scanned;
    /// Pages with code that a harvest found written.
    uint64_t pages_harvested;
    /// Harvests: one for each span of pages that a cw_tracker_sync() asked about in one call.
    uint64_t harvests;
    /// Pages held for announced writes and changed mappings.
    uint64_t pages_announced;
    /// Held pages whose hold was for an announced write by the kernel.
    uint64_t pages_kernel_written;
    /// Pages that were protected for a translator.
    uint64_t protects;
    /// System calls that protected pages or took protection away.
    uint64_t protection_calls;
    /// Translations that could not begin because the page was busy.
    uint64_t begins_busy;
    /// Translations that became reachable.
    uint64_t committed;
    /// Translations that replaced an earlier one of the same key.
    uint64_t retranslated;
    /// Dead blocks that became reachable again because their bytes are the same again.
    uint64_t revived;
    /// Commits and revivals refused because a write came between.
    uint64_t refused;
    /// Blocks that a write or an announcement made unreachable.
    uint64_t invalidated;
    /// Blocks that became self-checking because data on their page was written.
    uint64_t downgraded;
    /// Blocks that you removed, usually because their comparison failed.
    uint64_t removed;
    /// Blocks evicted: made unreachable because there were too many.
    uint64_t evicted;
    /// Translations of dead and evicted blocks that are not retained, or no longer
    /// retained.
    uint64_t discarded;
    /// Translations whose memory was freed.
    uint64_t freed;
} cw_stats;

/// The memory of one kind of translations.
typedef struct cw_memory_use {
    /// The number of translations.
    size_t blocks;
    /// The declared bytes of their payloads, and the allocations that they keep.
    size_t payload_bytes;
    /// The cache's own memory for them: records, and the guest bytes that they were
    /// made from.
    size_t record_bytes;
} cw_memory_use;

/// The memory that a cache takes now.
typedef struct cw_footprint {
    /// sizeof(cw_footprint); afterwards the number of bytes that were filled in.
    size_t size_bytes;
    /// Reachable blocks.
    cw_memory_use live;
    /// Dead and evicted blocks that are retained for cw_ticket_revive().
    cw_memory_use retained;
    /// Discarded blocks that a vCPU may still be inside. The limit does not include them.
    cw_memory_use garbage;
    /// Keys that have an entry cell.
    size_t cells;
    /// Entry cells, free ones included.
    size_t cell_bytes;
    /// The table from keys to cells.
    size_t table_bytes;
    /// Descriptors of the pages that were ever translated from.
    size_t page_bytes;
} cw_footprint;

/// Pages that were ever translated from, by their state now.
typedef struct cw_pages_by_state {
    /// sizeof(cw_pages_by_state); afterwards the number of bytes that were filled in.
    size_t size_bytes;
    /// Writable; no translation of them can be reached.
    uint64_t open_pages;
    /// Write-protected, or about to be.
    uint64_t protected_pages;
    /// Writable; their blocks compare their bytes at each entry.
    uint64_t self_checking_pages;
} cw_pages_by_state;

/// How many values fell into each bucket.
typedef struct cw_histogram {
    /// sizeof(cw_histogram); afterwards the number of bytes that were filled in.
    size_t size_bytes;
    /// The number of values.
    uint64_t count;
    /// Their sum.
    uint64_t sum;
    /// The largest; 0 if there was none.
    uint64_t max;
    /// An estimate of the median, right within a factor of two.
    uint64_t median;
    /// The same of the value that 99 of 100 do not exceed.
    uint64_t percentile_99;
    /// Bucket 0 counts zeros, bucket n the values of n bits: 2^(n-1) to 2^n - 1.
    uint64_t buckets[CW_HISTOGRAM_BUCKETS];
} cw_histogram;

/// The writes to a page while it had blocks, and the last writer. Racing writes may be missed:
/// these are numbers for people.
typedef struct cw_hot_page {
    /// The first byte of the page for the guest.
    uint64_t page;
    /// Faults at lines that hold code.
    uint64_t code_hits;
    /// Faults at other lines.
    uint64_t data_hits;
    /// Harvests that found it written.
    uint64_t harvested;
    /// Announced writes of the kernel, up to 65,535.
    uint64_t kernel_hits;
    /// How often it became self-checking again soon after it had cooled.
    uint64_t relapses;
    /// The byte that was hit last; UINT64_MAX if no fault told it.
    uint64_t last_byte;
    /// The host instruction that stored last; 0 if no fault told it.
    uint64_t last_pc;
    /// 1 if it is self-checking now, otherwise 0.
    uint64_t is_self_checking;
} cw_hot_page;

/// A write that hit a page with blocks of a cache.
typedef struct cw_recent_write {
    /// Its number, 0 for the first since the cache was made. Missing numbers were overwritten
    /// or lost.
    uint64_t sequence;
    /// The first byte of the page for the guest.
    uint64_t page;
    /// Blocks that it made unreachable.
    uint64_t killed;
    /// A cw_cause.
    uint64_t cause;
    /// The byte that was stored to; UINT64_MAX if it is not known.
    uint64_t byte;
    /// The host instruction that stored; 0 if it is not known.
    uint64_t pc;
    /// Kernel thread id of the storing thread, in mode thread; otherwise 0.
    uint64_t tid;
} cw_recent_write;

/// Fills in the counters. Set stats->size_bytes before. Any time, any thread; some
/// counters may be a moment ahead of others.
cw_status cw_tracker_get_stats(const cw_tracker *tracker, cw_stats *stats);

/// Fills in the memory that the cache takes now. Set footprint->size_bytes before.
cw_status cw_cache_get_footprint(const cw_cache *cache, cw_footprint *footprint);

/// Fills in the number of pages in each state. Set pages->size_bytes before. It looks
/// at every page that was ever translated from.
cw_status cw_tracker_get_pages_by_state(const cw_tracker *tracker, cw_pages_by_state *pages);

/// Fills in a histogram. Set histogram->size_bytes before.
cw_status cw_tracker_get_histogram(const cw_tracker *tracker,
                                   cw_histogram_of of,
                                   cw_histogram *histogram);

/// Lists the pages that were written to most, the hottest first: most of them at most. count
/// receives their number. It looks at every page that was ever translated from.
cw_status cw_tracker_hottest_pages(const cw_tracker *tracker,
                                   cw_hot_page *pages,
                                   size_t most,
                                   size_t *count);

/// Lists the numbers of the file descriptors that the tracker keeps open, most of them at most;
/// count receives how many were written. If the guest shares its descriptors with this process,
/// keep it from closing these: with all of a region's the protection of its pages is gone. Ask again
/// after a region was added or removed, and in a fork's child. Whether a descriptor of the guest's is one:
///
/// ```c
/// int own[16]; size_t count;
/// cw_tracker_descriptors(tracker, own, 16, &count);
/// for (size_t at = 0; at < count; at++) if (own[at] == fd) return -EBADF;
/// ```
cw_status cw_tracker_descriptors(const cw_tracker *tracker,
                                 int *descriptors,
                                 size_t most,
                                 size_t *count);

/// Lists the last writes that hit pages with blocks of the cache, from the one with number since
/// on, the oldest first: most of them at most. count receives their number. Some hundreds are
/// retained.
cw_status cw_cache_recent_writes(const cw_cache *cache,
                                 uint64_t since,
                                 cw_recent_write *writes,
                                 size_t most,
                                 size_t *count);

/* ---- Without a call ------------------------------------------------------------------
 *
 * Functions and macros that are compiled into your program.
 */

/* The index of a key in a vCPU's front. */
#define CW_FRONT_INDEX(key) ((size_t)((uint64_t)(key) >> 1) & (CW_FRONT_SLOTS - 1))

/*
 * The entry of the valid block of the key; 0 if there is none. For a pinned vCPU; front
 * was filled in by cw_vcpu_front() for it, once. If the front has the key this is two loads
 * and three comparisons, otherwise it is cw_vcpu_lookup(). Unless NDEBUG is defined it
 * asserts that the vCPU is pinned: the block that an unpinned one finds may be freed.
 */
static inline uintptr_t cw_lookup(cw_vcpu *vcpu, const cw_front *front, uint64_t key)
{
    assert(*front->is_pinned && "cw_lookup() needs a pinned vCPU: call cw_vcpu_pin() first");
    const cw_front_slot *slot = &front->slots[CW_FRONT_INDEX(key)];
    if (slot->key == key) {
        uintptr_t address = __atomic_load_n(slot->cell, __ATOMIC_ACQUIRE);
        if (address != front->dead_stub && address != front->pending_stub)
            return address;
    }
    return cw_vcpu_lookup(vcpu, key);
}

/* The value of a block's stale flag, a CW_STALE_ value. */
static inline uint8_t cw_stale(const uint8_t *stale_flag)
{
    return __atomic_load_n(stale_flag, __ATOMIC_ACQUIRE);
}

/*
 * Options for blocks that are looked up and never jumped to through entry cells, and that
 * have no self-checking entry. If emitted code jumps through cells, set the stubs.
 */
static inline cw_cache_options cw_cache_options_default(void)
{
    cw_cache_options options;
    options.size_bytes = sizeof(options);
    options.dead_stub = 0;
    options.pending_stub = 1;
    options.policy = CW_POLICY_ADAPTIVE;
    return options;
}

/*
 * Options for a tracker that tells by told(context, page, why): the adaptive policy without
 * self-checking pages, no lock.
 */
static inline cw_tracker_options
cw_tracker_options_default(void (*told)(void *context, uint64_t page, cw_told why), void *context)
{
    cw_tracker_options options;
    options.size_bytes = sizeof(options);
    options.policy = CW_POLICY_ADAPTIVE;
    options.told = told;
    options.lock = NULL;
    options.unlock = NULL;
    options.others_may_look = NULL;
    options.context = context;
    return options;
}

/* A file or memfd that is mapped from offset_bytes on, by st_dev and st_ino of fstat. */
static inline cw_shared_memory cw_shared_file(uint64_t device, uint64_t inode, uint64_t offset_bytes)
{
    cw_shared_memory memory;
    memory.device = device;
    memory.number = inode;
    memory.offset_bytes = offset_bytes;
    return memory;
}

/* Memory without a file, mapped from offset_bytes on, by a number of yours. */
static inline cw_shared_memory cw_shared_number(uint64_t number, uint64_t offset_bytes)
{
    return cw_shared_file(CW_NO_DEVICE, number, offset_bytes);
}

/* Options for a region that the guest may read and write; the library handles the signals. */
static inline cw_region_options
cw_region_options_default(uint64_t guest, void *host, size_t len_bytes, cw_mode mode)
{
    cw_region_options options;
    options.size_bytes = sizeof(options);
    options.guest = guest;
    options.host = host;
    options.len_bytes = len_bytes;
    options.mode = mode;
    options.access = CW_ACCESS_READ_WRITE;
    options.embedder_owns_signals = false;
    options.explicit_fetch = false;
    options.reserved = false;
    return options;
}

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* CODEWARDEN_H */
