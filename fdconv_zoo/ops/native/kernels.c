/* One convolution kernel for every image: FDW's mixture of kernels, scaled by KSM's modulators; and its gradients.

   A kernel (O, I, a, b) is laid out as a plane of R = O*a rows by C = I*b columns, whose real 2-D DFT, R by H = C/2 + 1,
   is the parameter. Row r belongs to output channel r/a and tap row r%a, column c to input channel c/b and tap column c%b.
   If C is even, the first and the last bin of a real row are real: between the passes, they share bin 0, as its real
   and imaginary part. So there are C/2 complex bins, which often fill whole vectors.

   Each pass of a transform has the other axis in the lanes of a vector, so that no transform shuffles lanes; between
   the passes, a plane is transposed in blocks. All other operations on an element are done where a pass loads or stores
   it.

   All rows of a block belong to one group of the convolution; the last block of a group may have fewer than LANES. */

#include <stddef.h>
#include <string.h>

#include "fourier.h"
#include "parallel.h"

/* The sizes in the order in which Python passes them. */
typedef struct {
    int64_t first_image, images; /* of the batch, to process in this call */
    int64_t shares_attention;    /* all images use the attention of the first */
    int64_t outputs, inputs, height, width, groups; /* O, I (of one group), a, b, G */
    int64_t num_taps, num_kernels, index_bytes;
    int64_t parts;
} kernel_sizes;

typedef struct {
    kernel_sizes s;
    int64_t rows, cols, bins, packed_bins, bin_blocks, strip, strips, group_rows, group_blocks, row_blocks;
    const fourier_plan *row_plan, *col_plan, *real_plan;
    const float *spectrum;
    const void *index;
    const float *attention, *taps, *windows, *channel, *filter, *spatial;
    float *kernels;
    const float *grad_kernels;
    int64_t accumulates;
    float *grad_spectrum, *grad_attention, *grad_taps, *grad_windows, *grad_channel, *grad_filter, *grad_spatial;
    /* Sums of each part, (images, n), (R, b, T), (images, G, I, T), (images, G, I); and of all, (images, R, b). */
    float *attention_sums, *tap_sums, *window_sums, *channel_sums, *row_sums;
    float *middle;  /* between the passes: (images, row blocks, bins, re and im, LANES rows) */
    float *buffers; /* of each part, buffer_floats() */
} kernel_job;

#define MAX_STRIP 4

typedef struct {
    int64_t first, count, group; /* rows first ... first + count - 1 */
} row_block;

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t middle_floats(const kernel_job *job) {
    return job->s.images * job->row_blocks * job->bin_blocks * LANES * 2 * LANES;
}

/* Floats of buffers: for transforms; factors and sums of a block of rows; sums for each input channel, or kernel. */
static int64_t transform_floats(const kernel_job *job) {
    return 2 * LANES * largest((job->strip + 1) * job->rows, 2 * job->cols);
}
static int64_t factor_floats(const kernel_job *job) { return LANES * job->s.width * (3 + job->s.num_taps); }
static int64_t block_floats(const kernel_job *job) { return LANES * job->s.width * (1 + job->s.num_taps); }
static int64_t input_floats(const kernel_job *job) { return LANES * job->s.inputs * (1 + job->s.num_taps); }
static int64_t buffer_floats(const kernel_job *job) {
    int64_t others = factor_floats(job) + block_floats(job) + input_floats(job);
    others = largest(others, LANES * job->s.num_kernels);
    return transform_floats(job) + others;
}

static int64_t attention_floats(const kernel_job *job) { return job->s.images * job->s.num_kernels; }
static int64_t tap_floats(const kernel_job *job) { return job->rows * job->s.width * job->s.num_taps; }
static int64_t channel_floats(const kernel_job *job) { return job->s.images * job->s.groups * job->s.inputs; }
static int64_t window_floats(const kernel_job *job) { return channel_floats(job) * job->s.num_taps; }
static int64_t row_sum_floats(const kernel_job *job) { return job->s.images * job->rows * job->s.width; }
static int64_t sum_floats(const kernel_job *job) {
    int64_t of_part = attention_floats(job) + tap_floats(job) + channel_floats(job) + window_floats(job);
    return job->s.parts * of_part + row_sum_floats(job);
}

static void complete(kernel_job *job) {
    const kernel_sizes *s = &job->s;
    job->rows = s->outputs * s->height;
    job->cols = s->inputs * s->width;
    job->bins = job->cols / 2 + 1;
    job->packed_bins = (job->cols + 1) / 2;
    job->bin_blocks = (job->packed_bins + LANES - 1) / LANES;
    /* How many blocks of bins to load together, since a row of one has only two or three cache lines: as many as keep
       the transforms in the second-level cache, and leave work for every part. */
    int64_t fitting = (768 << 10) / ((int64_t)sizeof(complex_lanes) * job->rows) - 1;
    int64_t shared = (s->images * job->bin_blocks + s->parts - 1) / s->parts;
    job->strip = largest(1, smallest(smallest(fitting, shared), smallest(MAX_STRIP, job->bin_blocks)));
    job->strips = (job->bin_blocks + job->strip - 1) / job->strip;
    job->group_rows = job->rows / s->groups;
    job->group_blocks = (job->group_rows + LANES - 1) / LANES;
    job->row_blocks = s->groups * job->group_blocks;
}

