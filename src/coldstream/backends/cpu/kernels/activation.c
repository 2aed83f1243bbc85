#include "activation.h"
#include "vectors.h"

INLINE v8f activated(v8f x, int64_t kind) {
    switch (kind) {
    case SILU:
        return x / (all(1) + exponential(-x));
    case GELU_TANH: {
        v8f inner = all(1.5957691216057308f) * (x + all(0.044715f) * x * x * x);
        return x - x / (exponential(inner) + all(1));
    }
    case GELU: {
        v8f y;
        for (int i = 0; i < 8; i++) y[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678118654752f));
        return y;
    }
    default:
        return choose(x > all(0), x, all(0));
    }
}

void gated(const float *both, int64_t n, int64_t kind, float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, activated(load(both + i), kind) * load(both + n + i));
    for (; i < n; i++) out[i] = activated(all(both[i]), kind)[0] * both[n + i];
}

void activate(const float *x, int64_t n, int64_t kind, float *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, activated(load(x + i), kind));
    for (; i < n; i++) out[i] = activated(all(x[i]), kind)[0];
}
