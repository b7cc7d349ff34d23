/*
 * The smallest JIT: x86-64 code for guest code that rewrites itself. Blocks go on to each other
 * through entry cells, which a write changes.
 *
 *     tiny_jit [MODE]          sigbus, thread, mprotect, deferred; "none" must fail
 *
 * Exits with 0 if the result is right; stale code adds old operands. The guest has a register, a
 * counter and instructions of 8 bytes: the opcode, three unused bytes, a 32-bit operand.
 */
#define _GNU_SOURCE
#include <codewarden.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum opcode {
    OP_ADD = 1, /* register += operand */
    OP_STORE,   /* the 32 bits at operand = counter */
    OP_FENCE,   /* later fetches see earlier stores */
    OP_JUMP,    /* pc = operand */
    OP_LOOP,    /* if (--counter != 0) pc = operand */
    OP_HALT,
};
enum { INSN = 8, PAGE = 4096, GUEST_BYTES = 2 * PAGE, CODE_BYTES = 1 << 16, ROUNDS = 2000 };

/* The guest's state. Emitted code has its address in rdi. */
struct state {
    uint32_t reg;     /* at 0 */
    uint32_t counter; /* at 4 */
    uint32_t pc;      /* at 8 */
    uint32_t reason;  /* at 12: why emitted code has returned */
};
enum { LOOKUP, FENCE, HALT };

static uint8_t *guest;
static cw_cache *cache;
static cw_code_buffer *buffer;
static uint8_t *at; /* where code is emitted */

static void must(cw_status status, const char *what)
{
    if (status != CW_OK) {
        fprintf(stderr, "%s: %s\n", what, cw_last_error_message());
        exit(2);
    }
}
#define MUST(call) must((call), #call)

/* ---- The compiler ---- */

static void emit(const void *bytes, size_t len) { memcpy(at, bytes, len), at += len; }
#define EMIT(...) emit((const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))
static void emit32(uint32_t value) { emit(&value, 4); }
static void emit64(uint64_t value) { emit(&value, 8); }

static void emit_state(uint32_t pc, uint32_t reason)
{
    EMIT(0xc7, 0x47, 0x08), emit32(pc);     /* mov dword [rdi+8], pc */
    EMIT(0xc7, 0x47, 0x0c), emit32(reason); /* mov dword [rdi+12], reason */
}

/* Goes on at pc: to its block or, if there is none, to a stub, which returns. */
static void emit_link(cw_ticket *ticket, uint32_t pc)
{
    cw_link *link;
    MUST(cw_cache_link(cache, pc, &link));
    const uintptr_t cell = (uintptr_t)cw_link_cell(link);
    MUST(cw_ticket_keep_link(ticket, link));
    emit_state(pc, LOOKUP);
    EMIT(0x48, 0xb8), emit64(cell); /* mov rax, cell */
    EMIT(0xff, 0x20);               /* jmp [rax] */
}

/* The instruction at pc. Returns whether the block goes on behind it. */
static bool compile(cw_ticket *ticket, uint32_t pc, uint8_t opcode, uint32_t operand)
{
    const uint32_t next = pc + INSN;
    switch (opcode) {
    case OP_ADD:
        EMIT(0x81, 0x07), emit32(operand);                  /* add dword [rdi], operand */
        return true;
    case OP_STORE:
        EMIT(0x48, 0xb8), emit64((uintptr_t)guest + operand); /* mov rax, host */
        EMIT(0x8b, 0x4f, 0x04, 0x89, 0x08);                 /* mov ecx, [rdi+4]; mov [rax], ecx */
        emit_link(ticket, next); /* the store may have hit this block: on by the cell */
        return false;
    case OP_JUMP: emit_link(ticket, operand); return false;
    case OP_LOOP: {
        EMIT(0xff, 0x4f, 0x04, 0x0f, 0x84);                 /* dec dword [rdi+4]; je behind the link */
        uint8_t *distance = at;
        emit32(0), emit_link(ticket, operand);
        const uint32_t taken = (uint32_t)(at - distance - 4);
        memcpy(distance, &taken, 4);
        emit_link(ticket, next);
        return false;
    }
    default:
        emit_state(next, opcode == OP_FENCE ? FENCE : HALT);
        EMIT(0xc3);                                         /* ret */
        return false;
    }
}

