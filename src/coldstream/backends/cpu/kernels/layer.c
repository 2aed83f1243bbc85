/* The two halves of a decoder's layer, before and after attention. */
#include "activation.h"
#include "norms.h"
#include "products.h"
#include "team.h"
#include "vectors.h"

typedef struct {
    int64_t heads, kv_heads, head_dim;
    int64_t activation;
    double eps;
    const float *before_attention, *q_norm, *k_norm, *after_attention, *before_mlp, *after_mlp; /* NULL: there is none */
    Matrix qkv, output, gate_up, down;
} Layer;

SIZE_OF(Layer);

/* x [tokens][hidden] -> qkv [tokens][(heads + 2 * kv_heads) * head_dim], q and k after norm and rope, whose cos and sin
 * are [tokens][head_dim]. */
EXPORT void coldstream_before_attention(const Layer *l, int64_t tokens, const float *x, const float *cos, const float *sin,
                                        float *qkv, const Workspace *w) {
    const int64_t hidden = l->qkv.k, d = l->head_dim, turned = l->heads + l->kv_heads;
#pragma omp parallel if (tokens * hidden * l->qkv.n > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
        float *out = qkv + t * l->qkv.n;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            normalise(x + (t + r) * hidden, l->before_attention, l->eps, hidden, row);
            unit_row(&l->qkv, row, r, w);
        }
        product(&l->qkv, rows, w, out);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * turned; i++) {
            const int64_t r = i / turned, h = i % turned;
            turn(out + r * l->qkv.n + h * d, h < l->heads ? l->q_norm : l->k_norm, l->eps, d, cos + (t + r) * d,
                 sin + (t + r) * d);
        }
    }
}

INLINE void residual(float *x, float *y, const float *norm, double eps, int64_t n) {
    if (norm) normalise(y, norm, eps, n, y);
    add(x, y, n);
}

/* x [tokens][hidden] += what attention gave, [tokens][heads * head_dim], through its matrix; then the MLP, with all
 * norms. In place. */
EXPORT void coldstream_after_attention(const Layer *l, int64_t tokens, const float *attended, float *x,
                                       const Workspace *w) {
    const int64_t hidden = l->output.n, heads = l->output.k, inner = l->down.k;
#pragma omp parallel if (tokens * hidden * (heads + 3 * inner) > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
        float *block = x + t * hidden;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * heads;
            memcpy(row, attended + (t + r) * heads, (size_t)heads * sizeof(float));
            unit_row(&l->output, row, r, w);
        }
        product(&l->output, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            residual(block + r * hidden, w->products + r * hidden, l->after_attention, l->eps, hidden);
            normalise(block + r * hidden, l->before_mlp, l->eps, hidden, row);
            unit_row(&l->gate_up, row, r, w);
        }
        product(&l->gate_up, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * inner;
            gated(w->products + r * 2 * inner, inner, l->activation, row);
            unit_row(&l->down, row, r, w);
        }
        product(&l->down, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            residual(block + r * hidden, w->products + r * hidden, l->after_mlp, l->eps, hidden);
    }
}
