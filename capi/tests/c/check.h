/* The checks of the C tests. A check that fails prints its line, and ends the process with 1. */
#include <codewarden.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            fprintf(stderr, "%s:%d: %s\nlast error: %s\n", __FILE__, __LINE__, #condition,           \
                    cw_last_error_message());                                                       \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)
#define MUST(call) CHECK((call) == CW_OK)

enum { PAGE = 4096, LEN = 16 * PAGE };
#define GUEST UINT64_C(0x10000000)

/* The mode that a test's first argument names. Ends the process if this machine lacks it. */
static inline cw_mode mode_to_test(int argc, char **argv)
{
    cw_mode named;
    alarm(300); /* ends a wait that would never end */
    CHECK(argc >= 2);
    MUST(cw_mode_from_name(argv[1], &named));
    if (cw_mode_check(named) == CW_MODE_UNAVAILABLE) {
        printf("SKIPPED %s\n", cw_last_error_message());
        exit(0);
    }
    return named;
}
