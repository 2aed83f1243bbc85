/* The decoder's arithmetic on a CPU: 8-bit weights packed as they land, the products with them, and attention over
 * blocks of keys.
 *
 * One source for every CPU, compiled for AVX512-VNNI, for AVX2 and for anything (compile.py); where a line is written
 * twice it says so with #ifdef. Called through ctypes (library.py), so without the interpreter's lock. Threads are OpenMP's,
 * the same libgomp and the same team as torch's own; clang would ask for another runtime, so it is GCC that compiles this.
 *
 * Integers. A row of weights is int8 times a scale; a row of activations is int16 times a scale, with as many levels as
 * cannot overflow a sum of int32 over the row (`levels` in int8.py). So a product is exact, whatever the order, and the
 * result of a row is the same alone and in any batch. 16-bit activations cost nothing here: AVX2 multiplies 16 pairs of
 * int16 an instruction, and needs two instructions for 32 pairs of int8.
 *
 * Floats. Whatever is summed in floating point is summed in an order that depends on nothing but the row itself and the
 * absolute positions of its keys, so attention too gives a row the same bits in any batch and any chunk of a prompt.
 */
#ifdef __clang__
#error "coldstream's kernels share the OpenMP of torch, libgomp, for which only GCC compiles: CC=gcc"
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define SHUFFLE __builtin_shufflevector
#define INLINE static inline __attribute__((always_inline))
#define OUTPUTS 16 /* outputs that lie side by side in a packed matrix */
#define ROWS 6     /* rows of activations that a tile multiplies with them: 12 sums in 16 registers */
#define BLOCK 48   /* tokens that go through a layer together; their activations stay in the second-level cache */
#define PAIRS 320 /* pairs of columns of a product that are gone through together: 10 KB of weights, 8 KB a tile */
#define KEYS 64    /* keys of a tile of attention; tiles begin at multiples of it */
#define SCORES (KEYS + 8) /* a pair of keys may end one beyond the tile */
#define SMALL (1 << 18) /* products below so many multiplications are not worth waking a second thread for */
#define QUERIES 16 /* rows (token and head) of a tile of attention */

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef int8_t v8b __attribute__((vector_size(8)));
typedef int16_t v8s __attribute__((vector_size(16)));
typedef float v8f_any __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t v8i_any __attribute__((vector_size(32), aligned(4), may_alias));
typedef int16_t v8s_any __attribute__((vector_size(16), aligned(2), may_alias));

/* int8 [n padded to OUTPUTS][k padded to 2], in the order that `product` reads; see `packed_at`. */
typedef struct {
    int64_t k, n;
    int64_t order;  /* of the Hadamard blocks that activations are rotated by; 1: not at all */
    int64_t levels; /* the largest |int16| of an activation */
    int8_t *packed;
    float *scales;     /* [n padded] */
    const float *bias; /* [n], or NULL */
} Matrix;

typedef struct {
    int64_t heads, kv_heads, head_dim;
    int64_t activation;
    double eps;
    const float *before_attention, *q_norm, *k_norm, *after_attention, *before_mlp, *after_mlp; /* NULL: there is none */
    Matrix qkv, output, gate_up, down;
} Layer;

/* Room for BLOCK tokens: int16 and float [BLOCK][widest input], float [BLOCK], float [BLOCK][widest output]. */
typedef struct {
    int16_t *units;
    float *wide;
    float *largest;
    float *products;
} Workspace;

/* Who attends to what in a step, for the layers of one window. Slots of a position: blocks[first_block + position / size
 * - first] * size + position % size. */
typedef struct {
    int64_t spans, size, window; /* window 0: none */
    const int64_t *row, *start, *count;   /* [spans]: row in the step, absolute position, tokens */
    const int64_t *first, *first_block;   /* [spans]: place of the table's first block; where its blocks begin */
    const int64_t *blocks;
    const int64_t *upper; /* [tokens]: one past the last position that a token sees */
} Step;

enum { SILU, GELU, GELU_TANH, RELU };
enum { FLOAT32, BFLOAT16, FLOAT16 };

/* ---------------------------------------------------------------------------------------------- rows of floats */

INLINE v8f load(const float *p) { return *(const v8f_any *)p; }
INLINE void store(float *p, v8f v) { *(v8f_any *)p = v; }
INLINE v8f all(float x) { return (v8f){x, x, x, x, x, x, x, x}; }
INLINE v8f choose(v8i mask, v8f a, v8f b) { return (v8f)((mask & (v8i)a) | (~mask & (v8i)b)); }
INLINE v8f largest_of(v8f a, v8f b) { return choose(a > b, a, b); }
INLINE v8f absolute(v8f a) { return (v8f)((v8i)a & 0x7fffffff); }

