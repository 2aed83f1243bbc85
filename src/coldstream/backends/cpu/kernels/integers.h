/* A row of floats on its way to integers: rotated, then rounded. */
#ifndef COLDSTREAM_INTEGERS_H
#define COLDSTREAM_INTEGERS_H
#include "vectors.h"

/* Sylvester's Hadamard matrix of `order`, 8 to 64 or none, along the diagonal; not normalised. */
void rotate(float *x, int64_t n, int64_t order);
/* The largest absolute value, and never less than 1e-12, so that it can be divided by. */
float largest(const float *x, int64_t n);

/* Eight columns of a row as integers, from column `i` on; beyond the row's end they are 0. */
INLINE v8i integers_at(const float *x, int64_t i, int64_t n, float by) {
    if (i + 8 <= n) return rounded(load(x + i), all(by));
    float rest[8] = {0};
    memcpy(rest, x + i, (size_t)(n - i) * sizeof(float));
    return rounded(load(rest), all(by));
}

#endif
