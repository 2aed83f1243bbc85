/* What is done to a row of floats around products. `out` may be `x`. */
#ifndef COLDSTREAM_NORMS_H
#define COLDSTREAM_NORMS_H
#include <stdint.h>

/* RMS norm (Zhang and Sennrich 2019). */
void normalise(const float *x, const float *weight, double eps, int64_t n, float *out);
/* Layer norm (Ba et al. 2016). */
void centred(const float *x, const float *weight, const float *bias, double eps, int64_t n, float *out);
/* One head: its norm, then the rotary embedding; halves are paired, the first half of `sin` is negated. */
void turn(float *head, const float *norm, double eps, int64_t n, const float *cos, const float *sin);
void add(float *x, const float *y, int64_t n);

#endif
