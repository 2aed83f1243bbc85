#include "products.h"
#include "integers.h"
#include "team.h"
#include "units.h"
#include "vectors.h"

#define TILE (2 * LANES) /* outputs of a tile */
#define ROWS (LANES == 16 ? 8 : 6) /* rows that are multiplied with them: 16 sums in 32 registers, or 12 in 16 */
#define PART 10 /* groups that are gone through together: 10 KB of weights, or 20, and 5 to 8 KB of activations */

SIZE_OF(Workspace);

static int64_t groups_of(int64_t k) { return (k + GROUP - 1) / GROUP; }

/* Rows of a workspace, or a part of them. */
typedef struct {
    const Unit *units;
    int64_t stride;
    const Group *groups;
    int64_t group_stride;
} Activations;

/* sums[rows][TILE] += rows of activations times TILE rows of weights, over so many quads of columns. `rows` is a constant
 * wherever this is inlined; the second half of the weights lies `second` bytes behind the first. */
INLINE void tile(const int rows, const uint8_t *w, int64_t second, int64_t quads, const Activations *x, float *sums) {
    const int64_t ahead = TILE / OUTPUTS * quads * OUTPUTS * QUAD;
    for (int64_t g = 0, begin = 0; begin < quads; g++, begin += GROUP / QUAD) {
        const int64_t end = begin + GROUP / QUAD < quads ? begin + GROUP / QUAD : quads;
#ifdef PHASES
/* variables, not elements: gcc keeps arrays in memory here */
#define EACH_ROW(one) one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7)
#define BEGIN(r) Sums low##r = (Sums){} + (r < rows ? x->groups[r * x->group_stride + g].start : 0), high##r = low##r;
#define STEP(r)                                                                                                        \
    if (r < rows) {                                                                                                    \
        const Sums four = quad(x->units + r * x->stride + QUAD * q, phase);                                            \
        low##r = DOT(low##r, four, a);                                                                                 \
        high##r = DOT(high##r, four, b);                                                                               \
        KEEP(low##r, high##r);                                                                                         \
    }
#define END(r)                                                                                                         \
    if (r < rows) {                                                                                                    \
        const float step = x->groups[r * x->group_stride + g].step;                                                    \
        add_sums(sums + r * TILE, step, low##r);                                                                       \
        add_sums(sums + r * TILE + LANES, step, high##r);                                                              \
    }
        EACH_ROW(BEGIN)
        for (int64_t q = begin; q < end; q++, w += OUTPUTS * QUAD) {
            /* what lies behind comes next, from memory */
            for (int block = 0; block < TILE / OUTPUTS; block++)
                __builtin_prefetch(w + ahead + block * quads * OUTPUTS * QUAD);
            for (int phase = 0; phase < PHASES; phase++) {
                const Sums a = weights(w, phase), b = weights(w + second, phase);
                EACH_ROW(STEP)
            }
        }
        EACH_ROW(END)
#else
        (void)second, (void)ahead;
        for (int r = 0; r < rows; r++) {
            const Group group = x->groups[r * x->group_stride + g];
            const Unit *units = x->units + r * x->stride;
            for (int o = 0; o < OUTPUTS; o++) {
                int32_t whole = group.start;
                for (int64_t c = begin * QUAD; c < end * QUAD; c++)
                    whole += units[c] * w[((c / QUAD - begin) * OUTPUTS + o) * QUAD + c % QUAD];
                sums[r * TILE + o] = fmaf(group.step, (float)whole, sums[r * TILE + o]);
            }
        }
        w += (end - begin) * OUTPUTS * QUAD;
#endif
    }
}

static void some_rows(int64_t rows, const uint8_t *w, int64_t second, int64_t quads, const Activations *x, float *sums) {
#define CASE(n) case n: tile(n, w, second, quads, x, sums); break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#if LANES == 16
        CASE(6) CASE(7)
#endif
    default: tile(ROWS, w, second, quads, x, sums); break;
    }
}

/* A row of sums of a block's outputs -> y: scaled, plus the bias. */
INLINE void scaled(const Matrix *m, int64_t output, const float *sums, float *y) {
    const int64_t left = m->n - output;
    float some[OUTPUTS], *into = left >= OUTPUTS ? y + output : some;
    for (int o = 0; o < OUTPUTS; o += 8) store(into + o, load(sums + o) * load(m->scales + output + o));
    if (m->bias)
        for (int o = 0; o < OUTPUTS && o < left; o++) into[o] += m->bias[output + o];
    if (into == some) memcpy(y + output, some, (size_t)left * sizeof(float));
}

/* The rows from `row` on, and of them the columns from group `group` on. */
INLINE Activations from(const Activations *x, int64_t row, int64_t group) {
    return (Activations){x->units + row * x->stride + group * GROUP, x->stride,
                         x->groups + row * x->group_stride + group, x->group_stride};
}

/* TILE columns of a product, for up to BLOCK rows. Several tiles go through a part of the columns of the weights, and of
 * their own rows, that fits in the first-level cache. */
static void columns(const Matrix *m, int64_t output, int64_t rows, const Activations *x, float *y) {
    float sums[BLOCK * TILE];
    memset(sums, 0, (size_t)(rows * TILE) * sizeof(float));
    const uint8_t *w = packed_at(m, output);
    const int64_t groups = groups_of(m->k), parts = rows > ROWS ? (groups + PART - 1) / PART : 1;
    const int64_t part = (groups + parts - 1) / parts, quads = quads_of(m->k), most = part * GROUP / QUAD;
    /* half a block further, or the next block; where there is none, the same again, for nothing */
    const int64_t blocks = output + OUTPUTS < m->n ? TILE / OUTPUTS : 1;
    const int64_t second = TILE == OUTPUTS ? LANES * QUAD : blocks == 1 ? 0 : quads * OUTPUTS * QUAD;
    for (int64_t g = 0; g < groups; g += part) {
        const int64_t q = g * GROUP / QUAD, count = quads - q < most ? quads - q : most;
        for (int64_t r = 0; r < rows; r += ROWS) {
            const Activations some = from(x, r, g);
            some_rows(rows - r, w + q * OUTPUTS * QUAD, second, count, &some, sums + r * TILE);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t b = 0; b < blocks; b++)
            scaled(m, output + b * OUTPUTS, sums + r * TILE + b * OUTPUTS, y + r * m->n);
}

static int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

/* A group of rotated columns as integers. */
INLINE Group to_units(const float *x, int64_t count, Unit *units) {
    const float top = largest(x, count), by = LARGEST / top;
    v8i sums = {0};
    for (int64_t i = 0; i < count; i += 8) {
        const v8i whole = integers_at(x, i, count, by);
        store_units(whole, units + i);
        sums += whole;
    }
    int32_t total = 0;
    for (int i = 0; i < 8; i++) total += sums[i];
    return (Group){top / LARGEST, -ZERO * total};
}

void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w) {
    rotate(row, m->k, m->order);
    Unit *units = (Unit *)w->units + r * padded(m->k);
    Group *groups = w->groups + r * groups_of(m->k);
    for (int64_t i = 0; i < m->k; i += GROUP)
        *groups++ = to_units(row + i, m->k - i < GROUP ? m->k - i : GROUP, units + i);
}

void product(const Matrix *m, int64_t rows, const Workspace *w, float *y) {
    const int64_t tiles = (m->n + TILE - 1) / TILE, share = tiles / (8 * threads());
    const int64_t chunk = share > 0 ? share : 1;
    const Activations x = {w->units, padded(m->k), w->groups, groups_of(m->k)};
#pragma omp for schedule(dynamic, chunk)
    for (int64_t i = 0; i < tiles; i++) columns(m, i * TILE, rows, &x, y);
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
