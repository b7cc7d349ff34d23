/* The checks of the C tests. A check that fails prints its line, and ends the process with 1. */
#include <codewarden.h>
#include <stdio.h>
#include <stdlib.h>

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