INLINE float sum(v8f v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE float maximum(v8f v) {
    float m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}

static float sum_of_squares(const float *x, int64_t n) {
    v8f a = all(0), b = all(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v8f u = load(x + i), v = load(x + i + 8);
        a += u * u;
        b += v * v;
    }
    float s = sum(a + b);
    for (; i < n; i++) s += x[i] * x[i];
    return s;
}

static float largest(const float *x, int64_t n) {
    v8f a = all(0);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) a = largest_of(a, absolute(load(x + i)));
    float m = maximum(a);
    for (; i < n; i++) m = fabsf(x[i]) > m ? fabsf(x[i]) : m;
    return m;
}

/* RMS norm (Zhang and Sennrich 2019); `out` may be `x`. */
static void normalise(const float *x, const float *weight, double eps, int64_t n, float *out) {
    float by = (float)(1.0 / sqrt((double)sum_of_squares(x, n) / (double)n + eps));
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, load(x + i) * all(by) * load(weight + i));
    for (; i < n; i++) out[i] = x[i] * by * weight[i];
}

static void add(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

INLINE v8f within(v8f v) { /* the Hadamard matrix of order 8 in one vector */
    const v8f odd1 = {1, -1, 1, -1, 1, -1, 1, -1}, odd2 = {1, 1, -1, -1, 1, 1, -1, -1}, odd4 = {1, 1, 1, 1, -1, -1, -1, -1};
    v = v * odd1 + SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
    v = v * odd2 + SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v * odd4 + SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
}

#define ACROSS(a, b)                                                                                                   \
    {                                                                                                                  \
        const v8f sum = a + b;                                                                                         \
        b = a - b;                                                                                                     \
        a = sum;                                                                                                       \
    }

INLINE void rotate_64(float *x) { /* in registers throughout */
    v8f a = within(load(x)), b = within(load(x + 8)), c = within(load(x + 16)), d = within(load(x + 24));
    v8f e = within(load(x + 32)), f = within(load(x + 40)), g = within(load(x + 48)), h = within(load(x + 56));
    ACROSS(a, b) ACROSS(c, d) ACROSS(e, f) ACROSS(g, h)
    ACROSS(a, c) ACROSS(b, d) ACROSS(e, g) ACROSS(f, h)
    ACROSS(a, e) ACROSS(b, f) ACROSS(c, g) ACROSS(d, h)
    store(x, a), store(x + 8, b), store(x + 16, c), store(x + 24, d);
    store(x + 32, e), store(x + 40, f), store(x + 48, g), store(x + 56, h);
}

/* Sylvester's Hadamard matrix of `order`, 8 to 64 or none, along the diagonal; not normalised. */
static void rotate(float *x, int64_t n, int64_t order) {
    if (order < 8) return;
    if (order == 64) {
        for (int64_t i = 0; i < n; i += 64) rotate_64(x + i);
        return;
    }
    for (int64_t i = 0; i < n; i += 8) store(x + i, within(load(x + i)));
    for (int64_t half = 8; half < order; half *= 2)
        for (int64_t i = 0; i < n; i += 2 * half)
            for (int64_t j = i; j < i + half; j += 8) {
                v8f a = load(x + j), b = load(x + j + half);
                store(x + j, a + b);
                store(x + j + half, a - b);
            }
}

#define NEAREST 12582912.0f /* 1.5 * 2^23: what is added to it and taken away again is rounded to an integer */

INLINE v8i rounded(v8f x, v8f by) {
    v8f whole = x * by + all(NEAREST);
    return __builtin_convertvector(whole - all(NEAREST), v8i);
}

/* A rotated row as int16 of at most `levels`; returns the scale. What pads it to pairs is 0. */
static float to_units(const float *x, int64_t n, int64_t levels, int16_t *units) {
    float m = largest(x, n);
    m = m > 1e-12f ? m : 1e-12f;
    float by = (float)levels / m;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) *(v8s_any *)(units + i) = __builtin_convertvector(rounded(load(x + i), all(by)), v8s);
    for (; i < n; i++) units[i] = (int16_t)lrintf(x[i] * by);
    if (n & 1) units[n] = 0;
    return m / (float)levels;
}

