/*
 * The smallest embedder: one block, which dies when the guest stores to its bytes. The
 * README's first example in C.
 *
 *     embed [MODE]
 *
 * Exits with 0 if the block was found before the store and not after it.
 */
#define _DEFAULT_SOURCE
#include <codewarden.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void must(cw_status status, const char *what)
{
    if (status != CW_OK) {
        fprintf(stderr, "%s: %s\n", what, cw_last_error_message());
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const size_t len = 1 << 20;
    uint8_t *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;

    const cw_cache_options options = cw_cache_options_default();
    cw_cache *cache;
    must(cw_cache_new(&options, &cache), "cw_cache_new");
    const char *why;
    cw_mode mode;
    must(cw_best_synchronous(&mode, &why), "cw_best_synchronous");
    if (argc > 1)
        must(cw_mode_from_name(argv[1], &mode), "cw_mode_from_name");
    printf("%s: %s\n", cw_mode_name(mode), argc > 1 ? "as asked" : why);
    const cw_region_options region = cw_region_options_default(0x80000000, memory, len, mode);
    must(cw_tracker_add_region(cw_cache_tracker(cache), &region), "cw_tracker_add_region");

    const uint64_t pc = 0x80001000;
    cw_ticket *ticket;
    must(cw_cache_begin(cache, pc, &ticket), "cw_cache_begin");
    must(cw_ticket_claim(ticket, pc, NULL), "cw_ticket_claim");   /* protects the page */
    uint8_t *code = malloc(4);                /* stands for compiled code */
    memcpy(code, memory + 0x1000, 4);         /* the bytes: read after the claim */
    must(cw_ticket_commit(ticket, (uintptr_t)code, 0, code, free), "cw_ticket_commit");
    cw_ticket_free(ticket);

    cw_vcpu *vcpu;
    cw_front front;
    must(cw_cache_attach_vcpu(cache, NULL, NULL, &vcpu), "cw_cache_attach_vcpu");
    must(cw_vcpu_front(vcpu, &front), "cw_vcpu_front");
    must(cw_vcpu_pin(vcpu), "cw_vcpu_pin");
    const bool before = cw_lookup(vcpu, &front, pc) == (uintptr_t)code;
    memory[0x1000] = 0x13;                    /* the guest stores to its code */
    if (mode == CW_MODE_DEFERRED)
        must(cw_tracker_sync(cw_cache_tracker(cache)), "cw_tracker_sync"); /* the guest's FENCE.I */
    const bool after = cw_lookup(vcpu, &front, pc) != 0;
    must(cw_vcpu_unpin(vcpu), "cw_vcpu_unpin");

    must(cw_vcpu_free(vcpu), "cw_vcpu_free");
    must(cw_cache_free(cache), "cw_cache_free");
    munmap(memory, len);
    printf("found before the store: %s, after it: %s\n", before ? "yes" : "no", after ? "yes" : "no");
    return before && !after ? 0 : 1;
}
