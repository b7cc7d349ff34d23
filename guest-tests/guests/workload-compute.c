// A guest that writes no code, for benches from end to end: sieve, matrix
// product and CRC-32, repeated:
//   workload-compute ROUNDS

#include "bench.h"

enum { LIMIT = 50000, N = 48 };
static u8 composite[LIMIT];
static double a[N][N], b[N][N], c[N][N];

static u64 sieve(void) {
    u64 primes = 0;
    memset(composite, 0, LIMIT);
    for (u64 i = 2; i < LIMIT; i++) {
        if (composite[i]) continue;
        primes++;
        for (u64 j = i * i; j < LIMIT; j += i) composite[j] = 1;
    }
    return primes;
}

static u64 matrix(u64 round) {
    for (u64 i = 0; i < N; i++) {
        for (u64 j = 0; j < N; j++) a[i][j] = (double)(i + j + round), b[i][j] = (double)(i * j % 17);
    }
    for (u64 i = 0; i < N; i++) {
        for (u64 j = 0; j < N; j++) {
            double sum = 0;
            for (u64 k = 0; k < N; k++) sum += a[i][k] * b[k][j];
            c[i][j] = sum;
        }
    }
    return (u64)c[N / 2][N / 3];
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
    u64 rounds = iterations(argc, argv, 1), started = now_ns();
    for (u64 round = 0; round < rounds; round++) {
        expect_equal("primes", sieve(), 5133);
        mix(matrix(round));
        mix(crc32(composite, LIMIT));
    }
    // Any second argument asks for the time.
    if (argc > 2) report("workload-compute", rounds, started);
    return finish("workload-compute");
}
