#include "products.h"
#include "integers.h"
#include "team.h"
#include "units.h"
#include "vectors.h"

#define TILE (2 * LANES) /* outputs of a tile */
#define ROWS (LANES == 16 ? 8 : 6) /* rows that are multiplied with them: 16 sums in 32 registers, or 12 in 16 */
#define QUADS 160 /* quads that are gone through together: 10 KB of weights, or 20, and 4 to 8 KB of activations */

SIZE_OF(Workspace);

/* sums[rows][TILE] += rows of activations times TILE rows of weights, over so many quads of columns. `rows` is a constant
 * wherever this is inlined; the second half of the weights lies `second` bytes behind the first. */
INLINE void tile(const int rows, const int8_t *w, int64_t second, const Unit *units, int64_t stride, int64_t quads,
                 int32_t *sums) {
#ifdef PHASES
/* variables, not elements: gcc keeps arrays in memory here */
#define EACH_ROW(one) one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7)
#define BEGIN(r) Sums low##r = {}, high##r = {};
#define STEP(r)                                                                                                        \
    if (r < rows) {                                                                                                    \
        const Sums x = quad(units + r * stride + QUAD * q, phase);                                                     \
        low##r = DOT(low##r, x, a);                                                                                    \
        high##r = DOT(high##r, x, b);                                                                                  \
        KEEP(low##r, high##r);                                                                                         \
    }
#define END(r)                                                                                                         \
    if (r < rows) {                                                                                                    \
        AnySums *to = (AnySums *)(sums + r * TILE);                                                                    \
        to[0] += low##r;                                                                                               \
        to[1] += high##r;                                                                                              \
    }
    EACH_ROW(BEGIN)
    for (int64_t q = 0; q < quads; q++, w += OUTPUTS * QUAD) {
        /* what lies behind comes next, from memory */
        for (int blocks = 0; blocks < TILE / OUTPUTS; blocks++)
            __builtin_prefetch(w + (TILE / OUTPUTS + blocks) * quads * OUTPUTS * QUAD);
        for (int phase = 0; phase < PHASES; phase++) {
            const Sums a = weights(w, phase), b = weights(w + second, phase);
            EACH_ROW(STEP)
        }
    }
    EACH_ROW(END)
#else
    (void)second;
    for (int64_t q = 0; q < quads; q++, w += OUTPUTS * QUAD)
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < OUTPUTS; o++)
                for (int c = 0; c < QUAD; c++) sums[r * TILE + o] += units[r * stride + QUAD * q + c] * w[o * QUAD + c];
#endif
}

static void some_rows(int64_t rows, const int8_t *w, int64_t second, const Unit *units, int64_t stride, int64_t quads,
                      int32_t *sums) {
#define CASE(n) case n: tile(n, w, second, units, stride, quads, sums); break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#if LANES == 16
        CASE(6) CASE(7)
#endif
    default: tile(ROWS, w, second, units, stride, quads, sums); break;
    }
}

/* A row of sums -> y: scaled, plus the bias. */
INLINE void scaled(const Matrix *m, int64_t output, const int32_t *sums, float step, float *y) {
    const v8i_any *from = (const v8i_any *)sums;
    const int64_t left = m->n - output;
    v8f u = __builtin_convertvector((v8i)from[0], v8f) * load(m->scales + output) * all(step);
    v8f v = __builtin_convertvector((v8i)from[1], v8f) * load(m->scales + output + 8) * all(step);
    float some[OUTPUTS], *into = left >= OUTPUTS ? y + output : some;
    store(into, u);
    store(into + 8, v);
    if (m->bias)
        for (int o = 0; o < OUTPUTS && o < left; o++) into[o] += m->bias[output + o];
    if (into == some) memcpy(y + output, some, (size_t)left * sizeof(float));
}

/* What the sums of TILE outputs from `output` on begin with, in each of the rows. */
static void begin(const Matrix *m, int64_t output, int64_t rows, int32_t *sums) {
    if (!ZERO) {
        memset(sums, 0, (size_t)(rows * TILE) * sizeof(int32_t));
        return;
    }
    for (int64_t o = 0; o < TILE; o++) sums[o] = output + o < m->n ? -ZERO * m->sums[output + o] : 0;
    for (int64_t r = 1; r < rows; r++) memcpy(sums + r * TILE, sums, TILE * sizeof(int32_t));
}

/* TILE columns of a product, for up to BLOCK rows. Several tiles go through a part of the columns of the weights, and of
 * their own rows, that fits in the first-level cache. */
static void columns(const Matrix *m, int64_t output, int64_t rows, const Unit *units, int64_t stride,
                    const float *steps, float *y) {
    int32_t sums[BLOCK * TILE];
    begin(m, output, rows, sums);
    const int8_t *w = packed_at(m, output);
    const int64_t quads = quads_of(m->k), parts = rows > ROWS ? (quads + QUADS - 1) / QUADS : 1;
    const int64_t part = (quads + parts - 1) / parts, blocks = output + OUTPUTS < m->n ? TILE / OUTPUTS : 1;
    /* half a block further, or the next block; where there is none, the same again, for nothing */
    const int64_t second = TILE == OUTPUTS ? LANES * QUAD : blocks == 1 ? 0 : quads * OUTPUTS * QUAD;
    for (int64_t q = 0; q < quads; q += part)
        for (int64_t r = 0; r < rows; r += ROWS)
            some_rows(rows - r, w + q * OUTPUTS * QUAD, second, units + r * stride + q * QUAD, stride,
                      quads - q < part ? quads - q : part, sums + r * TILE);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < blocks; b++)
            scaled(m, output + b * OUTPUTS, sums + r * TILE + b * OUTPUTS, steps[r], y + r * m->n);
}

static int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w) {
    rotate(row, m->k, m->order);
    const float top = largest(row, m->k), by = LARGEST / top;
    Unit *to = (Unit *)w->units + r * padded(m->k);
    for (int64_t i = 0; i < m->k; i += 8) store_units(integers_at(row, i, m->k, by), to + i);
    w->steps[r] = top / LARGEST;
}

void product(const Matrix *m, int64_t rows, const Workspace *w, float *y) {
    const int64_t tiles = (m->n + TILE - 1) / TILE, share = tiles / (8 * threads());
    const int64_t chunk = share > 0 ? share : 1;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t i = 0; i < tiles; i++) columns(m, i * TILE, rows, w->units, padded(m->k), w->steps, y);
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
