// What the guests that measure share: the number of iterations from the first
// argument, and one line with the time of an operation, taken inside the guest
// so that no start-up is in it.
//
// Each of them takes the flag `empty`: the same loop without what is measured.
// What it would do to code it does to data then, so the difference of the two
// is the cost of code that changes.

#ifndef BENCH_H
#define BENCH_H

#include "rt.h"

static u64 iterations(int argc, char **argv, u64 otherwise) {
    u64 n = argc > 1 ? number(argv[1]) : 0;
    return n ? n : otherwise;
}

static int has_flag(int argc, char **argv, const char *flag) {
    for (int i = 2; i < argc; i++) {
        if (same(argv[i], flag)) return 1;
    }
    return 0;
}

static int report(const char *name, u64 operations, u64 started_ns) {
    u64 total_ns = now_ns() - started_ns, per_1000 = total_ns * 1000 / (operations ? operations : 1);
    line l = {.len = 0};
    add_str(&l, name);
    add_str(&l, ": ");
    add_dec(&l, operations);
    add_str(&l, " operations, ");
    add_dec(&l, per_1000 / 1000);
    add_str(&l, ".");
    for (u64 digit = 100; digit; digit /= 10) add_dec(&l, per_1000 / digit % 10);
    add_str(&l, " ns each");
    put(1, &l);
    return 0;
}

#endif