/* Cephes' expf: within 2 units in the last place for -87 < x < 88; beyond that the ends' values. */
INLINE v8f exponential(v8f x) {
    x = choose(x > all(-87.0f), x, all(-87.0f));
    x = choose(x < all(88.0f), x, all(88.0f));
    v8f n = (x * all(1.44269504f) + all(NEAREST)) - all(NEAREST);
    x = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    v8f y = all(1.9875691500e-4f);
    y = y * x + all(1.3981999507e-3f);
    y = y * x + all(8.3334519073e-3f);
    y = y * x + all(4.1665795894e-2f);
    y = y * x + all(1.6666665459e-1f);
    y = y * x + all(5.0000001201e-1f);
    y = y * x * x + x + all(1.0f);
    return y * (v8f)((__builtin_convertvector(n, v8i) + 127) << 23);
}

INLINE v8f activated(v8f x, int64_t kind) {
    switch (kind) {
    case SILU:
        return x / (all(1) + exponential(-x));
    case GELU_TANH: {
        v8f inner = all(1.5957691216057308f) * (x + all(0.044715f) * x * x * x);
        return x - x / (exponential(inner) + all(1));
    }
    case GELU: {
        v8f y;
        for (int i = 0; i < 8; i++) y[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678118654752f));
        return y;
    }
    default:
        return choose(x > all(0), x, all(0));
    }
}

/* gate and up side by side, [2 * n] -> [n] */
static void gated(const float *both, int64_t n, int64_t kind, float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, activated(load(both + i), kind) * load(both + n + i));
    for (; i < n; i++) out[i] = activated(all(both[i]), kind)[0] * both[n + i];
}

/* ------------------------------------------------------------------------------------------------- packing */

static int64_t pairs_of(int64_t k) { return (k + 1) / 2; }

/* Where the first of a row's pairs lies; the next is 2 * OUTPUTS further. */
static int8_t *packed_at(const Matrix *m, int64_t row) {
    return m->packed + row / OUTPUTS * pairs_of(m->k) * 2 * OUTPUTS + row % OUTPUTS * 2;
}

static void to_float(const void *from, int64_t dtype, int64_t first, int64_t n, float *out) {
    if (dtype == FLOAT32) {
        memcpy(out, (const float *)from + first, (size_t)n * sizeof(float));
        return;
    }
    const uint16_t *half = (const uint16_t *)from + first;
    if (dtype == BFLOAT16) {
        uint32_t *bits = (uint32_t *)out;
        for (int64_t i = 0; i < n; i++) bits[i] = (uint32_t)half[i] << 16;
        return;
    }
    for (int64_t i = 0; i < n; i++) { /* float16: move the exponent by multiplying, which mends subnormals too */
        uint32_t bits = (uint32_t)(half[i] & 0x7fff) << 13, sign = (uint32_t)(half[i] & 0x8000) << 16;
        float x;
        memcpy(&x, &bits, 4);
        x *= 0x1p112f;
        memcpy(&bits, &x, 4);
        if ((half[i] & 0x7c00) == 0x7c00) bits |= 0x7f800000;
        bits |= sign;
        memcpy(out + i, &bits, 4);
    }
}

/* Rows `first ...` of a matrix from [rows][k] of a float dtype. One thread; rows of different calls must not overlap. */
EXPORT void coldstream_pack(const Matrix *m, const void *weight, int64_t dtype, int64_t first, int64_t rows, float *row) {
    const int64_t k = m->k, pairs = pairs_of(k);
    int8_t units[OUTPUTS][2 * pairs];
    for (int64_t r = 0; r < rows;) {
        int64_t out = first + r, together = OUTPUTS - out % OUTPUTS;
        together = together < rows - r ? together : rows - r;
        for (int64_t o = 0; o < together; o++) {
            to_float(weight, dtype, (r + o) * k, k, row);
            rotate(row, k, m->order);
            float top = largest(row, k);
            top = top > 1e-12f ? top : 1e-12f;
            float by = 127.0f / top;
            int64_t i = 0;
            for (; i + 8 <= k; i += 8) {
                v8b whole = __builtin_convertvector(rounded(load(row + i), all(by)), v8b);
                memcpy(&units[o][i], &whole, sizeof whole);
            }
            for (; i < k; i++) units[o][i] = (int8_t)lrintf(row[i] * by);
            if (k & 1) units[o][k] = 0;
            /* `order`: neither side's rotation is normalised */
            m->scales[out + o] = top / 127.0f / (float)m->order;
        }
        int8_t *to = packed_at(m, out);
        for (int64_t p = 0; p < pairs; p++)
            for (int64_t o = 0; o < together; o++) memcpy(to + p * 2 * OUTPUTS + 2 * o, &units[o][2 * p], 2);
        r += together;
    }
}

