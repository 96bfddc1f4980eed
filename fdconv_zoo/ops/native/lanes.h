/* Vectors of floats as wide as the processor's registers, in the vector extensions of GCC and Clang. */
#ifndef FDCONV_LANES_H
#define FDCONV_LANES_H

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else /* NEON, SSE, and whatever the compiler makes of four floats elsewhere */
#define LANES 4
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE lanes load(const float *from) { return *(const anywhere *)from; }

INLINE void store(float *to, lanes values) { *(anywhere *)to = values; }

/* The first `count` floats; the other lanes are 0. */
INLINE lanes load_some(const float *from, int64_t count) {
    float values[LANES] = {0};
    for (int64_t lane = 0; lane < count; lane++)
        values[lane] = from[lane];
    return load(values);
}

INLINE void store_some(float *to, lanes values, int64_t count) {
    for (int64_t lane = 0; lane < count; lane++)
        to[lane] = values[lane];
}

INLINE lanes all(float value) { return value - (lanes){0}; }

INLINE lanes choose(mask condition, lanes yes, lanes no) {
    return (lanes)(((mask)yes & condition) | ((mask)no & ~condition));
}

INLINE float sum_lanes(lanes values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += values[lane];
    return sum;
}

/* 1 / x for x in 1 ... 1e38, to 1e-7 relative. */
INLINE lanes invert(lanes x) {
#if defined(__AVX512F__) /* an estimate and a step of Newton's method take a third of the time of a division */
    lanes estimate = (lanes)_mm512_rcp14_ps((__m512)x);
    return estimate + estimate * (1.0f - x * estimate);
#else
    return 1.0f / x;
#endif
}

INLINE lanes at_most(lanes x, float limit) {
#if defined(__AVX512F__)
    return (lanes)_mm512_min_ps(_mm512_set1_ps(limit), (__m512)x); /* NaN, if x is */
#else
    return choose(x > limit, all(limit), x);
#endif
}

/* 2^n * value for integers n; `shifted` is n + 1.5 * 2^23. */
INLINE lanes scale_by_power(lanes value, lanes n, lanes shifted) {
#if defined(__AVX512F__)
    (void)shifted;
    return (lanes)_mm512_scalef_ps((__m512)value, (__m512)n);
#else
    (void)n;
    return value * (lanes)(((mask)shifted << 23) + (127 << 23));
#endif
}

/* 1 / (1 + exp(-x)), to 2e-7 relative (below -87: 1.6e-38); NaN stays NaN. */
INLINE lanes sigmoid(lanes x) {
    x = at_most(-x, 87.0f);
#if !defined(__AVX512F__) /* AVX-512's instruction accepts any power */
    x = choose(x < -87.0f, all(-87.0f), x);
#endif
    /* exp(x) = 2^n exp(r) with the integer n next to x / ln 2: adding 1.5 * 2^23 rounds it into the low bits. */
    lanes shifted = x * 1.44269504f + 12582912.0f;
    lanes n = shifted - 12582912.0f;
    lanes r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    lanes series = r * (1.0f / 720) + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return invert(1.0f + scale_by_power(series, n, shifted));
}

/* table[index[lane]] for each lane, of a table with `size` entries. */
INLINE lanes look_up(const float *table, int64_t size, mask index) {
#if defined(__AVX512F__)
    if (size == 64) { /* the usual number of kernels: from registers, since a gather takes the time of 16 loads */
        __m512i at = (__m512i)index;
        __m512 low = _mm512_permutex2var_ps((__m512)load(table), at, (__m512)load(table + 16));
        __m512 high = _mm512_permutex2var_ps((__m512)load(table + 32), at, (__m512)load(table + 48));
        return (lanes)_mm512_mask_blend_ps(_mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), low, high);
    }
#endif
    (void)size;
    float values[LANES];
    for (int lane = 0; lane < LANES; lane++)
        values[lane] = table[index[lane]];
    return load(values);
}

/* Swap the off-diagonal blocks of `size` lanes in every two by two blocks. */
#define FROM_FIRST(lane, size) (((lane) & (size)) ? LANES + (lane) - (size) : (lane))
#define FROM_SECOND(lane, size) (((lane) & (size)) ? LANES + (lane) : (lane) + (size))
#define FOUR(pick, at, size) pick(at, size), pick(at + 1, size), pick(at + 2, size), pick(at + 3, size)
#if LANES == 16
#define EVERY(pick, size) FOUR(pick, 0, size), FOUR(pick, 4, size), FOUR(pick, 8, size), FOUR(pick, 12, size)
#elif LANES == 8
#define EVERY(pick, size) FOUR(pick, 0, size), FOUR(pick, 4, size)
#else
#define EVERY(pick, size) FOUR(pick, 0, size)
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(first, second, pick, size) __builtin_shufflevector(first, second, EVERY(pick, size))
#else
#define SHUFFLE(first, second, pick, size) __builtin_shuffle(first, second, (mask){EVERY(pick, size)})
#endif
#define SWAP_BLOCKS(rows, size)                                          \
    for (int row = 0; row < LANES; row++)                                \
        if (!(row & (size))) {                                           \
            lanes first = (rows)[row], second = (rows)[row + (size)];    \
            (rows)[row] = SHUFFLE(first, second, FROM_FIRST, size);      \
            (rows)[row + (size)] = SHUFFLE(first, second, FROM_SECOND, size); \
        }

/* Transpose LANES vectors in place. */
INLINE void transpose(lanes *rows) {
#if LANES == 16
    SWAP_BLOCKS(rows, 8)
#endif
#if LANES >= 8
    SWAP_BLOCKS(rows, 4)
#endif
    SWAP_BLOCKS(rows, 2)
    SWAP_BLOCKS(rows, 1)
}

#endif
