// The control: a guest that writes no code. Sieve, a small matrix product and
// CRC-32, the same in every mode.

#include "rt.h"

enum { LIMIT = 20000, N = 24 };

static u64 count_primes(void) {
    static u8 composite[LIMIT];
    u64 primes = 0;
    for (u64 i = 2; i < LIMIT; i++) {
        if (composite[i]) continue;
        primes++;
        for (u64 j = i * i; j < LIMIT; j += i) composite[j] = 1;
    }
    return primes;
}

static u64 matrix_trace(void) {
    static u64 a[N][N], b[N][N];
    u64 trace = 0;
    for (u64 i = 0; i < N; i++) {
        for (u64 j = 0; j < N; j++) a[i][j] = i * 7 + j, b[i][j] = i ^ j;
    }
    for (u64 i = 0; i < N; i++) {
        for (u64 k = 0; k < N; k++) trace += a[i][k] * b[k][i];
    }
    return trace;
}

static u32 crc32(const u8 *data, u64 len_bytes) {
    u32 crc = ~0u;
    for (u64 i = 0; i < len_bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

int main(int argc, char **argv) {
    expect_equal("primes", count_primes(), 2262);
    mix(matrix_trace());
    expect_equal("crc", crc32((const u8 *)"123456789", 9), 0xcbf43926);
    static u8 data[4096];
    for (u64 i = 0; i < sizeof data; i++) data[i] = (u8)(i * i + 3);
    mix(crc32(data, sizeof data));
    return finish("compute-only");
}