static int find_plans(kernel_job *job) {
    job->row_plan = find_plan(job->rows);
    job->col_plan = find_plan(job->cols);
    job->real_plan = job->cols % 2 ? job->col_plan : find_plan(job->cols / 2);
    return job->row_plan != NULL && job->col_plan != NULL && job->real_plan != NULL;
}

INLINE row_block find_block(const kernel_job *job, int64_t block) {
    int64_t group = block / job->group_blocks, start = block % job->group_blocks * LANES;
    return (row_block){group * job->group_rows + start, smallest(LANES, job->group_rows - start), group};
}

INLINE const float *attention_of(const kernel_job *job, int64_t image) {
    return job->attention + (job->s.shares_attention ? 0 : image * job->s.num_kernels);
}

INLINE complex_lanes *middle_of(const kernel_job *job, int64_t image, int64_t block) {
    int64_t plane = image * job->row_blocks + block;
    return (complex_lanes *)job->middle + plane * job->bin_blocks * LANES;
}

/* ---- The coefficients: LANES bins of a row ---- */

#define EVEN(lane, size) (2 * (lane) + (size))
#define FIRST_HALF(lane, size) (((lane) & 1) * LANES + (lane) / 2 + (size))

INLINE complex_lanes load_bins(const float *from, int64_t count) {
    lanes first, second;
    if (count >= LANES) {
        first = load(from);
        second = load(from + LANES);
    } else {
        float values[2 * LANES] = {0};
        memcpy(values, from, sizeof(float) * 2 * (size_t)count);
        first = load(values);
        second = load(values + LANES);
    }
    return (complex_lanes){SHUFFLE(first, second, EVEN, 0), SHUFFLE(first, second, EVEN, 1)};
}

INLINE void store_bins(float *to, complex_lanes values, int64_t count) {
    lanes first = SHUFFLE(values.re, values.im, FIRST_HALF, 0);
    lanes second = SHUFFLE(values.re, values.im, FIRST_HALF, LANES / 2);
    if (count >= LANES) {
        store(to, first);
        store(to + LANES, second);
    } else {
        float all_values[2 * LANES];
        store(all_values, first);
        store(all_values + LANES, second);
        memcpy(to, all_values, sizeof(float) * 2 * (size_t)count);
    }
}

/* The groups of LANES coefficients; 0 beyond `count`. */
#define WIDEN(type)                                                      \
    {                                                                    \
        const type *index = (const type *)job->index + at;               \
        if (count >= LANES)                                              \
            for (int lane = 0; lane < LANES; lane++)                     \
                groups[lane] = index[lane];                              \
        else                                                             \
            for (int64_t lane = 0; lane < count; lane++)                 \
                groups[lane] = index[lane];                              \
    }

INLINE mask load_groups(const kernel_job *job, int64_t at, int64_t count) {
    mask groups = {0};
    if (job->s.index_bytes == 1)
        WIDEN(uint8_t)
    else if (job->s.index_bytes == 2)
        WIDEN(int16_t)
    else
        WIDEN(int32_t)
    return groups;
}

/* Rows lie too far apart for the processor to prefetch them by itself. */
INLINE void prefetch_bins(const float *from, int64_t row_floats) {
    const char *ahead = (const char *)(from + 8 * row_floats);
    for (size_t byte = 0; byte < sizeof(complex_lanes); byte += 64)
        __builtin_prefetch(ahead + byte, 0, 0);
}

/* ---- Forward, first pass: weigh the coefficients and transform the columns of the spectrum ---- */

/* From vectors of bins to vectors of rows, LANES of each. */
INLINE void transpose_to_rows(
    const kernel_job *job, const complex_lanes *columns, int64_t image, int64_t block, int64_t bin_block
) {
    row_block rows = find_block(job, block);
    lanes re[LANES] = {0}, im[LANES] = {0};
    for (int64_t row = 0; row < rows.count; row++) {
        re[row] = columns[rows.first + row].re;
        im[row] = columns[rows.first + row].im;
    }
    transpose(re);
    transpose(im);
    complex_lanes *to = middle_of(job, image, block) + bin_block * LANES;
    for (int lane = 0; lane < LANES; lane++)
        to[lane] = (complex_lanes){re[lane], im[lane]};
}

/* The inverse. */
INLINE void transpose_to_bins(
    const kernel_job *job, complex_lanes *columns, int64_t image, int64_t block, int64_t bin_block
) {
    row_block rows = find_block(job, block);
    int64_t count = job->packed_bins - bin_block * LANES;
    const complex_lanes *from = middle_of(job, image, block) + bin_block * LANES;
    lanes re[LANES], im[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        re[lane] = lane < count ? from[lane].re : all(0);
        im[lane] = lane < count ? from[lane].im : all(0);
    }
    transpose(re);
    transpose(im);
    for (int64_t row = 0; row < rows.count; row++)
        columns[rows.first + row] = (complex_lanes){re[row], im[row]};
}

