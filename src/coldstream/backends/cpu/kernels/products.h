/* Products of rows of activations with a packed matrix.
 *
 * A row of weights is integers times a scale. So is a row of activations, once it is rotated, but every GROUP of columns
 * has a scale of its own, its step. What the row's result is made of is computed alike whatever else is in the batch, and
 * on any processor (units.h).
 */
#ifndef COLDSTREAM_PRODUCTS_H
#define COLDSTREAM_PRODUCTS_H
#include "matrix.h"

#define BLOCK 48   /* tokens that go through a layer together; their activations stay in the second-level cache */

#define GROUP 64   /* columns whose activations share a step */

/* A group's step, and what its sums of products begin with, for weights that are ZERO too large. */
typedef struct {
    float step;
    int32_t start;
} Group;

/* Room for BLOCK tokens: units of up to 2 bytes and float [BLOCK][widest input], groups [BLOCK][those of the widest
 * input], float [BLOCK][widest output]. */
typedef struct {
    void *units;
    float *wide;
    Group *groups;
    float *products;
} Workspace;

/* Row `r` of the activations, rotated in place, into the workspace. */
void unit_row(const Matrix *m, float *row, int64_t r, const Workspace *w);
/* y [rows][n] = the workspace's rows times a matrix, plus its bias. For all threads of a team; ends with a barrier. */
void product(const Matrix *m, int64_t rows, const Workspace *w, float *y);

#endif
