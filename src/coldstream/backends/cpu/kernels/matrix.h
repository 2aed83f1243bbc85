/* A packed matrix: one order of bytes for every processor.
 *
 * A block is 16 outputs. In it, four columns of each of the 16 outputs lie side by side, 64 bytes; then the next four
 * columns. Element (output o, column c) is byte ((o / 16 * ceil(k / 4) + c / 4) * 16 + o % 16) * 4 + c % 4; n is padded to
 * 16 and k to 4. `vpdpbusd` reads this as it is, 64 bytes an instruction with AVX512-VNNI and 32 with AVX-VNNI (Arm's
 * `usdot` would, 16 at a time); AVX2 makes of 32 bytes the two vectors of int16 that it multiplies.
 *
 * A byte is an integer of at most 127 to either side of 0, plus 128: unsigned, as vpdpbusd wants one side. The integers
 * are rows of W times Hadamard blocks of `order` along the diagonal, rounded, each row with a scale. Bytes and scales are
 * the whole matrix.
 */
#ifndef COLDSTREAM_MATRIX_H
#define COLDSTREAM_MATRIX_H
#include <stdint.h>

#define OUTPUTS 16 /* outputs of a block */
#define QUAD 4     /* columns of an output that lie side by side */
#define LARGEST 127 /* of an integer's absolute values, weight or activation */
#define ZERO 128   /* the byte of a weight of 0 */

typedef struct {
    int64_t k, n;
    int64_t order; /* of the Hadamard blocks that activations are rotated by; 1: not at all */
    uint8_t *packed;
    float *scales;     /* [n padded] */
    const float *bias; /* [n], or NULL */
} Matrix;

static inline int64_t quads_of(int64_t k) { return (k + QUAD - 1) / QUAD; }

/* Where the first of a row's quads lies; the next is QUAD * OUTPUTS further. */
static inline uint8_t *packed_at(const Matrix *m, int64_t row) {
    return m->packed + (row / OUTPUTS * quads_of(m->k) * OUTPUTS + row % OUTPUTS) * QUAD;
}

#endif