INLINE int64_t group_at(const kernel_job *job, int64_t at) {
    switch (job->s.index_bytes) {
    case 1: return ((const uint8_t *)job->index)[at];
    case 2: return ((const int16_t *)job->index)[at];
    default: return ((const int32_t *)job->index)[at];
    }
}

/* Only the real parts of the transforms of the first and the last bin matter. They are the transforms of the bins'
   Hermitian parts, which are packed into the first lane, as the real and imaginary part of one sequence. */
static void pack_ends(const kernel_job *job, const float *attention, complex_lanes *x) {
    for (int64_t row = 0; row < job->rows; row++) {
        int64_t mirrored = row ? job->rows - row : 0;
        float re[2], im[2]; /* of the Hermitian parts, of the first and of the last bin */
        for (int end = 0; end < 2; end++) {
            int64_t at = row * job->bins + end * (job->bins - 1), back = mirrored * job->bins + end * (job->bins - 1);
            float weight = 0.5f * attention[group_at(job, at)], weight_back = 0.5f * attention[group_at(job, back)];
            re[end] = weight * job->spectrum[2 * at] + weight_back * job->spectrum[2 * back];
            im[end] = weight * job->spectrum[2 * at + 1] - weight_back * job->spectrum[2 * back + 1];
        }
        x[row].re[0] = re[0] - im[1];
        x[row].im[0] = im[0] + re[1];
    }
}

static void transform_bins(const kernel_job *job, int64_t image, int64_t strip, complex_lanes *buffers) {
    const float *attention = attention_of(job, image);
    int64_t first = strip * job->strip, num_blocks = smallest(job->strip, job->bin_blocks - first);
    for (int64_t row = 0; row < job->rows; row++)
        for (int64_t block = 0; block < num_blocks; block++) {
            int64_t bin = (first + block) * LANES, at = row * job->bins + bin, count = job->packed_bins - bin;
            prefetch_bins(job->spectrum + 2 * at, 2 * job->bins);
            lanes weights = look_up(attention, job->s.num_kernels, load_groups(job, at, count));
            complex_lanes coefficients = load_bins(job->spectrum + 2 * at, count);
            buffers[block * job->rows + row] = (complex_lanes){coefficients.re * weights, coefficients.im * weights};
        }
    if (first == 0 && job->cols % 2 == 0)
        pack_ends(job, attention, buffers);
    for (int64_t block = 0; block < num_blocks; block++) {
        complex_lanes *spare = buffers + job->strip * job->rows;
        const complex_lanes *columns = transform(job->row_plan, buffers + block * job->rows, spare, 1);
        for (int64_t row_block = 0; row_block < job->row_blocks; row_block++)
            transpose_to_rows(job, columns, image, row_block, first + block);
    }
}

/* ---- The real transforms of LANES rows ---- */

/* Compute sum_k X[k] exp(2 pi i k c / C) over all C bins from the packed ones. The C results start at the pointer that
   is returned, real_stride() vectors apart. */
INLINE lanes *to_real(const kernel_job *job, const complex_lanes *bins, complex_lanes *x, complex_lanes *y) {
    if (job->cols % 2) {
        x[0] = (complex_lanes){bins[0].re, all(0)};
        for (int64_t k = 1; k < job->bins; k++) {
            x[k] = bins[k];
            x[job->cols - k] = (complex_lanes){bins[k].re, -bins[k].im};
        }
    } else { /* even and odd columns as the real and imaginary parts of a transform of half the length */
        int64_t half = job->cols / 2;
        x[0] = (complex_lanes){bins[0].re + bins[0].im, bins[0].re - bins[0].im};
        for (int64_t k = 1; k < half; k++) {
            complex_lanes mirrored = {bins[half - k].re, -bins[half - k].im};
            complex_lanes odd = rotate(subtract(bins[k], mirrored), job->col_plan->roots + 2 * k, 1);
            x[k] = add(add(bins[k], mirrored), quarter_turn(odd, 1));
        }
    }
    return (lanes *)transform(job->real_plan, x, y, 1);
}

/* The adjoint of `to_real`: C values, real_stride() vectors apart in x, to packed bins; bins that stand for their
   conjugates too count twice. */
INLINE void from_real(const kernel_job *job, complex_lanes *x, complex_lanes *y, complex_lanes *bins) {
    const complex_lanes *z = transform(job->real_plan, x, y, -1);
    if (job->cols % 2) {
        bins[0] = (complex_lanes){z[0].re, all(0)};
        for (int64_t k = 1; k < job->bins; k++)
            bins[k] = (complex_lanes){2 * z[k].re, 2 * z[k].im};
        return;
    }
    int64_t half = job->cols / 2;
    bins[0] = (complex_lanes){z[0].re + z[0].im, z[0].re - z[0].im};
    for (int64_t k = 1; k < half; k++) {
        complex_lanes mirrored = {z[half - k].re, -z[half - k].im};
        complex_lanes odd = rotate(subtract(z[k], mirrored), job->col_plan->roots + 2 * k, -1);
        bins[k] = add(add(z[k], mirrored), quarter_turn(odd, -1));
    }
}