/* Rows of a packed matrix as they were: float [count][k]. */
EXPORT void coldstream_rows(const Matrix *m, const int64_t *rows, int64_t count, float *out) {
#pragma omp parallel for schedule(static) if (count * m->k > SMALL / 16)
    for (int64_t r = 0; r < count; r++) {
        const int8_t *from = packed_at(m, rows[r]);
        float *to = out + r * m->k, by = m->scales[rows[r]];
        for (int64_t i = 0; i < m->k; i++) to[i] = (float)from[i / 2 * 2 * OUTPUTS + i % 2] * by;
        rotate(to, m->k, m->order);
    }
}

/* ------------------------------------------------------------------------------------------------- products */

/* sums[rows][OUTPUTS] += rows of activations times OUTPUTS rows of weights, over so many pairs of columns. `rows` is a
 * constant wherever this is inlined. */
INLINE void tile(const int rows, const int8_t *w, const int16_t *units, int64_t stride, int64_t pairs, int32_t *sums) {
#ifdef __AVX2__
#ifdef __AVX512VNNI__ /* one instruction for both, with the same result */
#define ADD_PRODUCTS(sums, x, w) _mm256_dpwssd_epi32(sums, x, w)
#else
#define ADD_PRODUCTS(sums, x, w) _mm256_add_epi32(sums, _mm256_madd_epi16(x, w))
#endif
/* variables, not elements: gcc keeps arrays in memory here */
#define EACH_ROW(one) one(0) one(1) one(2) one(3) one(4) one(5)
#define BEGIN(r) __m256i low##r = _mm256_setzero_si256(), high##r = low##r;
#define STEP(r)                                                                                                        \
    if (r < rows) {                                                                                                    \
        int32_t pair;                                                                                                  \
        memcpy(&pair, units + r * stride + 2 * p, 4);                                                                  \
        const __m256i x = _mm256_set1_epi32(pair);                                                                     \
        low##r = ADD_PRODUCTS(low##r, x, a);                                                                           \
        high##r = ADD_PRODUCTS(high##r, x, b);                                                                         \
        __asm__("" : "+x"(low##r), "+x"(high##r)); /* row by row, or the sums do not fit in the registers */           \
    }
#define END(r)                                                                                                         \
    if (r < rows) {                                                                                                    \
        v8i_any *to = (v8i_any *)(sums + r * OUTPUTS);                                                                 \
        to[0] += (v8i)low##r;                                                                                          \
        to[1] += (v8i)high##r;                                                                                         \
    }
    EACH_ROW(BEGIN)
    for (int64_t p = 0; p < pairs; p++) {
        __builtin_prefetch(w + (pairs + p) * 2 * OUTPUTS); /* what lies behind comes next, from memory */
        const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + p * 32)));
        const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + p * 32 + 16)));
        EACH_ROW(STEP)
    }
    EACH_ROW(END)
#else
    for (int64_t p = 0; p < pairs; p++)
        for (int r = 0; r < rows; r++) {
            int32_t x0 = units[r * stride + 2 * p], x1 = units[r * stride + 2 * p + 1];
            for (int o = 0; o < OUTPUTS; o++)
                sums[r * OUTPUTS + o] += x0 * w[p * 32 + 2 * o] + x1 * w[p * 32 + 2 * o + 1];
        }
#endif
}

static void some_rows(int64_t rows, const int8_t *w, const int16_t *units, int64_t stride, int64_t pairs, int32_t *sums) {
    switch (rows) {
    case 1: tile(1, w, units, stride, pairs, sums); break;
    case 2: tile(2, w, units, stride, pairs, sums); break;
    case 3: tile(3, w, units, stride, pairs, sums); break;
    case 4: tile(4, w, units, stride, pairs, sums); break;
    case 5: tile(5, w, units, stride, pairs, sums); break;
    default: tile(ROWS, w, units, stride, pairs, sums); break;
    }
}

/* A row of sums -> y: scaled, plus the bias. */
INLINE void scaled(const Matrix *m, int64_t output, const int32_t *sums, float largest, float *y) {
    const v8i_any *from = (const v8i_any *)sums;
    const int64_t left = m->n - output;
    v8f u = __builtin_convertvector((v8i)from[0], v8f) * load(m->scales + output) * all(largest);
    v8f v = __builtin_convertvector((v8i)from[1], v8f) * load(m->scales + output + 8) * all(largest);
    float some[OUTPUTS], *into = left >= OUTPUTS ? y + output : some;
    store(into, u);
    store(into + 8, v);
    if (m->bias)
        for (int o = 0; o < OUTPUTS && o < left; o++) into[o] += m->bias[output + o];
    if (into == some) memcpy(y + output, some, (size_t)left * sizeof(float));
}