/* The block at pc; false if that must wait for a moment. */
static bool translate(uint32_t pc)
{
    cw_ticket *ticket;
    cw_allocation *code;
    MUST(cw_cache_begin(cache, pc, &ticket));
    cw_status status = cw_ticket_claim(ticket, pc, NULL);
    if (status == CW_OK) {
        while (cw_code_buffer_alloc(buffer, 512, 16, &code) == CW_FULL)
            MUST(cw_cache_evict(cache, 4096));
        at = cw_allocation_rw(code);
        for (bool goes_on = true; goes_on; pc += INSN) {
            uint32_t operand;
            uint8_t insn[INSN];
            memcpy(insn, guest + pc, INSN); /* once, after the claim */
            memcpy(&operand, insn + 4, 4);
            MUST(cw_ticket_add_source(ticket, pc, insn, INSN));
            goes_on = compile(ticket, pc, insn[0], operand);
        }
        MUST(cw_allocation_publish(code));
        const uintptr_t entry = (uintptr_t)cw_allocation_rx(code);
        MUST(cw_ticket_keep_allocation(ticket, code));
        status = cw_ticket_commit(ticket, entry, 0, NULL, NULL);
    }
    cw_ticket_free(ticket);
    if (status != CW_BUSY && status != CW_WRITTEN)
        must(status, "translate");
    return status == CW_OK;
}

static void put(uint32_t pc, uint8_t opcode, uint32_t operand)
{
    guest[pc] = opcode;
    memcpy(guest + pc + 4, &operand, 4);
}

int main(int argc, char **argv)
{
    cw_mode mode;
    alarm(120); /* stale code may run for ever */
    MUST(argc > 1 ? cw_mode_from_name(argv[1], &mode) : cw_best_synchronous(&mode, NULL));
    if (cw_mode_check(mode) == CW_MODE_UNAVAILABLE) {
        printf("SKIPPED %s\n", cw_last_error_message());
        return 0;
    }
    guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guest == MAP_FAILED)
        return 2;
    put(0x0000, OP_STORE, 0x1004); /* into the other page */
    put(0x0008, OP_FENCE, 0), put(0x0010, OP_JUMP, 0x1000);
    put(0x1000, OP_ADD, 0);
    put(0x1008, OP_STORE, 0x101c); /* into its own page */
    put(0x1010, OP_FENCE, 0), put(0x1018, OP_ADD, 0);
    put(0x1020, OP_LOOP, 0x0000), put(0x1028, OP_HALT, 0);

    cw_allocation *stubs; /* both return to the loop below, with pc and reason stored */
    cw_vcpu *vcpu;
    cw_front front;
    MUST(cw_code_buffer_new(CODE_BYTES, &buffer));
    MUST(cw_code_buffer_alloc(buffer, 32, 16, &stubs));
    memset(cw_allocation_rw(stubs), 0xc3, 32);
    MUST(cw_allocation_publish(stubs));
    cw_cache_options options = cw_cache_options_default();
    options.dead_stub = (uintptr_t)cw_allocation_rx(stubs);
    options.pending_stub = options.dead_stub + 16;
    MUST(cw_cache_new(&options, &cache));
    const cw_region_options region = cw_region_options_default(0, guest, GUEST_BYTES, mode);
    MUST(cw_tracker_add_region(cw_cache_tracker(cache), &region));
    MUST(cw_cache_attach_vcpu(cache, NULL, NULL, &vcpu));
    MUST(cw_vcpu_front(vcpu, &front));

    struct state state = {.counter = ROUNDS};
    while (state.reason != HALT) {
        if (state.reason == FENCE)
            MUST(cw_tracker_sync(cw_cache_tracker(cache))); /* deferred regions need it */
        state.reason = LOOKUP;
        MUST(cw_vcpu_pin(vcpu));
        const uintptr_t entry = cw_lookup(vcpu, &front, state.pc);
        if (entry)
            ((void (*)(struct state *))entry)(&state);
        MUST(cw_vcpu_unpin(vcpu));
        if (!entry && !translate(state.pc))
            sched_yield(); /* an emulator would interpret */
    }
    MUST(cw_vcpu_free(vcpu));
    MUST(cw_cache_free(cache));
    cw_allocation_free(stubs);
    cw_code_buffer_free(buffer);
    const uint32_t expected = ROUNDS * (ROUNDS + 1); /* each counter, twice */
    printf("%s: result %u, expected %u\n", cw_mode_name(mode), state.reg, expected);
    return state.reg == expected ? 0 : 1;
}
