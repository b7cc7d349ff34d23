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