INLINE int64_t real_stride(const kernel_job *job) { return job->cols % 2 ? 2 : 1; }

/* ---- Kernels in memory, (O, I, a, b): a block of rows, for some input channels ---- */

/* One tap: rows of LANES input channels, which are adjacent in memory, from and to vectors of rows. */
INLINE void store_tile(const kernel_job *job, float *to, int64_t num_rows, int64_t count, lanes *tile) {
    transpose(tile);
    for (int64_t row = 0; row < num_rows; row++, to += job->cols) {
        if (count == LANES)
            store(to, tile[row]);
        else
            store_some(to, tile[row], count);
    }
}

INLINE void load_tile(const kernel_job *job, const float *from, int64_t num_rows, int64_t count, lanes *tile) {
    for (int64_t row = 0; row < LANES; row++, from += job->cols) {
        if (row >= num_rows)
            tile[row] = all(0);
        else
            tile[row] = count == LANES ? load(from) : load_some(from, count);
    }
    transpose(tile);
}

/* Several taps: those of one row and input channel are adjacent in memory. There is one vector of rows per column. */
INLINE void store_taps(float *kernel, const int64_t *offsets, int64_t num_rows, const lanes *taps, int64_t width) {
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t col = 0; col < width; col++)
            kernel[offsets[row] + col] = ((const float *)taps)[col * LANES + row];
}

INLINE void load_taps(const float *kernel, const int64_t *offsets, int64_t num_rows, lanes *taps, int64_t width) {
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t col = 0; col < width; col++)
            ((float *)taps)[col * LANES + row] = kernel[offsets[row] + col];
}

/* ---- KSM's factors for a block of rows ---- */

typedef struct {
    lanes *row;           /* b: filter * spatial and the transform's scale, for each tap column */
    lanes *taps;          /* (b, T) */
    const float *channel; /* I, or NULL */
    const float *windows; /* (I, T) */
    lanes *staged;        /* buffer for the values of a kernel and of its gradient: 2 * b */
    int64_t offsets[LANES]; /* of each row's taps in memory, for input channel 0 */
} block_factors;

static block_factors load_factors(const kernel_job *job, int64_t image, row_block rows, lanes *memory) {
    const kernel_sizes *s = &job->s;
    block_factors factors = {memory, memory + s->width, NULL, NULL, memory + s->width * (1 + s->num_taps), {0}};
    for (int64_t row = 0; row < rows.count; row++) {
        int64_t output = (rows.first + row) / s->height, tap_row = (rows.first + row) % s->height;
        factors.offsets[row] = (output * s->inputs * s->height + tap_row) * s->width;
    }
    float scale = 1.0f / ((float)job->rows * (float)job->cols);
    if (job->taps != NULL) {
        scale *= 2; /* the local factor is 2 * sigmoid */
        factors.windows = job->windows + (image * s->groups + rows.group) * s->inputs * s->num_taps;
        for (int64_t tap = 0; tap < s->width * s->num_taps; tap++) {
            float values[LANES] = {0};
            for (int64_t row = 0; row < rows.count; row++)
                values[row] = job->taps[(rows.first + row) * s->width * s->num_taps + tap];
            factors.taps[tap] = load(values);
        }
    }
    if (job->channel != NULL)
        factors.channel = job->channel + (image * s->groups + rows.group) * s->inputs;
    for (int64_t col = 0; col < s->width; col++) {
        float values[LANES] = {0};
        for (int64_t lane = 0; lane < rows.count; lane++) {
            int64_t output = (rows.first + lane) / s->height, row = (rows.first + lane) % s->height;
            values[lane] = scale;
            if (job->filter != NULL)
                values[lane] *= job->filter[image * s->outputs + output];
            if (job->spatial != NULL)
                values[lane] *= job->spatial[(image * s->height + row) * s->width + col];
        }
        factors.row[col] = load(values);
    }
    return factors;
}

INLINE lanes local_gate(const lanes *taps, const float *window, int64_t num_taps) {
    lanes logit = taps[0] * window[0];
    for (int64_t tap = 1; tap < num_taps; tap++)
        logit += taps[tap] * window[tap];
    return sigmoid(logit);
}

/* Call a function with T and b as constants at compile time, if they have the usual values; `step` is the number of
   input channels to load and store at once. */
#define FOR_TAPS(width, step, function, ...)                            \
    switch (job->s.num_taps) {                                          \
    case 3: function(__VA_ARGS__, 3, width, step); break;               \
    case 5: function(__VA_ARGS__, 5, width, step); break;               \
    case 7: function(__VA_ARGS__, 7, width, step); break;               \
    default: function(__VA_ARGS__, job->s.num_taps, width, step);       \
    }
