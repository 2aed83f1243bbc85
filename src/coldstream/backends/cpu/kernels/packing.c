/* Matrices packed as they land, and their rows as they were. */
#include "integers.h"
#include "matrix.h"
#include "team.h"
#include "vectors.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

SIZE_OF(Matrix);

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
    const int64_t k = m->k, quads = quads_of(k);
    uint8_t block[OUTPUTS][(k + 7) / 8 * 8];
    for (int64_t r = 0; r < rows;) {
        int64_t out = first + r, together = OUTPUTS - out % OUTPUTS;
        together = together < rows - r ? together : rows - r;
        for (int64_t o = 0; o < together; o++) {
            to_float(weight, dtype, (r + o) * k, k, row);
            rotate(row, k, m->order);
            const float top = largest(row, k), by = LARGEST / top;
            for (int64_t i = 0; i < k; i += 8) {
                const v8u some = __builtin_convertvector(integers_at(row, i, k, by) + ZERO, v8u);
                memcpy(&block[o][i], &some, sizeof some);
            }
            /* `order`: neither side's rotation is normalised */
            m->scales[out + o] = top / LARGEST / (float)m->order;
        }
        uint8_t *to = packed_at(m, out);
        for (int64_t q = 0; q < quads; q++)
            for (int64_t o = 0; o < together; o++)
                memcpy(to + (q * OUTPUTS + o) * QUAD, &block[o][q * QUAD], QUAD);
        r += together;
    }
}

/* Rows of a packed matrix as they were: float [count][k]. */
EXPORT void coldstream_rows(const Matrix *m, const int64_t *rows, int64_t count, float *out) {
#pragma omp parallel for schedule(static) if (count * m->k > SMALL / 16)
    for (int64_t r = 0; r < count; r++) {
        const uint8_t *from = packed_at(m, rows[r]);
        float *to = out + r * m->k, by = m->scales[rows[r]];
        for (int64_t i = 0; i < m->k; i++) to[i] = (float)(from[i / QUAD * OUTPUTS * QUAD + i % QUAD] - ZERO) * by;
        rotate(to, m->k, m->order);
    }
}
