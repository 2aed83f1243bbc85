/* Attention over blocks of keys. */
#include "team.h"
#include "vectors.h"

#define KEYS 64    /* keys of a tile of attention; tiles begin at multiples of it */
#define SCORES (KEYS + 8) /* a pair of keys may end one beyond the tile */
#ifdef __AVX512F__
#define TOGETHER 8 /* of these rows go through the keys together: as many sums as hide the time that one takes */
#else
#define TOGETHER 4
#endif
#define QUERIES 16 /* rows (token and head) of a tile of attention */

/* Who attends to what in a step, for the layers of one window. Slots of a position: blocks[first_block + position / size
 * - first] * size + position % size. */
typedef struct {
    int64_t spans, size, window; /* window 0: none */
    const int64_t *row, *start, *count;   /* [spans]: row in the step, absolute position, tokens */
    const int64_t *first, *first_block;   /* [spans]: place of the table's first block; where its blocks begin */
    const int64_t *blocks;
    const int64_t *upper; /* [tokens]: one past the last position that a token sees */
} Step;

typedef struct {
    int64_t heads, kv_heads, d;
    int64_t q_stride, k_stride, v_stride; /* floats from a token to the next */
    int64_t slots;               /* of a head in the cache, which is [kv_heads][slots][d] */
    double scale;
} Shape;

SIZE_OF(Step);
SIZE_OF(Shape);

INLINE int64_t slot(const Step *s, int64_t span, int64_t position) {
    return s->blocks[s->first_block[span] + position / s->size - s->first[span]] * s->size + position % s->size;
}

/* Four pairs of vectors -> the sum of each of the eight. */
INLINE v8f sums(const Pair *v) {
    v8f a[4], b[2];
    for (int i = 0; i < 4; i++) {
        v8f x = first(v[i]), y = second(v[i]);
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
    Pair a[TOGETHER];
    for (int i = 0; i < TOGETHER; i++) a[i] = all_16(0);
    for (int64_t i = 0; i < d; i += 8) {
        const Pair keys = paired(load(k0 + i), load(k1 + i));
        for (int r = 0; r < rows; r++) a[r] = fused_pair(twice(q + r * d + i), keys, a[r]);
    }
    for (int r = 0; r < rows; r += 4) {
        const v8f s = sums(a + r);
        for (int i = 0; i < 4 && r + i < rows; i++) {
            float *to = scores + (r + i) * SCORES;
            to[0] = s[2 * i], to[1] = s[2 * i + 1];
        }
    }
}

/* sums[r] = sums[r] * fade[r] + p[r] @ values, 16 columns of it */
INLINE void weigh(const int rows, const float *p, const float *const *values, int64_t from, int64_t to, int64_t column,
                  const float *fade, int64_t d, float *out) {
    Pair a[TOGETHER];
    for (int r = 0; r < rows; r++) {
        const float *before = out + r * d + column;
        a[r] = paired(load(before) * all(fade[r]), load(before + 8) * all(fade[r]));
    }
    for (int64_t j = from; j < to; j++) {
        const Pair value = paired(load(values[j] + column), load(values[j] + column + 8));
        for (int r = 0; r < rows; r++) a[r] = fused_pair(all_16(p[r * SCORES + j]), value, a[r]);
    }
    for (int r = 0; r < rows; r++) {
        store(out + r * d + column, first(a[r]));
        store(out + r * d + column + 8, second(a[r]));
    }
}

#define CASE(n, call)                                                                                                  \
    case n: {                                                                                                          \
        enum { N = n };                                                                                                \
        call;                                                                                                          \
    } break;
#if TOGETHER == 8
#define MORE_CASES(call) CASE(4, call) CASE(5, call) CASE(6, call) CASE(7, call)
#else
#define MORE_CASES(call)
#endif
#define BY_ROWS(rows, call)                                                                                            \
    switch (rows) {                                                                                                    \
        CASE(1, call) CASE(2, call) CASE(3, call) MORE_CASES(call)                                                     \
    default: {                                                                                                         \
        enum { N = TOGETHER };                                                                                         \
        call;                                                                                                          \
    } break;                                                                                                           \
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
        for (int64_t j = from; j <= to; j++) {
            const int64_t at = (kv * h->slots + slot(s, span, base + (j < to ? j : to - 1))) * d;
            keys[j] = t->keys + at, values[j] = t->values + at;
        }
        for (int64_t j = from; j < to; j += 2) {
            for (int64_t c = 0; c < d; c += 16) __builtin_prefetch(values[j] + c), __builtin_prefetch(values[j + 1] + c);
            for (int64_t r = 0; r < count; r += TOGETHER)
                BY_ROWS(count - r, scores_of(N, q + r * d, keys[j], keys[j + 1], d, scores + r * SCORES + j))
        }
        for (int64_t r = 0; r < count; r++)
            fade[r] = soften(scores + r * SCORES, low[r] - base, high[r] - base, top + r, total + r);
        for (int64_t c = 0; c < d; c += 16)
            for (int64_t r = 0; r < count; r += TOGETHER)
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