#define FOR_SHAPE(...)                                                  \
    if (job->s.width == 1 && job->s.height == 1) {                      \
        FOR_TAPS(1, LANES, __VA_ARGS__)                                 \
    } else if (job->s.width == 3) {                                     \
        FOR_TAPS(3, 1, __VA_ARGS__)                                     \
    } else                                                              \
        CALL(job->s.width, 1, __VA_ARGS__)
#define CALL(width, step, function, ...) function(__VA_ARGS__, job->s.num_taps, width, step);

/* ---- Forward, second pass: transform the rows, scale and store ---- */

INLINE void scale_rows(
    const kernel_job *job, const lanes *values, row_block rows, block_factors factors, float *kernel, int64_t num_taps,
    int64_t width, int64_t step
) {
    int64_t inputs = job->s.inputs, stride = real_stride(job);
    lanes own[LANES] = {0}, *staged = width > LANES ? factors.staged : own;
    for (int64_t input = 0; input < inputs; input += step) {
        int64_t count = smallest(step, inputs - input);
        for (int64_t i = 0; i < count; i++)
            for (int64_t col = 0; col < width; col++) {
                lanes value = values[((input + i) * width + col) * stride] * factors.row[col];
                if (factors.channel != NULL)
                    value *= factors.channel[input + i];
                if (factors.windows != NULL) {
                    const float *window = factors.windows + (input + i) * num_taps;
                    value *= local_gate(factors.taps + col * num_taps, window, num_taps);
                }
                staged[i * width + col] = value;
            }
        if (step == LANES)
            store_tile(job, kernel + factors.offsets[0] + input, rows.count, count, staged);
        else
            store_taps(kernel + input * job->s.height * width, factors.offsets, rows.count, staged, width);
    }
}

static void finish_rows(
    const kernel_job *job, int64_t image, int64_t block, complex_lanes *x, complex_lanes *y, lanes *memory
) {
    row_block rows = find_block(job, block);
    block_factors factors = load_factors(job, image, rows, memory);
    const lanes *values = to_real(job, middle_of(job, image, block), x, y);
    float *kernel = job->kernels + image * job->rows * job->cols;
    FOR_SHAPE(scale_rows, job, values, rows, factors, kernel)
}

/* ---- Backward, first pass: the sums over rows or columns, and the adjoint of `finish_rows` ---- */

typedef struct {
    lanes *row;               /* b: of P = K * dL/dK over the columns */
    lanes *taps;              /* (b, T) */
    lanes *channel, *windows; /* I and (I, T): over the rows of one image and group */
} block_sums;

INLINE void differentiate_scaling(
    const kernel_job *job, lanes *values, row_block rows, block_factors factors, block_sums sums, int64_t plane,
    int64_t num_taps, int64_t width, int64_t step
) {
    int64_t inputs = job->s.inputs, stride = real_stride(job);
    const float *kernel = job->kernels + plane, *grad = job->grad_kernels + plane;
    lanes own[2 * LANES] = {0}, *kernels = width > LANES ? factors.staged : own, *grads = kernels + step * width;
    for (int64_t input = 0; input < inputs; input += step) {
        int64_t count = smallest(step, inputs - input);
        if (step == LANES) {
            load_tile(job, kernel + factors.offsets[0] + input, rows.count, count, kernels);
            load_tile(job, grad + factors.offsets[0] + input, rows.count, count, grads);
        } else {
            int64_t at = input * job->s.height * width;
            load_taps(kernel + at, factors.offsets, rows.count, kernels, width);
            load_taps(grad + at, factors.offsets, rows.count, grads, width);
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t col = 0; col < width; col++) {
                lanes product = kernels[i * width + col] * grads[i * width + col];
                lanes value = grads[i * width + col] * factors.row[col];
                sums.row[col] += product;
                if (factors.channel != NULL) {
                    sums.channel[input + i] += product;
                    value *= factors.channel[input + i];
                }
                if (factors.windows != NULL) {
                    const lanes *taps = factors.taps + col * num_taps;
                    const float *window = factors.windows + (input + i) * num_taps;
                    lanes *tap_sums = sums.taps + col * num_taps, *window_sums = sums.windows + (input + i) * num_taps;
                    lanes gate = local_gate(taps, window, num_taps);
                    lanes grad_logit = product - product * gate;
                    for (int64_t tap = 0; tap < num_taps; tap++) {
                        tap_sums[tap] += grad_logit * window[tap];
                        window_sums[tap] += grad_logit * taps[tap];
                    }
                    value *= gate;
                }
                int64_t at = ((input + i) * width + col) * stride;
                values[at] = value;
                if (stride == 2)
                    values[at + 1] = all(0);
            }
    }
}

static void start_rows(
    const kernel_job *job, int64_t image, int64_t block, complex_lanes *x, complex_lanes *y, lanes *memory, block_sums sums
) {
    row_block rows = find_block(job, block);
    block_factors factors = load_factors(job, image, rows, memory);
    int64_t plane = image * job->rows * job->cols;
    FOR_SHAPE(differentiate_scaling, job, (lanes *)x, rows, factors, sums, plane)
    from_real(job, x, y, middle_of(job, image, block));
}

