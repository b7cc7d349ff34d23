// A W^X JIT with two views of one memfd and other harts: one hart writes
// through the writable view, three run the executable one. It patches a
// function again and again, and emits fresh ones over old ones on the same
// pages, which the other harts call next. No store ever goes to an address
// that code runs at.

#include "rt.h"

enum { RUNNERS = 3, ROUNDS = 60, PAGES = 2, SLOTS = 16, SLOT = PAGES * PAGE / SLOTS, LENGTH = 6 };
static char *write, *run;
static u32 published, seen[RUNNERS];

static u64 step_of(u64 round, u64 slot) { return (round * 37 + slot * 11) % 2000; }

// The first slot is patched in one word; each other is written as a whole in
// its turn, so its newest version is of the last such round.
static u64 version_of(u64 round, u64 slot) {
    if (slot == 0 || round == 0) return round;
    u64 turn = (slot - 1) % 3;
    while (round && round % 3 != turn) round--;
    return round;
}

static u64 want_of(u64 round, u64 slot) {
    u64 step = step_of(version_of(round, slot), slot);
    return slot == 0 ? step : LENGTH * step;
}

static void emit(u64 slot, u64 round) {
    u32 *at = (u32 *)(write + slot * SLOT);
    int step = (int)step_of(round, slot);
    if (slot == 0) {
        store32(at, addi(A0, A0, step));
        store32(at + 1, RET);
        return;
    }
    for (int k = 0; k < LENGTH; k++) store32(at + k, addi(A0, A0, step));
    store32(at + LENGTH, RET);
}

static void call_all(const char *what, u64 round) {
    for (u64 slot = 0; slot < SLOTS; slot++) {
        u64 before = round ? want_of(round - 1, slot) : 0;
        u64 got = call(run + slot * SLOT, 0), want = want_of(round, slot);
        if (got != want) die(got == before ? EXIT_STALE : EXIT_WRONG, what, got, want);
    }
}

static void runner(u32 index) {
    for (int i = 0; i < 200; i++) call_all("before", 0);
    store_release(&seen[index], 1);
    for (u32 round = 1; round <= ROUNDS; round++) {
        wait_at_least(&published, round, "published");
        // Flushed for all harts by who wrote.
        for (int again = 0; again < 3; again++) call_all("a runner", round);
        store_release(&seen[index], round + 1);
    }
}

int main(int argc, char **argv) {
    static hart harts[RUNNERS];
    int fd = (int)checked(SYSCALL(SYS_memfd_create, "jit", 0), "memfd_create");
    checked(SYSCALL(SYS_ftruncate, fd, PAGES * PAGE), "ftruncate");
    write = (char *)checked(SYSCALL(SYS_mmap, 0, PAGES * PAGE, PROT_RW, MAP_SHARED, fd, 0), "mmap");
    run = (char *)checked(SYSCALL(SYS_mmap, 0, PAGES * PAGE, PROT_RX, MAP_SHARED, fd, 0), "mmap");
    for (u64 slot = 0; slot < SLOTS; slot++) emit(slot, 0);
    flush_all_harts(run, PAGES * PAGE);
    for (u32 i = 0; i < RUNNERS; i++) start_hart(&harts[i], i, runner);
    for (u32 i = 0; i < RUNNERS; i++) wait_at_least(&seen[i], 1, "start");
    for (u32 round = 1; round <= ROUNDS; round++) {
        store32(write, addi(A0, A0, (int)step_of(round, 0)));
        for (u64 slot = 1; slot < SLOTS; slot++) {
            if (version_of(round, slot) == round) emit(slot, round);
        }
        flush_all_harts(run, PAGES * PAGE);
        store_release(&published, round);
        for (u32 i = 0; i < RUNNERS; i++) wait_at_least(&seen[i], round + 1, "runner");
        call_all("the hart that writes", round);
        mix(want_of(round, 0) + want_of(round, SLOTS - 1));
    }
    for (u32 i = 0; i < RUNNERS; i++) join_hart(&harts[i]);
    return finish("memfd-dual-harts");
}
