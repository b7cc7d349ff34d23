/*
 * A JIT for x86-64 with all that an embedder has: an interpreter that decodes every instruction
 * afresh, to compare with, and a loop of two blocks that another thread ends. The guest code
 * rewrites itself. If the two results differ, stale code has run.
 *
 *     jit [MODE...]            sigbus, thread, mprotect, deferred; "none" must fail
 *
 * Exits with 0 if every mode gives the interpreter's result.
 *
 * The guest has one register, a loop counter and instructions of 8 bytes: opcode, three
 * unused bytes, a 32-bit operand.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum opcode {
    OP_ADD = 1,     /* register += operand */
    OP_ADD_COUNTER, /* register += counter */
    OP_JUMP,        /* pc = operand */
    OP_LOOP,        /* if (--counter != 0) pc = operand */
    OP_STORE_REG,   /* the 32 bits at operand = register */
    OP_FENCE,       /* later fetches see earlier stores */
    OP_SPIN,        /* pc = operand; nothing else */
    OP_HALT,
};

enum { INSN_BYTES = 8, GUEST_BYTES = 1 << 16, BLOCK_INSNS = 16, CODE_BYTES = 1 << 20, ROUNDS = 500 };
#define GUEST_BASE UINT64_C(0x40000000)

/* The guest's state, for emitted code: its address is in rdi. */
struct state {
    uint32_t reg;       /* at 0 */
    uint32_t counter;   /* at 4 */
    uint64_t pc;        /* at 8 */
    uint32_t reason;    /* at 16: why emitted code has returned */
    uint32_t leave;     /* at 20: set to make it return */
};
enum { REASON_LOOKUP, REASON_FENCE, REASON_HALT };

struct jit {
    uint8_t *guest;
    cw_cache *cache;
    cw_code_buffer *buffer;
    cw_allocation *stubs;
    cw_vcpu *vcpu;
    cw_front front;
    struct state state;
};

static void must(cw_status status, const char *what)
{
    if (status != CW_OK) {
        fprintf(stderr, "%s: %s\n", what, cw_last_error_message());
        exit(2);
    }
}
#define MUST(call) must((call), #call)

/* ---- The guest ---- */

struct insn {
    uint8_t opcode;
    uint32_t operand;
};

static struct insn decode(const uint8_t *bytes)
{
    struct insn insn = {.opcode = bytes[0]};
    memcpy(&insn.operand, bytes + 4, 4);
    return insn;
}

static void assemble(uint8_t *guest, uint32_t at, uint8_t opcode, uint32_t operand)
{
    const uint8_t bytes[INSN_BYTES] = {opcode};
    memcpy(guest + at, bytes, 4);
    memcpy(guest + at + 4, &operand, 4);
}

/*
 * A loop over three pages. The first block stores the register into the operand of the
 * ADD on the second page, which runs right after it; the third page stores into its own.
 */
static void put_program(uint8_t *guest)
{
    uint32_t at = 0x0000;
    assemble(guest, at, OP_ADD, 3);
    assemble(guest, at += 8, OP_ADD_COUNTER, 0);
    assemble(guest, at += 8, OP_STORE_REG, 0x1000 + 4);
    assemble(guest, at += 8, OP_FENCE, 0);
    assemble(guest, at += 8, OP_JUMP, 0x1000);

    at = 0x1000;
    assemble(guest, at, OP_ADD, 0); /* patched in every round */
    assemble(guest, at += 8, OP_JUMP, 0x2000);

    at = 0x2000;
    assemble(guest, at, OP_STORE_REG, 0x2010 + 4);
    assemble(guest, at += 8, OP_FENCE, 0);
    assemble(guest, at += 8, OP_ADD, 0); /* patched by its own page */
    assemble(guest, at += 8, OP_LOOP, 0x0000);
    assemble(guest, at += 8, OP_HALT, 0);

    /* Two blocks that jump to each other until a store overwrites one of them. */
    assemble(guest, 0x4000, OP_SPIN, 0x5000);
    assemble(guest, 0x5000, OP_SPIN, 0x4000);
}