/* Add the sums over LANES rows to those of the part, and reset them to zero. */
static void add_input_sums(const kernel_job *job, int64_t part, int64_t image, int64_t group, block_sums sums) {
    const kernel_sizes *s = &job->s;
    int64_t first = ((part * s->images + image) * s->groups + group) * s->inputs;
    for (int64_t input = 0; input < s->inputs; input++) {
        if (job->channel != NULL) {
            job->channel_sums[first + input] += sum_lanes(sums.channel[input]);
            sums.channel[input] = all(0);
        }
        for (int64_t tap = 0; tap < s->num_taps; tap++) {
            job->window_sums[(first + input) * s->num_taps + tap] += sum_lanes(sums.windows[input * s->num_taps + tap]);
            sums.windows[input * s->num_taps + tap] = all(0);
        }
    }
}

static void add_row_sums(const kernel_job *job, int64_t part, int64_t image, row_block rows, block_sums sums) {
    const kernel_sizes *s = &job->s;
    float *row_sums = job->row_sums + (image * job->rows + rows.first) * s->width;
    for (int64_t col = 0; col < s->width; col++) {
        for (int64_t row = 0; row < rows.count; row++)
            row_sums[row * s->width + col] = sums.row[col][row];
        sums.row[col] = all(0);
    }
    int64_t row_taps = s->width * s->num_taps;
    float *tap_sums = job->tap_sums + (part * job->rows + rows.first) * row_taps;
    for (int64_t tap = 0; tap < row_taps; tap++) {
        for (int64_t row = 0; row < rows.count; row++)
            tap_sums[row * row_taps + tap] += sums.taps[tap][row];
        sums.taps[tap] = all(0);
    }
}

/* ---- Backward, second pass: the gradients of spectrum and attention ---- */

/* The adjoint of `pack_ends`: add the values of the first lane to the gradients of the first and the last bin. */
static void unpack_ends(const kernel_job *job, const float *attention, const complex_lanes *grads, int adds, float *sums) {
    for (int64_t row = 0; row < job->rows; row++) {
        int64_t mirrored = row ? job->rows - row : 0;
        float re = 0.5f * grads[row].re[0], im = 0.5f * grads[row].im[0];
        float re_back = 0.5f * grads[mirrored].re[0], im_back = 0.5f * grads[mirrored].im[0];
        float grad[2][2] = {{re + re_back, im - im_back}, {im + im_back, re_back - re}};
        for (int end = 0; end < 2; end++) {
            int64_t at = row * job->bins + end * (job->bins - 1), group = group_at(job, at);
            for (int part = 0; part < 2; part++) {
                float *to = job->grad_spectrum + 2 * at + part;
                *to = (adds ? *to : 0) + attention[group] * grad[end][part];
                sums[group] += job->spectrum[2 * at + part] * grad[end][part];
            }
        }
    }
}

static void finish_bins(
    const kernel_job *job, int64_t part, int64_t image, int64_t strip, complex_lanes *buffers, lanes *sums
) {
    int64_t first = strip * job->strip, num_blocks = smallest(job->strip, job->bin_blocks - first);
    int64_t num_kernels = job->s.num_kernels;
    complex_lanes *spare = buffers + job->strip * job->rows, *grads[MAX_STRIP];
    for (int64_t block = 0; block < num_blocks; block++) {
        complex_lanes *columns = buffers + block * job->rows;
        for (int64_t row_block = 0; row_block < job->row_blocks; row_block++)
            transpose_to_bins(job, columns, image, row_block, first + block);
        grads[block] = transform(job->row_plan, columns, spare, -1);
        if (grads[block] == spare)
            spare = columns;
    }
    const float *attention = attention_of(job, image);
    float *attention_sums = job->attention_sums + (part * job->s.images + image) * num_kernels;
    int adds = image > 0 || job->accumulates, has_ends = first == 0 && job->cols % 2 == 0;
    for (int64_t row = 0; row < job->rows; row++)
        for (int64_t block = 0; block < num_blocks; block++) {
            int64_t bin = (first + block) * LANES, at = row * job->bins + bin, count = job->packed_bins - bin;
            prefetch_bins(job->spectrum + 2 * at, 2 * job->bins);
            prefetch_bins(job->grad_spectrum + 2 * at, 2 * job->bins);
            mask groups = load_groups(job, at, count);
            complex_lanes coefficients = load_bins(job->spectrum + 2 * at, count), grad = grads[block][row];
            if (has_ends && block == 0) /* left to unpack_ends() */
                grad.re[0] = grad.im[0] = 0;
            lanes weights = look_up(attention, num_kernels, groups);
            complex_lanes result = {grad.re * weights, grad.im * weights};
            if (adds)
                result = add(result, load_bins(job->grad_spectrum + 2 * at, count));
            store_bins(job->grad_spectrum + 2 * at, result, count);
            int32_t group[LANES];
            float products[LANES];
            memcpy(group, &groups, sizeof groups);
            store(products, grad.re * coefficients.re + grad.im * coefficients.im);
            for (int lane = 0; lane < LANES; lane++) /* one table per lane, so that no sum waits for the previous one */
                ((float *)sums)[group[lane] * LANES + lane] += products[lane];
        }
    for (int64_t kernel = 0; kernel < num_kernels; kernel++) {
        attention_sums[kernel] += sum_lanes(sums[kernel]);
        sums[kernel] = all(0);
    }
    if (has_ends)
        unpack_ends(job, attention, grads[0], adds, attention_sums);
}

