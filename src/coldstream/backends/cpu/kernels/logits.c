/* What is computed of one row of logits: where a draw points, and what it is divided by.
 *
 * exp(x / temperature - top) is a token's mass. It is computed in float32, 2 units in the last place at most from the
 * truth, and summed in float64: float32 sums over a vocabulary of 262,144 would make the last tokens unreachable.
 */
#include "vectors.h"

#define CHUNK 4096 /* logits whose mass is summed by itself */
#define SEGMENT 64 /* logits that `tops` takes the best of; library.py says so too */

/* 0 where it would be below exp(-87), and of -inf above all. */
INLINE v8f mass_of(v8f x, float temperature, float top) {
    const v8f s = x / all(temperature) - all(top);
    return choose(s > all(-87.0f), exponential(s), all(0));
}

INLINE double sum_of_doubles(v8f p) {
    typedef double v4d __attribute__((vector_size(32)));
    const v4d s = __builtin_convertvector(SHUFFLE(p, p, 0, 1, 2, 3), v4d) +
                  __builtin_convertvector(SHUFFLE(p, p, 4, 5, 6, 7), v4d);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

static double mass_between(const float *x, int64_t from, int64_t to, float temperature, float top) {
    double total = 0;
    int64_t i = from;
    for (; i + 8 <= to; i += 8) total += sum_of_doubles(mass_of(load(x + i), temperature, top));
    for (; i < to; i++) total += (double)mass_of(all(x[i]), temperature, top)[0];
    return total;
}

static int64_t end_of(int64_t chunk, int64_t n) { return n - chunk < CHUNK ? n : chunk + CHUNK; }

/* The mass of a whole row. */
EXPORT double coldstream_mass(const float *x, int64_t n, float temperature, float top) {
    double total = 0;
    for (int64_t c = 0; c < n; c += CHUNK) total += mass_between(x, c, end_of(c, n), temperature, top);
    return total;
}

/* The place at which the running mass first exceeds `point`, in [0, 1), of the whole; one that has mass, whatever
 * rounding does. */
EXPORT int64_t coldstream_pick(const float *x, int64_t n, float temperature, float top, double point) {
    const double target = point * coldstream_mass(x, n, temperature, top);
    int64_t chunk = 0, place = 0;
    double before = 0, running = 0;
    for (int64_t c = 0; c < n && running <= target; c += CHUNK) {
        const double mass = mass_between(x, c, end_of(c, n), temperature, top);
        if (mass > 0) chunk = c, before = running;
        running += mass;
    }
    for (int64_t i = chunk; i < end_of(chunk, n); i++) {
        const double mass = (double)mass_of(all(x[i]), temperature, top)[0];
        if (mass > 0) place = i;
        before += mass;
        if (before > target) break;
    }
    return place;
}

/* The best of each SEGMENT of a row. */
EXPORT void coldstream_tops(const float *x, int64_t segments, float *out) {
    for (int64_t s = 0; s < segments; s++) {
        v8f best = load(x + s * SEGMENT);
        for (int64_t i = 8; i < SEGMENT; i += 8) best = largest_of(best, load(x + s * SEGMENT + i));
        out[s] = maximum(best);
    }
}
