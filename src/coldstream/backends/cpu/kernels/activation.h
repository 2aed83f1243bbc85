/* What stands between the products of an MLP. */
#ifndef COLDSTREAM_ACTIVATION_H
#define COLDSTREAM_ACTIVATION_H
#include <stdint.h>

enum { SILU, GELU, GELU_TANH, RELU };

/* gate and up side by side, [2 * n] -> [n] */
void gated(const float *both, int64_t n, int64_t kind, float *out);
void activate(const float *x, int64_t n, int64_t kind, float *out);

#endif