/* ---- The work of one part in each pass ---- */

static float *part_buffers(const kernel_job *job, int64_t part) { return job->buffers + part * buffer_floats(job); }

static void assemble_bins(const void *data, int64_t part) {
    const kernel_job *job = data;
    int64_t tasks = job->s.images * job->strips, end = share_start(tasks, part + 1, job->s.parts);
    for (int64_t task = share_start(tasks, part, job->s.parts); task < end; task++)
        transform_bins(job, task / job->strips, task % job->strips, (complex_lanes *)part_buffers(job, part));
}

static void assemble_rows(const void *data, int64_t part) {
    const kernel_job *job = data;
    complex_lanes *x = (complex_lanes *)part_buffers(job, part), *y = x + job->cols;
    lanes *memory = (lanes *)(part_buffers(job, part) + transform_floats(job));
    int64_t tasks = job->s.images * job->row_blocks, end = share_start(tasks, part + 1, job->s.parts);
    for (int64_t task = share_start(tasks, part, job->s.parts); task < end; task++)
        finish_rows(job, task / job->row_blocks, task % job->row_blocks, x, y, memory);
}

static void differentiate_rows(const void *data, int64_t part) {
    const kernel_job *job = data;
    const kernel_sizes *s = &job->s;
    complex_lanes *x = (complex_lanes *)part_buffers(job, part), *y = x + job->cols;
    lanes *memory = (lanes *)(part_buffers(job, part) + transform_floats(job));
    lanes *row = memory + factor_floats(job) / LANES, *channel = row + block_floats(job) / LANES;
    block_sums sums = {row, row + s->width, channel, channel + s->inputs};
    memset(row, 0, sizeof(float) * (size_t)(block_floats(job) + input_floats(job)));
    int64_t tasks = s->images * job->row_blocks, end = share_start(tasks, part + 1, s->parts);
    for (int64_t task = share_start(tasks, part, s->parts); task < end; task++) {
        int64_t image = task / job->row_blocks, block = task % job->row_blocks;
        row_block rows = find_block(job, block);
        start_rows(job, image, block, x, y, memory, sums);
        add_row_sums(job, part, image, rows, sums);
        int is_last = task + 1 == end || (block + 1) % job->group_blocks == 0;
        if (is_last)
            add_input_sums(job, part, image, rows.group, sums);
    }
}

static void differentiate_bins(const void *data, int64_t part) {
    const kernel_job *job = data;
    lanes *sums = (lanes *)(part_buffers(job, part) + transform_floats(job));
    memset(sums, 0, sizeof *sums * (size_t)job->s.num_kernels);
    int64_t end = share_start(job->strips, part + 1, job->s.parts);
    for (int64_t strip = share_start(job->strips, part, job->s.parts); strip < end; strip++)
        for (int64_t image = 0; image < job->s.images; image++)
            finish_bins(job, part, image, strip, (complex_lanes *)part_buffers(job, part), sums);
}

/* ---- Backward, last step: gradients from the sums of all parts ---- */

/* The sum over parts of element `at`. */
static float sum_parts(const kernel_job *job, const float *sums, int64_t floats, int64_t at) {
    float sum = 0;
    for (int64_t part = 0; part < job->s.parts; part++)
        sum += sums[part * floats + at];
    return sum;
}

/* The gradient of a factor from the sum of P; 0 if the factor has underflowed to 0, as has its own derivative. */
static float divide(float sum, float factor) { return factor == 0 ? 0 : sum / factor; }

static void finish_gradients(const kernel_job *job) {
    const kernel_sizes *s = &job->s;
    int64_t floats = attention_floats(job);
    for (int64_t at = 0; at < floats; at++) {
        float *to = job->grad_attention + (s->shares_attention ? at % s->num_kernels : at);
        int adds = s->shares_attention && (at >= s->num_kernels || job->accumulates);
        *to = (adds ? *to : 0) + sum_parts(job, job->attention_sums, floats, at);
    }
    floats = tap_floats(job);
    for (int64_t at = 0; at < floats; at++)
        job->grad_taps[at] = (job->accumulates ? job->grad_taps[at] : 0) + sum_parts(job, job->tap_sums, floats, at);
    floats = window_floats(job);
    for (int64_t at = 0; at < floats; at++)
        job->grad_windows[at] = sum_parts(job, job->window_sums, floats, at);
    floats = job->channel == NULL ? 0 : channel_floats(job);
    for (int64_t at = 0; at < floats; at++)
        job->grad_channel[at] = divide(sum_parts(job, job->channel_sums, floats, at), job->channel[at]);
    for (int64_t image = 0; image < s->images; image++) {
        const float *sums = job->row_sums + image * job->rows * s->width;
        int64_t taps = s->height * s->width;
        for (int64_t output = 0; output < s->outputs && job->filter != NULL; output++) {
            float sum = 0;
            for (int64_t tap = 0; tap < taps; tap++)
                sum += sums[output * taps + tap];
            int64_t at = image * s->outputs + output;
            job->grad_filter[at] = divide(sum, job->filter[at]);
        }
        for (int64_t tap = 0; tap < taps && job->spatial != NULL; tap++) {
            float sum = 0;
            for (int64_t output = 0; output < s->outputs; output++)
                sum += sums[output * taps + tap];
            job->grad_spatial[image * taps + tap] = divide(sum, job->spatial[image * taps + tap]);
        }
    }
}

