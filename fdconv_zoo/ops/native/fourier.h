/* Discrete Fourier transforms of any length, of LANES sequences at once: one in each lane. */
#ifndef FDCONV_FOURIER_H
#define FDCONV_FOURIER_H

#include "lanes.h"

typedef struct {
    lanes re, im;
} complex_lanes;

typedef struct fourier_plan {
    int64_t length;
    int num_factors;
    int factors[64];
    const float *roots; /* exp(2 pi i k / length) for k = 0 ... length - 1, real and imaginary parts in turn */
    struct fourier_plan *next;
} fourier_plan;

/* Find the plan of a length, or make it; plans are kept. NULL if memory has run out. */
const fourier_plan *find_plan(int64_t length);

INLINE complex_lanes add(complex_lanes a, complex_lanes b) { return (complex_lanes){a.re + b.re, a.im + b.im}; }

INLINE complex_lanes subtract(complex_lanes a, complex_lanes b) { return (complex_lanes){a.re - b.re, a.im - b.im}; }

/* a * (re + sign * i * im) */
INLINE complex_lanes rotate(complex_lanes a, const float *root, int sign) {
    float re = root[0], im = sign * root[1];
    return (complex_lanes){a.re * re - a.im * im, a.re * im + a.im * re};
}

/* a * sign * i */
INLINE complex_lanes quarter_turn(complex_lanes a, int sign) {
    return sign > 0 ? (complex_lanes){-a.im, a.re} : (complex_lanes){a.im, -a.re};
}

INLINE void butterfly_2(complex_lanes *x) {
    complex_lanes a = x[0], b = x[1];
    x[0] = add(a, b);
    x[1] = subtract(a, b);
}

INLINE void butterfly_3(complex_lanes *x, int sign) {
    const float half_root = 0.86602540378f; /* sin(2 pi / 3) */
    complex_lanes sum = add(x[1], x[2]), turned = quarter_turn(subtract(x[1], x[2]), sign);
    complex_lanes middle = {x[0].re - 0.5f * sum.re, x[0].im - 0.5f * sum.im};
    complex_lanes side = {turned.re * half_root, turned.im * half_root};
    x[0] = add(x[0], sum);
    x[1] = add(middle, side);
    x[2] = subtract(middle, side);
}

INLINE void butterfly_4(complex_lanes *x, int sign) {
    complex_lanes even = add(x[0], x[2]), odd = add(x[1], x[3]);
    complex_lanes rest = subtract(x[0], x[2]), turned = quarter_turn(subtract(x[1], x[3]), sign);
    x[0] = add(even, odd);
    x[1] = add(rest, turned);
    x[2] = subtract(even, odd);
    x[3] = subtract(rest, turned);
}

/* Two butterflies of 4; the results of the second are turned by eighths before the butterflies of 2. */
INLINE void butterfly_8(complex_lanes *x, int sign) {
    const float half_root = 0.70710678119f;
    complex_lanes even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    butterfly_4(even, sign);
    butterfly_4(odd, sign);
    complex_lanes first = quarter_turn(odd[1], sign), third = quarter_turn(odd[3], sign);
    complex_lanes turned[4] = {
        odd[0],
        {(odd[1].re + first.re) * half_root, (odd[1].im + first.im) * half_root},
        quarter_turn(odd[2], sign),
        {(third.re - odd[3].re) * half_root, (third.im - odd[3].im) * half_root},
    };
    for (int j = 0; j < 4; j++) {
        x[j] = add(even[j], turned[j]);
        x[j + 4] = subtract(even[j], turned[j]);
    }
}

/* One stage of Stockham's transform: x[k + done * (q + left * j)] to y[k + done * (radix * q + j)]. */
#define STAGE(radix, butterfly)                                                                 \
    for (int64_t q = 0; q < left; q++) {                                                        \
        const float *root[radix];                                                               \
        for (int j = 1; j < radix; j++)                                                         \
            root[j] = plan->roots + 2 * (q * j * done);                                         \
        for (int64_t k = 0; k < done; k++) {                                                    \
            complex_lanes v[radix];                                                             \
            for (int j = 0; j < radix; j++)                                                     \
                v[j] = x[k + done * (q + left * j)];                                            \
            butterfly;                                                                          \
            y[k + done * radix * q] = v[0];                                                     \
            for (int j = 1; j < radix; j++)                                                     \
                y[k + done * (radix * q + j)] = q ? rotate(v[j], root[j], sign) : v[j];         \
        }                                                                                       \
    }

/* The same for any radix, without a butterfly of its own; slower. */
INLINE void any_stage(
    const fourier_plan *plan, const complex_lanes *x, complex_lanes *y, int64_t radix, int64_t done, int64_t left, int sign
) {
    int64_t step = plan->length / radix;
    for (int64_t q = 0; q < left; q++)
        for (int64_t j = 0; j < radix; j++)
            for (int64_t k = 0; k < done; k++) {
                complex_lanes sum = x[k + done * q];
                for (int64_t i = 1; i < radix; i++) {
                    const float *root = plan->roots + 2 * (i * j % radix * step);
                    sum = add(sum, rotate(x[k + done * (q + left * i)], root, sign));
                }
                y[k + done * (radix * q + j)] = rotate(sum, plan->roots + 2 * (q * j * done), sign);
            }
}

/* sum_t x[t] exp(sign 2 pi i k t / length) for every k. Returns x or y, whichever the result is in; both are written. */
INLINE complex_lanes *transform(const fourier_plan *plan, complex_lanes *x, complex_lanes *y, int sign) {
    int64_t done = 1, left = plan->length;
    for (int stage = 0; stage < plan->num_factors; stage++) {
        int radix = plan->factors[stage];
        left /= radix;
        if (radix == 8) {
            STAGE(8, butterfly_8(v, sign))
        } else if (radix == 4) {
            STAGE(4, butterfly_4(v, sign))
        } else if (radix == 2) {
            STAGE(2, butterfly_2(v))
        } else if (radix == 3) {
            STAGE(3, butterfly_3(v, sign))
        } else {
            any_stage(plan, x, y, radix, done, left, sign);
        }
        done *= radix;
        complex_lanes *result = y;
        y = x;
        x = result;
    }
    return x;
}

#endif