/* The reference: retains no translation. */
static uint32_t interpret(uint8_t *guest, uint32_t counter)
{
    uint32_t reg = 0, pc = 0;
    for (;;) {
        const struct insn insn = decode(guest + pc);
        pc += INSN_BYTES;
        switch (insn.opcode) {
        case OP_ADD: reg += insn.operand; break;
        case OP_ADD_COUNTER: reg += counter; break;
        case OP_JUMP: case OP_SPIN: pc = insn.operand; break;
        case OP_LOOP: if (--counter != 0) pc = insn.operand; break;
        case OP_STORE_REG: memcpy(guest + insn.operand, &reg, 4); break;
        case OP_FENCE: break;
        default: return reg;
        }
    }
}

/* ---- The compiler ---- */

struct emitter {
    uint8_t *at;
};

static void emit(struct emitter *e, const void *bytes, size_t len)
{
    memcpy(e->at, bytes, len);
    e->at += len;
}
#define EMIT(e, ...) emit((e), (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void emit32(struct emitter *e, uint32_t value) { emit(e, &value, 4); }
static void emit64(struct emitter *e, uint64_t value) { emit(e, &value, 8); }

/* Goes to the dispatcher with the guest at pc. */
static void emit_exit(struct emitter *e, uint32_t pc, uint32_t reason)
{
    EMIT(e, 0xc7, 0x47, 0x08), emit32(e, pc);     /* mov dword [rdi+8], pc */
    EMIT(e, 0xc7, 0x47, 0x10), emit32(e, reason); /* mov dword [rdi+16], reason */
    EMIT(e, 0xc3);                                /* ret */
}

/* Goes to the block at pc through its entry cell, or, if there is no block, to a stub, which
 * returns. The block that is being made keeps the link. */
static void emit_link(struct emitter *e, struct jit *jit, cw_ticket *ticket, uint32_t pc)
{
    cw_link *link;
    MUST(cw_cache_link(jit->cache, GUEST_BASE + pc, &link));
    const uintptr_t cell = (uintptr_t)cw_link_cell(link);
    MUST(cw_ticket_keep_link(ticket, link));
    EMIT(e, 0xc7, 0x47, 0x08), emit32(e, pc);            /* mov dword [rdi+8], pc */
    EMIT(e, 0xc7, 0x47, 0x10), emit32(e, REASON_LOOKUP); /* mov dword [rdi+16], lookup */
    EMIT(e, 0x83, 0x7f, 0x14, 0x00);                     /* cmp dword [rdi+20], 0 */
    EMIT(e, 0x74, 0x01, 0xc3);                           /* je +1; ret: asked to leave */
    EMIT(e, 0x48, 0xb8), emit64(e, cell);                /* mov rax, cell */
    EMIT(e, 0xff, 0x20);                                 /* jmp [rax] */
}

/* The code of one block. Returns its end. */
static void compile(struct emitter *e, struct jit *jit, cw_ticket *ticket, const uint8_t *bytes,
                    uint32_t pc, uint32_t insns)
{
    for (uint32_t at = 0; at < insns; at++) {
        const struct insn insn = decode(bytes + at * INSN_BYTES);
        pc += INSN_BYTES;
        switch (insn.opcode) {
        case OP_ADD:
            EMIT(e, 0x81, 0x07), emit32(e, insn.operand);     /* add dword [rdi], operand */
            continue;
        case OP_ADD_COUNTER:
            EMIT(e, 0x8b, 0x4f, 0x04);                        /* mov ecx, [rdi+4] */
            EMIT(e, 0x01, 0x0f);                              /* add [rdi], ecx */
            continue;
        case OP_JUMP:
        case OP_SPIN:
            emit_link(e, jit, ticket, insn.operand);
            return;
        case OP_LOOP: {
            EMIT(e, 0xff, 0x4f, 0x04);                        /* dec dword [rdi+4] */
            EMIT(e, 0x0f, 0x84);                              /* je behind the first link */
            uint8_t *distance = e->at;
            emit32(e, 0);
            emit_link(e, jit, ticket, insn.operand);
            const uint32_t taken = (uint32_t)(e->at - (distance + 4));
            memcpy(distance, &taken, 4);
            emit_link(e, jit, ticket, pc);
            return;
        }
        case OP_STORE_REG:
            EMIT(e, 0x48, 0xb8), emit64(e, (uintptr_t)jit->guest + insn.operand); /* mov rax, host */
            EMIT(e, 0x8b, 0x0f);                              /* mov ecx, [rdi] */
            EMIT(e, 0x89, 0x08);                              /* mov [rax], ecx: may fault */
            /* It may have hit this block: go on in the block that is valid now. */
            emit_link(e, jit, ticket, pc);
            return;
        case OP_FENCE:
            emit_exit(e, pc, REASON_FENCE);
            return;
        default:
            emit_exit(e, pc, REASON_HALT);
            return;
        }
    }
    emit_link(e, jit, ticket, pc);
}

