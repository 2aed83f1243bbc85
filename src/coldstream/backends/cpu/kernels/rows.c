/* What is done to rows of floats between matrix products that are not ours (float32's, by BLAS): split among threads by
 * rows, so that a row has the same bits in any batch.
 */
#include "activation.h"
#include "norms.h"
#include "team.h"
#include "vectors.h"

/* x [rows][n] -> out, by RMS norm; `out` may be `x`. */
EXPORT void coldstream_normalise(int64_t rows, int64_t n, const float *x, const float *weight, double eps, float *out) {
#pragma omp parallel for schedule(static) if (rows * n > SMALL / 8)
    for (int64_t r = 0; r < rows; r++) normalise(x + r * n, weight, eps, n, out + r * n);
}

/* x [rows][n] += y [rows][n], which is brought to norm first where there is one. */
EXPORT void coldstream_residual(int64_t rows, int64_t n, float *x, float *y, const float *weight, double eps) {
#pragma omp parallel for schedule(static) if (rows * n > SMALL / 8)
    for (int64_t r = 0; r < rows; r++) {
        if (weight) normalise(y + r * n, weight, eps, n, y + r * n);
        add(x + r * n, y + r * n, n);
    }
}

/* `heads` heads of d floats a token, tokens `stride` floats apart: norm (if there is one) and rotary embedding, in place;
 * cos and sin [tokens][d]. */
EXPORT void coldstream_turn(int64_t tokens, int64_t heads, int64_t d, int64_t stride, float *x, const float *norm,
                            double eps, const float *cos, const float *sin) {
#pragma omp parallel for schedule(static) if (tokens * heads * d > SMALL / 8)
    for (int64_t i = 0; i < tokens * heads; i++) {
        const int64_t t = i / heads;
        turn(x + t * stride + i % heads * d, norm, eps, d, cos + t * d, sin + t * d);
    }
}

/* gate and up side by side, [rows][2 * n] -> [rows][n] */
EXPORT void coldstream_gated(int64_t rows, int64_t n, const float *both, int64_t kind, float *out) {
#pragma omp parallel for schedule(static) if (rows * n > SMALL / 8)
    for (int64_t r = 0; r < rows; r++) gated(both + r * 2 * n, n, kind, out + r * n);
}

/* x [rows][n] -> out, by layer norm. */
EXPORT void coldstream_centre(int64_t rows, int64_t n, const float *x, const float *weight, const float *bias, double eps,
                              float *out) {
#pragma omp parallel for schedule(static) if (rows * n > SMALL / 8)
    for (int64_t r = 0; r < rows; r++) centred(x + r * n, weight, bias, eps, n, out + r * n);
}

/* x [rows][n], in place. */
EXPORT void coldstream_activate(int64_t rows, int64_t n, int64_t kind, float *x) {
#pragma omp parallel for schedule(static) if (rows * n > SMALL / 8)
    for (int64_t r = 0; r < rows; r++) activate(x + r * n, n, kind, x + r * n);
}

/* x [rows][n] -> its softmax, in place. */
EXPORT void coldstream_soften(int64_t rows, int64_t n, float *x) {
#pragma omp parallel for schedule(static) if (rows * n > SMALL / 8)
    for (int64_t r = 0; r < rows; r++) {
        float *row = x + r * n;
        float m = -INFINITY;
        v8f best = all(m), mass = all(0);
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) best = largest_of(best, load(row + i));
        m = maximum(best);
        for (; i < n; i++) m = row[i] > m ? row[i] : m;
        for (i = 0; i + 8 <= n; i += 8) {
            v8f p = exponential(load(row + i) - all(m));
            store(row + i, p);
            mass += p;
        }
        float total = sum(mass);
        for (; i < n; i++) total += row[i] = exponential(all(row[i] - m))[0];
        const float by = 1 / total;
        for (i = 0; i < n; i++) row[i] *= by;
    }
}
