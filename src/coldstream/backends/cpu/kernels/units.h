/* Activations as a variant multiplies them, four columns at a time with the same four of 8 or 16 outputs.
 *
 * Every variant multiplies the same integers and sums them exactly, 64 columns at a time; then it adds these sums to
 * floats in the order of the columns, rounding once. So their results are equal bit for bit. What differs is how a `Unit`
 * holds an integer.
 */
#ifndef COLDSTREAM_UNITS_H
#define COLDSTREAM_UNITS_H
#include "matrix.h"
#include "vectors.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define VNNI
#endif

#if defined(__AVX2__) && !defined(VNNI) /* two pairs: the first and the third, then the second and the fourth column */
typedef int16_t Unit;
#else
typedef int8_t Unit;
#endif

INLINE void store_units(v8i whole, Unit *to) {
#if defined(__AVX2__) && !defined(VNNI)
    const v8s in_order = __builtin_convertvector(whole, v8s), some = SHUFFLE(in_order, in_order, 0, 2, 1, 3, 4, 6, 5, 7);
#else
    const v8b some = __builtin_convertvector(whole, v8b);
#endif
    memcpy(to, &some, sizeof some);
}

/* LANES outputs in one register. */
#ifdef __AVX512VNNI__
#define LANES 16
#else
#define LANES 8
#endif
typedef int32_t Sums __attribute__((vector_size(4 * LANES)));
typedef int32_t AnySums __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef float AnyFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#ifndef KEEP /* in its register, row by row, or the sums of a tile do not fit */
#define KEEP(low, high) __asm__ volatile("" : "+v"(low), "+v"(high) : : "memory")
#endif

/* DOT: each lane's sum, plus its products with the columns of one phase; `quad` and `weights` give these. FUSED and
 * EVERYWHERE are `fused` and `all` for as many lanes. */
#ifdef __AVX512VNNI__
#define PHASES 1
#define DOT(sums, x, w) (Sums)_mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(w), (__m512i)(x))
#define FUSED fused_pair
#define EVERYWHERE all_16
#elif defined(__AVXVNNI__)
#define PHASES 1
#define DOT(sums, x, w) (Sums)_mm256_dpbusd_avx_epi32((__m256i)(sums), (__m256i)(w), (__m256i)(x))
#define FUSED fused
#define EVERYWHERE all
#elif defined(__AVX2__)
#define PHASES 2
#define DOT(sums, x, w) ((sums) + (Sums)_mm256_madd_epi16((__m256i)(x), (__m256i)(w)))
#define FUSED fused
#define EVERYWHERE all
#endif

#ifdef PHASES
/* What the activations have in a phase: all four columns, or two of them. */
INLINE Sums quad(const Unit *units, int phase) {
    int32_t some;
    memcpy(&some, units + phase * 2, sizeof some);
    return (Sums){} + some;
}

INLINE Sums weights(const uint8_t *w, int phase) {
    const Sums bytes = *(const AnySums *)w;
#if PHASES == 1
    (void)phase;
    return bytes;
#else
    return (Sums)_mm256_srli_epi16(phase ? (__m256i)bytes : _mm256_slli_epi16((__m256i)bytes, 8), 8);
#endif
}

/* The float sums in memory, plus a step times what the integers of its columns gave. */
INLINE void add_sums(float *to, float step, Sums sums) {
    AnyFloats *into = (AnyFloats *)to;
    *into = FUSED(EVERYWHERE(step), __builtin_convertvector(sums, Floats), (Floats)*into);
}
#endif

#endif
