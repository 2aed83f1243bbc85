#include "norms.h"
#include "vectors.h"

static float sum_of_squares(const float *x, int64_t n) {
    v8f a = all(0), b = all(0);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v8f u = load(x + i), v = load(x + i + 8);
        a = fused(u, u, a);
        b = fused(v, v, b);
    }
    float s = sum(a + b);
    for (; i < n; i++) s += x[i] * x[i];
    return s;
}

void normalise(const float *x, const float *weight, double eps, int64_t n, float *out) {
    float by = (float)(1.0 / sqrt((double)sum_of_squares(x, n) / (double)n + eps));
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(out + i, load(x + i) * all(by) * load(weight + i));
    for (; i < n; i++) out[i] = x[i] * by * weight[i];
}

void centred(const float *x, const float *weight, const float *bias, double eps, int64_t n, float *out) {
    v8f some = all(0);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) some += load(x + i);
    float total = sum(some);
    for (; i < n; i++) total += x[i];
    const float mean = total / (float)n;
    for (i = 0; i < n; i++) out[i] = x[i] - mean;
    const float by = (float)(1.0 / sqrt((double)sum_of_squares(out, n) / (double)n + eps));
    for (i = 0; i < n; i++) out[i] = out[i] * by * weight[i] + bias[i];
}

void add(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

void turn(float *head, const float *norm, double eps, int64_t n, const float *cos, const float *sin) {
    if (norm) normalise(head, norm, eps, n, head);
    const int64_t half = n / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cos[i] + b * sin[i];
        head[half + i] = b * cos[half + i] + a * sin[half + i];
    }
}
