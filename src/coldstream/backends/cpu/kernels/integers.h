/* A row of floats on its way to integers: rotated, then rounded. */
#ifndef COLDSTREAM_INTEGERS_H
#define COLDSTREAM_INTEGERS_H
#include <stdint.h>

/* Sylvester's Hadamard matrix of `order`, 8 to 64 or none, along the diagonal; not normalised. */
void rotate(float *x, int64_t n, int64_t order);
float largest(const float *x, int64_t n);
/* A rotated row as int16 of at most `levels`; returns the scale. What pads it to pairs is 0. */
float to_units(const float *x, int64_t n, int64_t levels, int16_t *units);

#endif
