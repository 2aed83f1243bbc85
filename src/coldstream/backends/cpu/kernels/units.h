/* Activations as a variant multiplies them, four columns at a time with the same four of 8 or 16 outputs.
 *
 * Every variant multiplies the same integers, at most 127 to either side of 0, and sums them exactly: their results are
 * equal bit for bit. What differs is how a `Unit` holds an integer.
 */
#ifndef COLDSTREAM_UNITS_H
#define COLDSTREAM_UNITS_H
#include "matrix.h"
#include "vectors.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define VNNI
#endif

#ifdef VNNI /* unsigned, as vpdpbusd wants one side: 128 more, which `sums` of the weights take away again */
typedef uint8_t Unit;
#define ZERO 128
#elif defined(__AVX2__) /* two pairs: the first and the third, then the second and the fourth column */
typedef int16_t Unit;
#define ZERO 0
#else
typedef int8_t Unit;
#define ZERO 0
#endif

INLINE void store_units(v8i whole, Unit *to) {
#ifdef VNNI
    const v8u some = __builtin_convertvector(whole + ZERO, v8u);
#elif defined(__AVX2__)
    const v8s in_order = __builtin_convertvector(whole, v8s), some = SHUFFLE(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7);
#else
    const v8b some = __builtin_convertvector(whole, v8b);
#endif
    memcpy(to, &some, sizeof some);
}

/* Sums of LANES outputs, in one register; what they begin with is -ZERO times the sums of their weights. */
#ifdef __AVX512VNNI__
#define LANES 16
#else
#define LANES 8
#endif
typedef int32_t Sums __attribute__((vector_size(4 * LANES)));
typedef int32_t AnySums __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#ifndef KEEP /* in its register, row by row, or the sums of a tile do not fit */
#define KEEP(low, high) __asm__ volatile("" : "+v"(low), "+v"(high) : : "memory")
#endif

/* DOT: each lane's sum, plus its products with the columns of one phase; `quad` and `weights` give these. */
#ifdef VNNI
#define PHASES 1
#ifdef __AVX512VNNI__
#define DOT(sums, x, w) (Sums)_mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(x), (__m512i)(w))
#else
#define DOT(sums, x, w) (Sums)_mm256_dpbusd_avx_epi32((__m256i)(sums), (__m256i)(x), (__m256i)(w))
#endif
#elif defined(__AVX2__)
#define PHASES 2
#define DOT(sums, x, w) ((sums) + (Sums)_mm256_madd_epi16((__m256i)(x), (__m256i)(w)))
#endif

#ifdef PHASES
/* What the activations have in a phase: all four columns, or two of them. */
INLINE Sums quad(const Unit *units, int phase) {
    int32_t some;
    memcpy(&some, units + phase * 2, sizeof some);
    return (Sums){} + some;
}

INLINE Sums weights(const int8_t *w, int phase) {
    const Sums bytes = *(const AnySums *)w;
#ifdef VNNI
    (void)phase;
    return bytes;
#else
    const __m256i pairs = phase ? (__m256i)bytes : _mm256_slli_epi16((__m256i)bytes, 8);
    return (Sums)_mm256_srai_epi16(pairs, 8);
#endif
}
#endif

#endif