/* The block's instructions, up to the first that ends a block; at most most. */
static uint32_t block_insns(const uint8_t *bytes, uint32_t most)
{
    uint32_t insns = 0;
    while (insns < most) {
        const uint8_t opcode = decode(bytes + insns * INSN_BYTES).opcode;
        if (opcode != OP_ADD && opcode != OP_ADD_COUNTER)
            break;
        insns++;
    }
    return insns < most ? insns + 1 : insns;
}

static cw_allocation *allocate(struct jit *jit)
{
    cw_allocation *code;
    while (cw_code_buffer_alloc(jit->buffer, 1024, 16, &code) == CW_FULL)
        MUST(cw_cache_evict(jit->cache, 64 << 10));
    return code;
}

/* Translates the block at pc; false if that must wait for a moment. */
static bool translate(struct jit *jit, uint32_t pc)
{
    uint8_t bytes[BLOCK_INSNS * INSN_BYTES];
    cw_ticket *ticket;
    bool done = false;
    MUST(cw_cache_begin(jit->cache, GUEST_BASE + pc, &ticket));
    cw_status status = cw_ticket_claim(ticket, GUEST_BASE + pc, NULL);
    if (status == CW_BUSY)
        goto out;
    must(status, "cw_ticket_claim");
    /* A block ends with its page: no other page was claimed, so none is read. */
    const uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE), room = (page - pc % page) / INSN_BYTES;
    const uint32_t most = room < BLOCK_INSNS ? room : BLOCK_INSNS;
    memcpy(bytes, jit->guest + pc, most * INSN_BYTES); /* once, after the claim */
    const uint32_t insns = block_insns(bytes, most);
    MUST(cw_ticket_add_source(ticket, GUEST_BASE + pc, bytes, insns * INSN_BYTES));
    status = cw_ticket_revive(ticket, &done);
    if (status == CW_WRITTEN || done)
        goto out;
    must(status, "cw_ticket_revive");

    cw_allocation *code = allocate(jit);
    struct emitter e = {cw_allocation_rw(code)};
    compile(&e, jit, ticket, bytes, pc, insns);
    MUST(cw_allocation_publish(code));
    const uintptr_t entry = (uintptr_t)cw_allocation_rx(code);
    MUST(cw_ticket_keep_allocation(ticket, code));
    status = cw_ticket_commit(ticket, entry, 0, NULL, NULL);
    if (status != CW_WRITTEN)
        must(status, "cw_ticket_commit");
    done = status == CW_OK;
out:
    cw_ticket_free(ticket);
    return done;
}

/* ---- Running ---- */

static void ask_to_leave(void *state)
{
    __atomic_store_n(&((struct state *)state)->leave, 1, __ATOMIC_RELAXED);
}

static void run(struct jit *jit, uint32_t start)
{
    struct state *state = &jit->state;
    state->pc = start;
    state->reason = REASON_LOOKUP;
    while (state->reason != REASON_HALT) {
        if (state->reason == REASON_FENCE)
            MUST(cw_tracker_sync(cw_cache_tracker(jit->cache)));
        state->reason = REASON_LOOKUP;
        __atomic_store_n(&state->leave, 0, __ATOMIC_RELAXED);
        MUST(cw_vcpu_pin(jit->vcpu));
        const uintptr_t entry = cw_lookup(jit->vcpu, &jit->front, GUEST_BASE + state->pc);
        if (entry != 0)
            ((void (*)(struct state *))entry)(state);
        MUST(cw_vcpu_unpin(jit->vcpu));
        if (entry == 0 && !translate(jit, (uint32_t)state->pc))
            sched_yield(); /* an emulator would interpret */
    }
}

