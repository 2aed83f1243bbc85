/* A packed matrix. */
#ifndef COLDSTREAM_MATRIX_H
#define COLDSTREAM_MATRIX_H
#include <stdint.h>

#define OUTPUTS 16 /* outputs that lie side by side in a packed matrix */

/* int8 [n padded to OUTPUTS][k padded to 2], in the order that `product` reads; see `packed_at`. */
typedef struct {
    int64_t k, n;
    int64_t order;  /* of the Hadamard blocks that activations are rotated by; 1: not at all */
    int64_t levels; /* the largest |int16| of an activation */
    int8_t *packed;
    float *scales;     /* [n padded] */
    const float *bias; /* [n], or NULL */
} Matrix;

static inline int64_t pairs_of(int64_t k) { return (k + 1) / 2; }

/* Where the first of a row's pairs lies; the next is 2 * OUTPUTS further. */
static inline int8_t *packed_at(const Matrix *m, int64_t row) {
    return m->packed + row / OUTPUTS * pairs_of(m->k) * 2 * OUTPUTS + row % OUTPUTS * 2;
}

#endif
