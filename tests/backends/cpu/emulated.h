/* Stands before a kernel's source (-include), so that what it does with instructions that this processor lacks is run
 * here: the same code, with each such instruction replaced by what its manual says that it does (Intel's intrinsics
 * guide). EMULATED is the width in bits: 512 (AVX512-VNNI) or 256 (AVX-VNNI). */
#include <immintrin.h>
#include <stdint.h>

#define KEEP(low, high) (void)0
#define EMULATED_INLINE static inline __attribute__((unused))

/* vpdpbusd: four unsigned bytes times four signed ones, added to 32 bits, which wrap. */
#define EMULATED_DPBUSD(name, type, lanes)                                                                             \
    static __attribute__((noinline, unused)) type name(type sums, type units, type weights) {                         \
        union {                                                                                                        \
            type all;                                                                                                  \
            uint32_t sum[lanes];                                                                                       \
            uint8_t u8[4 * lanes];                                                                                     \
            int8_t s8[4 * lanes];                                                                                      \
        } to = {sums}, a = {units}, b = {weights};                                                                     \
        for (int i = 0; i < 4 * lanes; i++) to.sum[i / 4] += (uint32_t)((int32_t)a.u8[i] * (int32_t)b.s8[i]);          \
        return to.all;                                                                                                 \
    }

#if EMULATED == 512
#define __AVX512F__ 1
#define __AVX512VNNI__ 1
EMULATED_DPBUSD(emulated_dpbusd, __m512i, 16)
#define _mm512_dpbusd_epi32 emulated_dpbusd

typedef float Emulated16 __attribute__((vector_size(64)));
EMULATED_INLINE Emulated16 emulated_broadcast(__m256 half) {
    return __builtin_shufflevector(half, half, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
}
#define _mm512_broadcast_f32x8 emulated_broadcast

EMULATED_INLINE Emulated16 emulated_fmadd(Emulated16 a, Emulated16 b, Emulated16 c) {
    for (int i = 0; i < 16; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
#define _mm512_fmadd_ps emulated_fmadd
#else
#define __AVXVNNI__ 1
EMULATED_DPBUSD(emulated_dpbusd, __m256i, 8)
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
#endif