static void make(struct jit *jit, cw_mode mode)
{
    jit->guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (jit->guest == MAP_FAILED)
        exit(2);
    put_program(jit->guest);
    MUST(cw_code_buffer_new(CODE_BYTES, &jit->buffer));

    /* Both stubs return to the dispatcher, which finds pc and reason stored. */
    MUST(cw_code_buffer_alloc(jit->buffer, 32, 16, &jit->stubs));
    memset(cw_allocation_rw(jit->stubs), 0xc3, 32);
    MUST(cw_allocation_publish(jit->stubs));

    cw_cache_options options = cw_cache_options_default();
    options.dead_stub = (uintptr_t)cw_allocation_rx(jit->stubs);
    options.pending_stub = options.dead_stub + 16;
    MUST(cw_cache_new(&options, &jit->cache));
    const cw_region_options region = cw_region_options_default(GUEST_BASE, jit->guest, GUEST_BYTES, mode);
    MUST(cw_tracker_add_region(cw_cache_tracker(jit->cache), &region));
    MUST(cw_cache_attach_vcpu(jit->cache, ask_to_leave, &jit->state, &jit->vcpu));
    MUST(cw_vcpu_front(jit->vcpu, &jit->front));
}

static void destroy(struct jit *jit)
{
    MUST(cw_vcpu_free(jit->vcpu));
    MUST(cw_cache_free(jit->cache));
    cw_allocation_free(jit->stubs);
    cw_code_buffer_stats code = {.size_bytes = sizeof(code)};
    MUST(cw_code_buffer_get_stats(jit->buffer, &code));
    if (code.allocations != 0) {
        fprintf(stderr, "%zu allocations are left\n", code.allocations);
        exit(2);
    }
    cw_code_buffer_free(jit->buffer);
    munmap(jit->guest, GUEST_BYTES);
}

/* ---- What must hold ---- */

/* One thread that rewrites its own code. */
static bool rewrites_itself(struct jit *jit, cw_mode mode)
{
    uint8_t *reference = calloc(1, GUEST_BYTES);
    put_program(reference);
    const uint32_t expected = interpret(reference, ROUNDS);
    free(reference);

    jit->state = (struct state){.counter = ROUNDS};
    run(jit, 0);
    cw_stats stats = {.size_bytes = sizeof(stats)};
    MUST(cw_tracker_get_stats(cw_cache_tracker(jit->cache), &stats));
    printf("%-8s result %08x, expected %08x; %llu blocks committed, %llu invalidated\n", cw_mode_name(mode),
           jit->state.reg, expected, (unsigned long long)stats.committed, (unsigned long long)stats.invalidated);
    return jit->state.reg == expected;
}

static void *overwrite(void *argument)
{
    struct jit *jit = argument;
    usleep(20000);
    /* One store, as a guest thread would make it. */
    __atomic_store_n((volatile uint8_t *)jit->guest + 0x5000, OP_HALT, __ATOMIC_RELEASE);
    MUST(cw_tracker_sync(cw_cache_tracker(jit->cache)));
    return NULL;
}

/* A thread in two blocks that link to each other, and another that overwrites one. */
static bool is_overwritten(struct jit *jit)
{
    pthread_t writer;
    jit->state = (struct state){.counter = 1};
    if (pthread_create(&writer, NULL, overwrite, jit) != 0)
        return false;
    run(jit, 0x4000);
    pthread_join(writer, NULL);
    return true;
}

int main(int argc, char **argv)
{
    static const char *const all[] = {"sigbus", "thread", "mprotect", "deferred"};
    const int count = argc > 1 ? argc - 1 : (int)(sizeof(all) / sizeof(all[0]));
    int failures = 0;
    alarm(300); /* stale code may run for ever */
    for (int at = 0; at < count; at++) {
        const char *name = argc > 1 ? argv[at + 1] : all[at];
        cw_mode mode;
        MUST(cw_mode_from_name(name, &mode));
        if (cw_mode_check(mode) == CW_MODE_UNAVAILABLE) {
            printf("SKIPPED %s\n", cw_last_error_message());
            continue;
        }
        struct jit jit = {0};
        make(&jit, mode);
        const bool right = rewrites_itself(&jit, mode) && is_overwritten(&jit);
        if (!right)
            printf("%-8s STALE CODE RAN\n", name);
        failures += !right;
        destroy(&jit);
    }
    return failures == 0 ? 0 : 1;
}
