/* Eight floats side by side, by GCC's vector extensions, and what is computed on them alone.
 *
 * Whatever is summed in floating point is summed in an order that depends on nothing but the row itself and the absolute
 * positions of its keys, so that a row has the same bits in any batch and any chunk of a prompt.
 */
#ifndef COLDSTREAM_VECTORS_H
#define COLDSTREAM_VECTORS_H
#ifdef __clang__
#error "coldstream's kernels share this process's OpenMP, libgomp, for which only GCC compiles: CC=gcc"
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define SHUFFLE __builtin_shufflevector
#define INLINE static inline __attribute__((always_inline))
/* packed.py and library.py declare these structs again, and compare the sizes while they open the library. */
#define SIZE_OF(name) EXPORT const int64_t coldstream_sizeof_##name = sizeof(name)

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef int8_t v8b __attribute__((vector_size(8)));
typedef uint8_t v8u __attribute__((vector_size(8)));
typedef int16_t v8s __attribute__((vector_size(16)));
typedef float v8f_any __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t v8i_any __attribute__((vector_size(32), aligned(4), may_alias));

INLINE v8f load(const float *p) { return *(const v8f_any *)p; }
INLINE void store(float *p, v8f v) { *(v8f_any *)p = v; }
INLINE v8f all(float x) { return (v8f){x, x, x, x, x, x, x, x}; }
INLINE v8f choose(v8i mask, v8f a, v8f b) { return (v8f)((mask & (v8i)a) | (~mask & (v8i)b)); }
INLINE v8f largest_of(v8f a, v8f b) { return choose(a > b, a, b); }
INLINE v8f absolute(v8f a) { return (v8f)((v8i)a & 0x7fffffff); }

/* a * b + c, rounded once: on every processor alike, whether it has an instruction for it or not. The compiler makes none
 * of its own (-ffp-contract=off in compile.py). */
INLINE v8f fused(v8f a, v8f b, v8f c) {
#ifdef __FMA__
    return (v8f)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < 8; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

/* Two vectors in one register where there is one so wide: each half is what it would be alone. */
#ifdef __AVX512F__
typedef float Pair __attribute__((vector_size(64)));
INLINE Pair paired(v8f a, v8f b) { return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
INLINE v8f first(Pair p) { return SHUFFLE(p, p, 0, 1, 2, 3, 4, 5, 6, 7); }
INLINE v8f second(Pair p) { return SHUFFLE(p, p, 8, 9, 10, 11, 12, 13, 14, 15); }
INLINE Pair twice(const float *p) { return (Pair)_mm512_broadcast_f32x8(_mm256_loadu_ps(p)); }
INLINE Pair all_16(float x) { return (Pair){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE Pair fused_pair(Pair a, Pair b, Pair c) { return (Pair)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#else
typedef struct {
    v8f first, second;
} Pair;
INLINE Pair paired(v8f a, v8f b) { return (Pair){a, b}; }
INLINE v8f first(Pair p) { return p.first; }
INLINE v8f second(Pair p) { return p.second; }
INLINE Pair twice(const float *p) { return paired(load(p), load(p)); }
INLINE Pair all_16(float x) { return paired(all(x), all(x)); }
INLINE Pair fused_pair(Pair a, Pair b, Pair c) {
    return (Pair){fused(a.first, b.first, c.first), fused(a.second, b.second, c.second)};
}
#endif

INLINE float sum(v8f v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE float maximum(v8f v) {
    float m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}

#define NEAREST 12582912.0f /* 1.5 * 2^23: what is added to it and taken away again is rounded to an integer */

INLINE v8i rounded(v8f x, v8f by) {
    v8f whole = x * by + all(NEAREST);
    return __builtin_convertvector(whole - all(NEAREST), v8i);
}

/* Cephes' expf: within 2 units in the last place for -87 < x < 88; beyond that the ends' values. */
INLINE v8f exponential(v8f x) {
    x = choose(x > all(-87.0f), x, all(-87.0f));
    x = choose(x < all(88.0f), x, all(88.0f));
    v8f n = fused(x, all(1.44269504f), all(NEAREST)) - all(NEAREST);
    x = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
    v8f y = all(1.9875691500e-4f);
    y = fused(y, x, all(1.3981999507e-3f));
    y = fused(y, x, all(8.3334519073e-3f));
    y = fused(y, x, all(4.1665795894e-2f));
    y = fused(y, x, all(1.6666665459e-1f));
    y = fused(y, x, all(5.0000001201e-1f));
    y = fused(y * x, x, x) + all(1.0f);
    return y * (v8f)((__builtin_convertvector(n, v8i) + 127) << 23);
}

#endif
