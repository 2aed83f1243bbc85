/* Products of rows of activations with a packed matrix.
 *
 * A row of weights is int8 times a scale; a row of activations is int16 times a scale, with as many levels as cannot
 * overflow a sum of int32 over the row (`levels` in packed.py). So a product is exact, whatever the order, and the result
 * of a row is the same alone and in any batch. 16-bit activations cost nothing here: AVX2 multiplies 16 pairs of int16 an
 * instruction, and needs two instructions for 32 pairs of int8.
 */
#ifndef COLDSTREAM_PRODUCTS_H
#define COLDSTREAM_PRODUCTS_H
#include "matrix.h"

#define BLOCK 48   /* tokens that go through a layer together; their activations stay in the second-level cache */

/* Room for BLOCK tokens: int16 and float [BLOCK][widest input], float [BLOCK], float [BLOCK][widest output]. */
typedef struct {
    int16_t *units;
    float *wide;
    float *largest;
    float *products;
} Workspace;

/* Row `r` of the activations, rotated in place, into the workspace. */
void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w);
/* y [rows][n] = the workspace's rows times a matrix, plus its bias. For all threads of a team; ends with a barrier. */
void product(const Matrix *m, int64_t rows, const Workspace *w, float *y);

#endif