/* OUTPUTS columns of a product, for up to BLOCK rows. Several tiles go through a part of the columns of the weights, and
 * of their own rows, that fits in the first-level cache. */
static void columns(const Matrix *m, int64_t output, int64_t rows, const int16_t *units, int64_t stride,
                    const float *largest, float *y) {
    int32_t sums[BLOCK * OUTPUTS];
    memset(sums, 0, (size_t)(rows * OUTPUTS) * sizeof(int32_t));
    const int8_t *w = packed_at(m, output);
    const int64_t pairs = pairs_of(m->k), parts = rows > ROWS ? (pairs + PAIRS - 1) / PAIRS : 1;
    const int64_t part = (pairs + parts - 1) / parts;
    for (int64_t p = 0; p < pairs; p += part)
        for (int64_t r = 0; r < rows; r += ROWS)
            some_rows(rows - r, w + p * 2 * OUTPUTS, units + r * stride + 2 * p, stride, pairs - p < part ? pairs - p : part,
                      sums + r * OUTPUTS);
    for (int64_t r = 0; r < rows; r++) scaled(m, output, sums + r * OUTPUTS, largest[r], y + r * m->n);
}

static int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

static int threads(void) {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

/* y [rows][n] = units [rows][padded(k)] times a matrix. For all threads of a team; ends with a barrier. */
static void product(const Matrix *m, int64_t rows, const int16_t *units, const float *largest, float *y) {
    const int64_t blocks = (m->n + OUTPUTS - 1) / OUTPUTS, share = blocks / (8 * threads());
    const int64_t chunk = share > 0 ? share : 1;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t b = 0; b < blocks; b++) columns(m, b * OUTPUTS, rows, units, padded(m->k), largest, y);
}

INLINE void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w) {
    rotate(row, m->k, m->order);
    w->largest[r] = to_units(row, m->k, m->levels, w->units + r * padded(m->k));
}

/* y [tokens][n] = x [tokens][k] times a matrix, plus its bias. */
EXPORT void coldstream_multiply(const Matrix *m, int64_t tokens, const float *x, float *y, const Workspace *w) {
#pragma omp parallel if (tokens * m->k * m->n > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * m->k;
            memcpy(row, x + (t + r) * m->k, (size_t)m->k * sizeof(float));
            unit_row(m, row, r, w);
        }
        product(m, rows, w->units, w->largest, y + t * m->n);
    }
}

/* --------------------------------------------------------------------------------------------- half layers */

/* One head: its norm, then the rotary embedding; halves are paired, the first half of `sin` is negated. */
static void turn(float *head, const float *norm, double eps, int64_t n, const float *cos, const float *sin) {
    if (norm) normalise(head, norm, eps, n, head);
    const int64_t half = n / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cos[i] + b * sin[i];
        head[half + i] = b * cos[half + i] + a * sin[half + i];
    }
}

/* x [tokens][hidden] -> qkv [tokens][(heads + 2 * kv_heads) * head_dim], q and k after norm and rope, whose cos and sin
 * are [tokens][head_dim]. */
EXPORT void coldstream_before_attention(const Layer *l, int64_t tokens, const float *x, const float *cos, const float *sin,
                                        float *qkv, const Workspace *w) {
    const int64_t hidden = l->qkv.k, d = l->head_dim, turned = l->heads + l->kv_heads;
#pragma omp parallel if (tokens * hidden * l->qkv.n > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
        float *out = qkv + t * l->qkv.n;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            normalise(x + (t + r) * hidden, l->before_attention, l->eps, hidden, row);
            unit_row(&l->qkv, row, r, w);
        }
        product(&l->qkv, rows, w->units, w->largest, out);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * turned; i++) {
            const int64_t r = i / turned, h = i % turned;
            turn(out + r * l->qkv.n + h * d, h < l->heads ? l->q_norm : l->k_norm, l->eps, d, cos + (t + r) * d,
                 sin + (t + r) * d);
        }
    }
}

INLINE void residual(float *x, float *y, const float *norm, double eps, int64_t n) {
    if (norm) normalise(y, norm, eps, n, y);
    add(x, y, n);
}

/* x [tokens][hidden] += what attention gave, [tokens][heads * head_dim], through its matrix; then the MLP, with all
 * norms. In place. */
