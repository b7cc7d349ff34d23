// Small computations for `compare`, each with a fixed size. The name of one is the argument; its
// result is printed, so that emulators can be compared. Written for any C compiler; without headers,
// so that `cc1` can compile it as a workload too.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

int printf(const char *format, ...);
int strcmp(const char *a, const char *b);
void *malloc(unsigned long bytes);
void *memcpy(void *to, const void *from, unsigned long bytes);
unsigned long strlen(const char *text);
double sqrt(double value);

static u64 state = 88172645463325252u;

static u64 random_u64(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static u64 integer(void) {
    u64 sum = 1;
    for (u64 i = 1; i <= 500000000; i++) sum = (sum ^ i) * 3 + (sum >> 7);
    return sum;
}

static u64 fib_of(u64 n) { return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2); }

static u64 fib(void) { return fib_of(40); }

typedef struct {
    double at[3], speed[3], mass;
} body;

static u64 nbody(void) {
    static body bodies[5];
    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < 3; k++) {
            bodies[i].at[k] = (double)(random_u64() % 2000) / 100 - 10;
            bodies[i].speed[k] = (double)(random_u64() % 200) / 100 - 1;
        }
        bodies[i].mass = 1 + i;
    }
    for (int step = 0; step < 800000; step++) {
        for (int i = 0; i < 5; i++) {
            for (int j = i + 1; j < 5; j++) {
                double d[3], square = 0.01;
                for (int k = 0; k < 3; k++) {
                    d[k] = bodies[i].at[k] - bodies[j].at[k];
                    square += d[k] * d[k];
                }
                double pull = 0.0001 / (square * sqrt(square));
                for (int k = 0; k < 3; k++) {
                    bodies[i].speed[k] -= d[k] * bodies[j].mass * pull;
                    bodies[j].speed[k] += d[k] * bodies[i].mass * pull;
                }
            }
        }
        for (int i = 0; i < 5; i++) {
            for (int k = 0; k < 3; k++) bodies[i].at[k] += bodies[i].speed[k] * 0.0001;
        }
    }
    double sum = 0;
    for (int i = 0; i < 5; i++) sum += bodies[i].at[0] + bodies[i].at[1] + bodies[i].at[2];
    return (u64)(long)(sum * 1000000);
}

#define SIDE 320

static u64 matmul(void) {
    static double a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            a[i][j] = (double)(random_u64() % 100);
            b[i][j] = (double)(random_u64() % 100);
        }
    }
    for (int i = 0; i < SIDE; i++) {
        for (int k = 0; k < SIDE; k++) {
            for (int j = 0; j < SIDE; j++) c[i][j] += a[i][k] * b[k][j];
        }
    }
    double sum = 0;
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) sum += c[i][j] * (double)(1 + (i ^ j) % 7);
    }
    return (u64)sum;
}

static void sort(u32 *values, long low, long high) {
    while (low < high) {
        u32 pivot = values[low + (high - low) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) i++;
            while (values[j] > pivot) j--;
            if (i <= j) {
                u32 other = values[i];
                values[i++] = values[j];
                values[j--] = other;
            }
        }
        sort(values, low, j);
        low = i;
    }
}

static u64 quicksort(void) {
    const long count = 4000000;
    u32 *values = malloc((u64)count * sizeof *values);
    for (long i = 0; i < count; i++) values[i] = (u32)random_u64();
    sort(values, 0, count - 1);
    u64 sum = 0;
    for (long i = 0; i < count; i++) sum = sum * 31 + values[i];
    return sum;
}

static u32 turned(u32 value, int by) { return value >> by | value << (32 - by); }

// The round constants are the first bits of the cube roots of the first primes.
static u32 rounds[64];

static u32 root_bits(u32 prime, int is_cube) {
    // The integer part does not matter: the 32 bits behind it do.
    unsigned __int128 low = 0, high = (unsigned __int128)1 << 36;
    while (high - low > 1) {
        unsigned __int128 middle = (low + high) / 2;
        unsigned __int128 power = is_cube ? middle * middle : middle;
        int is_less;
        if (is_cube) {
            // middle^3 <= prime << 96, without more than 128 bits.
            unsigned __int128 top = (power >> 32) * middle, rest = (power & 0xffffffffu) * middle;
            is_less = (top + (rest >> 32)) >> 64 < prime;
        } else {
            is_less = power * middle >> 64 < prime;
        }
        if (is_less) low = middle; else high = middle;
    }
    return (u32)low;
}