/* ---- Functions that Python calls ---- */

/* The tensors of a batch and their gradients, in the order of KernelTensors; NULL where there is none. */
typedef struct {
    const float *spectrum;
    const void *index;
    const float *attention, *taps, *windows, *channel, *filter, *spatial;
} kernel_tensors;

typedef struct {
    float *spectrum;
    void *index;
    float *attention, *taps, *windows, *channel, *filter, *spatial;
} kernel_gradients;

/* Number of floats of scratch memory that the two functions below need. */
int64_t fdconv_kernels_scratch(const kernel_sizes *sizes) {
    kernel_job job = {.s = *sizes};
    complete(&job);
    return LANES + middle_floats(&job) + job.s.parts * buffer_floats(&job) + sum_floats(&job);
}

#define AT(tensor, floats) ((tensor) == NULL ? NULL : (tensor) + s->first_image * (floats))

/* Returns 0 if memory has run out. */
static int start(kernel_job *job, const kernel_sizes *s, const kernel_tensors *tensors, float *kernels, float *scratch) {
    *job = (kernel_job){
        .s = *s,
        .spectrum = tensors->spectrum,
        .index = tensors->index,
        .attention = AT(tensors->attention, s->shares_attention ? 0 : s->num_kernels),
        .taps = tensors->taps,
        .windows = AT(tensors->windows, s->groups * s->inputs * s->num_taps),
        .channel = AT(tensors->channel, s->groups * s->inputs),
        .filter = AT(tensors->filter, s->outputs),
        .spatial = AT(tensors->spatial, s->height * s->width),
        .kernels = kernels,
    };
    complete(job);
    uintptr_t misaligned = (uintptr_t)scratch % sizeof(lanes);
    job->middle = misaligned ? scratch + (sizeof(lanes) - misaligned) / sizeof(float) : scratch;
    job->buffers = job->middle + middle_floats(job);
    return find_plans(job);
}

/* Write the kernels (images, O, I, a, b). Returns 0 if memory has run out. */
int64_t fdconv_assemble_kernels(const kernel_sizes *sizes, const kernel_tensors *tensors, float *kernels, float *scratch) {
    kernel_job job;
    if (!start(&job, sizes, tensors, kernels, scratch))
        return 0;
    run_parts(assemble_bins, &job, job.s.parts);
    run_parts(assemble_rows, &job, job.s.parts);
    return 1;
}

/* Write the gradients of all tensors, from the kernels and their gradient, both (images, O, I, a, b). If `accumulates`,
   the gradients of tensors that the images share are added to the present values. Returns 0 if memory has run out. */
int64_t fdconv_differentiate_kernels(
    const kernel_sizes *s, const kernel_tensors *tensors, float *kernels, const float *grad_kernels,
    const kernel_gradients *gradients, int64_t accumulates, float *scratch
) {
    kernel_job job;
    if (!start(&job, s, tensors, kernels, scratch))
        return 0;
    job.grad_kernels = grad_kernels;
    job.accumulates = accumulates;
    job.grad_spectrum = gradients->spectrum;
    job.grad_attention = AT(gradients->attention, s->shares_attention ? 0 : s->num_kernels);
    job.grad_taps = gradients->taps;
    job.grad_windows = AT(gradients->windows, s->groups * s->inputs * s->num_taps);
    job.grad_channel = AT(gradients->channel, s->groups * s->inputs);
    job.grad_filter = AT(gradients->filter, s->outputs);
    job.grad_spatial = AT(gradients->spatial, s->height * s->width);
    job.attention_sums = job.buffers + s->parts * buffer_floats(&job);
    job.tap_sums = job.attention_sums + s->parts * attention_floats(&job);
    job.window_sums = job.tap_sums + s->parts * tap_floats(&job);
    job.channel_sums = job.window_sums + s->parts * window_floats(&job);
    job.row_sums = job.channel_sums + s->parts * channel_floats(&job);
    memset(job.attention_sums, 0, sizeof(float) * (size_t)sum_floats(&job));
    run_parts(differentiate_rows, &job, job.s.parts);
    run_parts(differentiate_bins, &job, job.s.parts);
    finish_gradients(&job);
    return 1;
}
