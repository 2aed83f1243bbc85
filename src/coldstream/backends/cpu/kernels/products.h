/* Products of rows of activations with a packed matrix.
 *
 * A row of weights is int8 times a scale; a row of activations, rotated, is rounded to as many levels and has a step of its
 * own. Their products are summed exactly over the whole row, in int32, so the result of a row is the same alone, in any
 * batch and on any processor (units.h).
 */
#ifndef COLDSTREAM_PRODUCTS_H
#define COLDSTREAM_PRODUCTS_H
#include "matrix.h"

#define BLOCK 48   /* tokens that go through a layer together; their activations stay in the second-level cache */

/* Room for BLOCK tokens: units of up to 2 bytes and float [BLOCK][widest input], float [BLOCK], float [BLOCK][widest
 * output]. */
typedef struct {
    void *units;
    float *wide;
    float *steps;
    float *products;
} Workspace;

/* Row `r` of the activations, rotated in place, into the workspace. */
void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w);
/* y [rows][n] = the workspace's rows times a matrix, plus its bias. For all threads of a team; ends with a barrier. */
void product(const Matrix *m, int64_t rows, const Workspace *w, float *y);

#endif