static void compress(u32 *hash, const u8 *block) {
    u32 w[64];
    for (int i = 0; i < 16; i++) {
        w[i] = (u32)block[4 * i] << 24 | (u32)block[4 * i + 1] << 16 | (u32)block[4 * i + 2] << 8 | block[4 * i + 3];
    }
    for (int i = 16; i < 64; i++) {
        u32 s0 = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
        u32 s1 = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    u32 a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4], f = hash[5], g = hash[6], h = hash[7];
    for (int i = 0; i < 64; i++) {
        u32 one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + rounds[i] + w[i];
        u32 two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g; g = f; f = e; e = d + one;
        d = c; c = b; b = a; a = one + two;
    }
    hash[0] += a; hash[1] += b; hash[2] += c; hash[3] += d;
    hash[4] += e; hash[5] += f; hash[6] += g; hash[7] += h;
}

static u64 sha256(void) {
    u32 hash[8];
    int found = 0;
    for (u32 prime = 2; found < 64; prime++) {
        int is_prime = 1;
        for (u32 by = 2; by * by <= prime; by++) is_prime &= prime % by != 0;
        if (!is_prime) continue;
        rounds[found] = root_bits(prime, 1);
        if (found < 8) hash[found] = root_bits(prime, 0);
        found++;
    }
    static u8 data[1 << 16];
    for (u64 i = 0; i < sizeof data; i++) data[i] = (u8)random_u64();
    for (int turn = 0; turn < 800; turn++) {
        for (u64 at = 0; at < sizeof data; at += 64) compress(hash, data + at);
    }
    return (u64)hash[0] << 32 | hash[7];
}

// Words are joined to a text, counted in a table, and searched for.
static u64 strings(void) {
    enum { WORDS = 60000, ROWS = 1 << 15 };
    static const char *const parts[] = {"ka", "lo", "mir", "ten", "su", "pra", "vi", "ron"};
    static char words[WORDS][32];
    static u32 counts[ROWS];
    u64 sum = 0;
    for (int turn = 0; turn < 40; turn++) {
        char *text = malloc((u64)WORDS * 32), *end = text;
        for (int i = 0; i < WORDS; i++) {
            char *word = words[i];
            u64 bits = random_u64();
            word[0] = 0;
            for (int part = 0; part < 2 + (int)(bits >> 60) % 4; part++) {
                const char *from = parts[bits >> 3 * part & 7];
                memcpy(word + strlen(word), from, strlen(from) + 1);
            }
            memcpy(end, word, strlen(word));
            end += strlen(word);
            *end++ = ' ';
        }
        *end = 0;
        for (char *at = text; *at;) {
            u32 hash = 2166136261u;
            while (*at != ' ') hash = (hash ^ (u8)*at++) * 16777619u;
            at++;
            counts[hash % ROWS]++;
        }
        for (int i = 1; i < WORDS; i++) {
            int order = strcmp(words[i - 1], words[i]);
            sum = sum * 3 + (u64)(order < 0 ? 0 : order > 0 ? 2 : 1);
        }
    }
    for (int i = 0; i < ROWS; i++) sum = sum * 31 + counts[i];
    return sum;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        u64 (*run)(void);
    } all[] = {
        {"integer", integer}, {"fib", fib},       {"nbody", nbody},     {"matmul", matmul},
        {"quicksort", quicksort}, {"sha256", sha256}, {"strings", strings},
    };
    for (u64 i = 0; i < sizeof all / sizeof *all; i++) {
        if (argc == 2 && !strcmp(argv[1], all[i].name)) {
            printf("%s %016lx\n", all[i].name, all[i].run());
            return 0;
        }
    }
    printf("usage: kernels NAME\n");
    return 2;
}