EXPORT void coldstream_after_attention(const Layer *l, int64_t tokens, const float *attended, float *x,
                                       const Workspace *w) {
    const int64_t hidden = l->output.n, heads = l->output.k, inner = l->down.k;
#pragma omp parallel if (tokens * hidden * (heads + 3 * inner) > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
        float *block = x + t * hidden;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * heads;
            memcpy(row, attended + (t + r) * heads, (size_t)heads * sizeof(float));
            unit_row(&l->output, row, r, w);
        }
        product(&l->output, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            residual(block + r * hidden, w->products + r * hidden, l->after_attention, l->eps, hidden);
            normalise(block + r * hidden, l->before_mlp, l->eps, hidden, row);
            unit_row(&l->gate_up, row, r, w);
        }
        product(&l->gate_up, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * inner;
            gated(w->products + r * 2 * inner, inner, l->activation, row);
            unit_row(&l->down, row, r, w);
        }
        product(&l->down, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            residual(block + r * hidden, w->products + r * hidden, l->after_mlp, l->eps, hidden);
    }
}

/* ----------------------------------------------------------------------------------------------- attention */

typedef struct {
    int64_t heads, kv_heads, d;
    int64_t q_stride, k_stride, v_stride; /* floats from a token to the next */
    int64_t slots;               /* of a head in the cache, which is [kv_heads][slots][d] */
    double scale;
} Shape;

INLINE int64_t slot(const Step *s, int64_t span, int64_t position) {
    return s->blocks[s->first_block[span] + position / s->size - s->first[span]] * s->size + position % s->size;
}

