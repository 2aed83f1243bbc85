#include "products.h"
#include "integers.h"
#include "team.h"
#include "vectors.h"

#define ROWS 6     /* rows of activations that a tile multiplies with them: 12 sums in 16 registers */
#define PAIRS 320 /* pairs of columns of a product that are gone through together: 10 KB of weights, 8 KB a tile */

SIZE_OF(Workspace);

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

void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w) {
    rotate(row, m->k, m->order);
    w->largest[r] = to_units(row, m->k, m->levels, w->units + r * padded(m->k));
}

void product(const Matrix *m, int64_t rows, const Workspace *w, float *y) {
    const int64_t blocks = (m->n + OUTPUTS - 1) / OUTPUTS, share = blocks / (8 * threads());
    const int64_t chunk = share > 0 ? share : 1;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t b = 0; b < blocks; b++) columns(m, b * OUTPUTS, rows, w->units, padded(m->k), w->largest, y);
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
        product(m, rows, w, y + t * m->n);
    }
}
