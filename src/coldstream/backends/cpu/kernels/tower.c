/* The two halves of a vision tower's layer, before and after attention, which is vision.py's. */
#include "activation.h"
#include "norms.h"
#include "products.h"
#include "team.h"
#include "vectors.h"

typedef struct {
    int64_t heads;
    int64_t activation;
    double eps;
    const float *before_attention, *before_attention_bias, *before_mlp, *before_mlp_bias;
    Matrix qkv, output, up, down;
} TowerLayer;

SIZE_OF(TowerLayer);

/* x [tokens][hidden] -> q, k and v, each [heads][tokens][head_dim], one behind the other. */
EXPORT void coldstream_tower_before(const TowerLayer *l, int64_t tokens, const float *x, float *qkv, const Workspace *w) {
    const int64_t hidden = l->qkv.k, heads = 3 * l->heads, d = l->qkv.n / heads;
#pragma omp parallel if (tokens * hidden * l->qkv.n > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            centred(x + (t + r) * hidden, l->before_attention, l->before_attention_bias, l->eps, hidden, row);
            unit_row(&l->qkv, row, r, w);
        }
        product(&l->qkv, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t r = 0; r < rows; r++)
                memcpy(qkv + (h * tokens + t + r) * d, w->products + (r * heads + h) * d, (size_t)d * sizeof(float));
    }
}

/* x [tokens][hidden] += what attention gave, [tokens][hidden], through its matrix; then the MLP. In place. */
EXPORT void coldstream_tower_after(const TowerLayer *l, int64_t tokens, const float *attended, float *x, const Workspace *w) {
    const int64_t hidden = l->output.n, inner = l->down.k;
#pragma omp parallel if (tokens * hidden * (hidden + 2 * inner) > SMALL)
    for (int64_t t = 0; t < tokens; t += BLOCK) {
        const int64_t rows = tokens - t < BLOCK ? tokens - t : BLOCK;
        float *block = x + t * hidden;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            memcpy(row, attended + (t + r) * hidden, (size_t)hidden * sizeof(float));
            unit_row(&l->output, row, r, w);
        }
        product(&l->output, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * hidden;
            add(block + r * hidden, w->products + r * hidden, hidden);
            centred(block + r * hidden, l->before_mlp, l->before_mlp_bias, l->eps, hidden, row);
            unit_row(&l->up, row, r, w);
        }
        product(&l->up, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            float *row = w->wide + r * inner;
            activate(w->products + r * inner, inner, l->activation, row);
            unit_row(&l->down, row, r, w);
        }
        product(&l->down, rows, w, w->products);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) add(block + r * hidden, w->products + r * hidden, hidden);
    }
}
