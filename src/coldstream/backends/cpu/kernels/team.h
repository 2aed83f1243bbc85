/* The threads that compute together: OpenMP's, of the one libgomp of this process. */
#ifndef COLDSTREAM_TEAM_H
#define COLDSTREAM_TEAM_H
#ifdef _OPENMP
#include <omp.h>
#endif

#define SMALL (1 << 18) /* products below so many multiplications are not worth waking a second thread for */

static inline int threads(void) {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

#endif
