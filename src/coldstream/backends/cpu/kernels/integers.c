#include "integers.h"

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

void rotate(float *x, int64_t n, int64_t order) {
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

float largest(const float *x, int64_t n) {
    v8f a = all(0);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) a = largest_of(a, absolute(load(x + i)));
    float m = maximum(a);
    for (; i < n; i++) m = fabsf(x[i]) > m ? fabsf(x[i]) : m;
    return m > 1e-12f ? m : 1e-12f;
}