/* Eight vectors -> the sum of each. */
INLINE v8f sums(const v8f *v) {
    v8f a[4], b[2];
    for (int i = 0; i < 4; i++) {
        v8f x = v[2 * i], y = v[2 * i + 1];
        a[i] = SHUFFLE(x, y, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(x, y, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        v8f x = a[2 * i], y = a[2 * i + 1];
        b[i] = SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return SHUFFLE(b[0], b[1], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(b[0], b[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* scores[r][0 ... 1] of `rows` queries with two keys */
INLINE void scores_of(const int rows, const float *q, const float *k0, const float *k1, int64_t d, float *scores) {
    v8f a[8];
    for (int i = 0; i < 8; i++) a[i] = all(0);
    for (int64_t i = 0; i < d; i += 8) {
        v8f x = load(k0 + i), y = load(k1 + i);
        for (int r = 0; r < rows; r++) {
            v8f z = load(q + r * d + i);
            a[2 * r] += z * x;
            a[2 * r + 1] += z * y;
        }
    }
    v8f s = sums(a);
    for (int r = 0; r < rows; r++) scores[r * SCORES] = s[2 * r], scores[r * SCORES + 1] = s[2 * r + 1];
}

/* sums[r] = sums[r] * fade[r] + p[r] @ values, 16 columns of it */
INLINE void weigh(const int rows, const float *p, const float *const *values, int64_t from, int64_t to, int64_t column,
                  const float *fade, int64_t d, float *out) {
    v8f a[4], b[4];
    for (int r = 0; r < rows; r++) {
        a[r] = load(out + r * d + column) * all(fade[r]);
        b[r] = load(out + r * d + column + 8) * all(fade[r]);
    }
    for (int64_t j = from; j < to; j++) {
        v8f x = load(values[j] + column), y = load(values[j] + column + 8);
        for (int r = 0; r < rows; r++) {
            v8f by = all(p[r * SCORES + j]);
            a[r] += by * x;
            b[r] += by * y;
        }
    }
    for (int r = 0; r < rows; r++) {
        store(out + r * d + column, a[r]);
        store(out + r * d + column + 8, b[r]);
    }
}

#define BY_ROWS(rows, call)                                                                                            \
    switch (rows) {                                                                                                    \
    case 1: { enum { N = 1 }; call; } break;                                                                           \
    case 2: { enum { N = 2 }; call; } break;                                                                           \
    case 3: { enum { N = 3 }; call; } break;                                                                           \
    default: { enum { N = 4 }; call; } break;                                                                          \
    }

/* One row of scores -> weights, in place, with the running maximum and sum; returns what older sums fade by. */
INLINE float soften(float *scores, int64_t low, int64_t high, float *top, float *total) {
    const v8i index = {0, 1, 2, 3, 4, 5, 6, 7};
    const v8f nothing = all(-INFINITY);
    v8f best = nothing;
    for (int i = 0; i < KEYS; i += 8) {
        v8i at = index + i;
        v8f s = choose((at >= (int32_t)low) & (at < (int32_t)high), load(scores + i), nothing);
        store(scores + i, s);
        best = largest_of(best, s);
    }
    float m = maximum(best);
    m = m > *top ? m : *top;
    if (m == -INFINITY) {
        memset(scores, 0, KEYS * sizeof(float));
        return 1;
    }
    v8f mass = all(0);
    for (int i = 0; i < KEYS; i += 8) {
        v8f s = load(scores + i), p = exponential(s - all(m));
        p = choose(s > nothing, p, all(0));
        store(scores + i, p);
        mass += p;
    }
    float fade = *top == -INFINITY ? 0 : exponential(all(*top - m))[0];
    *total = *total * fade + sum(mass);
    *top = m;
    return fade;
}

typedef struct {
    const float *q, *keys, *values;
    float *out;
} Tensors;

/* `count` rows of a span from row `first` on (row = token * heads a key head + head), all with key head `kv`. */
static void attend(const Shape *h, const Step *s, int64_t span, int64_t kv, int64_t first, int64_t count, const Tensors *t) {
    const int64_t d = h->d, group = h->heads / h->kv_heads;
    float q[QUERIES * d], out[QUERIES * d], scores[QUERIES * SCORES], top[QUERIES], total[QUERIES], fade[QUERIES];
    int64_t low[QUERIES], high[QUERIES], lowest = INT64_MAX, highest = 0;
    for (int64_t r = 0; r < count; r++) {
        const int64_t token = (first + r) / group, head = kv * group + (first + r) % group;
        const int64_t position = s->start[span] + token, row = s->row[span] + token;
        const float *from = t->q + row * h->q_stride + head * d;
        for (int64_t i = 0; i < d; i++) q[r * d + i] = from[i] * (float)h->scale, out[r * d + i] = 0;
        top[r] = -INFINITY, total[r] = 0;
        low[r] = s->window && position >= s->window ? position - s->window + 1 : 0;
        high[r] = s->upper[row];
        lowest = low[r] < lowest ? low[r] : lowest;
        highest = high[r] > highest ? high[r] : highest;
    }
    for (int64_t base = lowest / KEYS * KEYS; base < highest; base += KEYS) {
        const int64_t from = lowest > base ? lowest - base : 0, to = highest - base < KEYS ? highest - base : KEYS;
        const float *keys[KEYS + 1], *values[KEYS + 1];
        for (int64_t j = from; j < to; j++) {
            const int64_t at = (kv * h->slots + slot(s, span, base + j)) * d;
            keys[j] = t->keys + at, values[j] = t->values + at;
        }
        keys[to] = keys[to - 1], values[to] = values[to - 1];
        for (int64_t j = from; j < to; j += 2) {
            for (int64_t c = 0; c < d; c += 16) __builtin_prefetch(values[j] + c), __builtin_prefetch(values[j + 1] + c);
            for (int64_t r = 0; r < count; r += 4)
                BY_ROWS(count - r, scores_of(N, q + r * d, keys[j], keys[j + 1], d, scores + r * SCORES + j))
        }
        for (int64_t r = 0; r < count; r++)
            fade[r] = soften(scores + r * SCORES, low[r] - base, high[r] - base, top + r, total + r);
        for (int64_t c = 0; c < d; c += 16)
            for (int64_t r = 0; r < count; r += 4)
                BY_ROWS(count - r, weigh(N, scores + r * SCORES, values, from, to, c, fade + r, d, out + r * d))
    }
    for (int64_t r = 0; r < count; r++) {
        const int64_t token = (first + r) / group, head = kv * group + (first + r) % group;
        float *into = t->out + ((s->row[span] + token) * h->heads + head) * d;
        for (int64_t i = 0; i < d; i++) into[i] = out[r * d + i] / total[r];
    }
}

/* Stores k and v [tokens][kv_heads][d] of a step in the cache, then attends: out [tokens][heads * d]. d is a multiple of
 * 16. Rows and what they see are split among threads so that each row is computed by one thread, always alike. */
EXPORT void coldstream_attention(const Shape *h, const Step *s, const float *q, const float *k, const float *v,
                                 float *keys, float *values, float *out) {
    const int64_t group = h->heads / h->kv_heads;
    const Tensors t = {q, keys, values, out};
    int64_t seen = 0;
    for (int64_t span = 0; span < s->spans; span++) {
        const int64_t end = s->start[span] + s->count[span];
        seen += s->count[span] * (s->window && s->window < end ? s->window : end);
    }
#pragma omp parallel if (2 * seen * h->heads * h->d > SMALL)
    {
        for (int64_t span = 0; span < s->spans; span++) {
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < s->count[span] * h->kv_heads; i++) {
                const int64_t token = i / h->kv_heads, kv = i % h->kv_heads, row = s->row[span] + token;
                const int64_t to = (kv * h->slots + slot(s, span, s->start[span] + token)) * h->d;
                memcpy(keys + to, k + row * h->k_stride + kv * h->d, (size_t)h->d * sizeof(float));
                memcpy(values + to, v + row * h->v_stride + kv * h->d, (size_t)h->d * sizeof(float));
            }
        }
#pragma omp barrier
        int64_t rows = 0;
        for (int64_t span = 0; span < s->spans; span++) rows += s->count[span] * group * h->kv_heads;
        int64_t most = QUERIES;
        while (most > 1 && rows < most * threads()) most /= 2;
        for (int64_t span = 0; span < s->spans; span++) {
            const int64_t all_rows = s->count[span] * group, parts = (all_rows + most - 1) / most;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t i = 0; i < parts * h->kv_heads; i++) {
                const int64_t part = parts - 1 - i / h->kv_heads, first = part * most; /* the longest first */
                attend(h, s, span, i % h->kv_heads, first, all_rows - first < most ? all_rows - first : most, &t);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------- a vision tower's layer */

typedef struct {
    int64_t heads;
    int64_t activation;
    double eps;
    const float *before_attention, *before_attention_bias, *before_mlp, *before_mlp_bias;
    Matrix qkv, output, up, down;
} TowerLayer;

/* Layer norm (Ba et al. 2016). */
static void centred(const float *x, const float *weight, const float *bias, double eps, int64_t n, float *out) {
    v8f some = all(0);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) some += load(x + i);
    float total = sum(some);
    for (; i < n; i++) total += x[i];
    const float mean = total / (float)n;
    for (i = 0; i < n; i++) out[i] = x[i] - mean;
    const float by = (float)(1.0 / sqrt((double)sum_of_squares(out, n) / (double)n + eps));
    for (i = 0; i < n; i++) out[i] = out[i] * by * weight[i] + bias[i];
}

static void activate(const float *x, int64_t n, int64_t kind, float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, activated(load(x + i), kind));
    for (; i < n; i++) out[i] = activated(all(x[i]), kind)[0];
}

/* x [tokens][hidden] -> q, k and v, each [heads][tokens][head_dim], one behind the other. */
EXPORT void coldstream_tower_before(const TowerLayer *l, int64_t tokens, const float *x, float *qkv, const Workspace *w) {
    const int64_t hidden = l->qkv.k, heads = 3 * l->heads, d = l->qkv.n / heads;
#pragma omp parallel if (tokens * hidden * l->qkv.n > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            centred(x + (t + r) * hidden, l->before_attention, l->before_attention_bias, l->eps, hidden, row);
            unit_row(&l->qkv, row, r, w);
        }
        product(&l->qkv, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t r = 0; r < rows; r++)
                memcpy(qkv + (h * tokens + t + r) * d, w->products + (r * heads + h) * d, (size_t)d * sizeof(float));
    }
}

/* x [tokens][hidden] += what attention gave, [tokens][hidden], through its matrix; then the MLP. In place. */
EXPORT void coldstream_tower_after(const TowerLayer *l, int64_t tokens, const float *attended, float *x, const Workspace *w) {
    const int64_t hidden = l->output.n, inner = l->down.k;
#pragma omp parallel if (tokens * hidden * (hidden + 2 * inner) > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
        float *block = x + t * hidden;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            memcpy(row, attended + (t + r) * hidden, (size_t)hidden * sizeof(float));
            unit_row(&l->output, row, r, w);
        }
        product(&l->output, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            add(block + r * hidden, w->products + r * hidden, hidden);
            centred(block + r * hidden, l->before_mlp, l->before_mlp_bias, l->eps, hidden, row);
            unit_row(&l->up, row, r, w);
        }
        product(&l->up, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * inner;
            activate(w->products + r * inner, inner, l->activation, row);
            unit_row(&l->down, row, r, w);
        }
        product(&l->down, rows, w->units, w->largest, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) add(block + r * hidden, w->products + r * hidden, hidden);
    }
}

/* ------------------------------------------------------------------------------------- what ctypes has to agree with */

/* packed.py and library.py declare these structs again, and compare the sizes while they open the library. */
#define SIZE_OF(name) EXPORT const int64_t coldstream_sizeof_##name = sizeof(name)
SIZE_OF(Matrix);
SIZE_OF(Layer);
SIZE_OF(TowerLayer);
SIZE_OF(Workspace);
SIZE_OF(Step);
SIZE_OF(Shape);
