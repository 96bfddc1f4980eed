/* Frequency Band Modulation: y = A_1 x + sum over bands m of D_m L_m(x), with D_m = A_{m+1} - A_m (A = 1 after the last
   band) and ideal low-passes L_m. Its gradients are dx = A_1 dy + sum of L_m(D_m dy) and, summed over channels,
   dD_m = dy L_m(x).

   A vector holds one pixel of LANES channels. A low-pass keeps some sinusoids of rows and columns: each line (a row or
   a column) is analyzed into them and synthesized from them, by small products. Sinusoids are symmetric: sample -i
   equals sample i for a cosine, and has the opposite sign for a sine. Half a line further on, sinusoids of even
   frequency repeat, and those of odd frequency change their sign. So there is one product for each of four symmetries,
   with a quarter of the line: of sums and differences of the samples that mirror each other.

   Edges are decreasing, so the sinusoids that pass an edge are a prefix of those that pass the edge before it. */
#include "lanes.h"
#include "parallel.h"

#include <stddef.h>

#define SYMMETRIES 4
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 10 /* sums that a product accumulates at once, in registers */
#else
#define TILE 8
#endif

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- Lines ---- */

/* A line of n samples. Symmetries: cosines and sines of even frequency, then of odd frequency. If n is odd, there are
   only two: cosines and sines of any frequency. */
typedef struct {
    int64_t length;         /* n */
    int64_t points;         /* samples that others mirror: n/4 + 1, or (n + 1)/2 if n is odd */
    const int64_t *passing; /* (bands, SYMMETRIES): number of frequencies that pass each edge; largest first */
    const float *analysis;  /* (SYMMETRIES, points, passing[0]); halved where a sample mirrors itself */
    const float *synthesis; /* (SYMMETRIES, passing[0], points) */
} axis;

/* Vectors by sample or frequency, `step` apart, and by symmetry, `symmetry` apart. */
typedef struct {
    lanes *at;
    int64_t step, symmetry;
} view;

INLINE int64_t symmetries(const axis *axis) { return axis->length % 2 ? 2 : 4; }

INLINE const int64_t *passing(const axis *axis, int64_t band) { return axis->passing + band * SYMMETRIES; }

/* Number of coefficients of one line, made odd: vectors a power of two apart compete for few places in a cache. */
INLINE int64_t coefficients(const axis *axis, int64_t band) { return symmetries(axis) * passing(axis, band)[0] | 1; }

/* to[j] = sum over k < depth of matrix[k][j] from[k], for j < tile; added to the present value if `add`. */
INLINE void multiply_tile(
    view from, view to, const float *matrix, int64_t stride, int64_t depth, int add, const int tile
) {
    lanes sums[TILE];
    for (int j = 0; j < tile; j++)
        sums[j] = add ? to.at[j * to.step] : all(0);
    for (int64_t k = 0; k < depth; k++)
        for (int j = 0; j < tile; j++)
            sums[j] += from.at[k * from.step] * matrix[k * stride + j];
    for (int j = 0; j < tile; j++)
        to.at[j * to.step] = sums[j];
}

#define TILE_CASE(tile)                                                \
    case tile:                                                         \
        multiply_tile(from, to, matrix, stride, depth, add, tile);     \
        break;

/* How many of `count` sums to compute next: as many as fit, but without a small remainder, whose few sums would have to
   wait for their own additions. */
INLINE int64_t tile_of(int64_t count) { return count <= TILE ? count : count >= 2 * TILE ? TILE : (count + 1) / 2; }

/* The same for j < count, with any count. */
INLINE void multiply(
    view from, view to, const float *matrix, int64_t stride, int64_t depth, int add, int64_t count
) {
    while (count > 0) {
        int64_t tile = tile_of(count);
        switch (tile) {
            TILE_CASE(1)
            TILE_CASE(2)
            TILE_CASE(3)
            TILE_CASE(4)
            TILE_CASE(5)
            TILE_CASE(6)
            TILE_CASE(7)
            TILE_CASE(8)
#if TILE == 10
            TILE_CASE(9)
            TILE_CASE(10)
#endif
        }
        count -= tile;
        matrix += tile;
        to.at += tile * to.step;
    }
}

/* Compute the coefficients of a line for the sinusoids that pass the edge `band`. Samples are multiplied by `weights`
   (n), unless NULL. `folded` is a buffer of (SYMMETRIES, points). */
static void analyze(
    const axis *axis, int64_t band, view samples, const float *weights, view to, int add, lanes *folded
) {
    int64_t n = axis->length, points = axis->points, half = n / 2, frequencies = passing(axis, 0)[0];
#define SAMPLE(i) (weights ? samples.at[(i) * samples.step] * weights[i] : samples.at[(i) * samples.step])
    for (int64_t i = 0; i < points; i++) {
        lanes first = SAMPLE(i), last = SAMPLE(i ? n - i : 0);
        if (n % 2) {
            folded[i] = first + last;
            folded[i + points] = first - last;
        } else {
            lanes second = SAMPLE(i + half), third = SAMPLE(half - i);
            lanes even = first + second, even_mirrored = last + third;
            lanes odd = first - second, odd_mirrored = last - third;
            folded[i] = even + even_mirrored;
            folded[i + points] = even - even_mirrored;
            folded[i + 2 * points] = odd + odd_mirrored;
            folded[i + 3 * points] = odd - odd_mirrored;
        }
    }
#undef SAMPLE
    const float *matrix = axis->analysis;
    for (int64_t symmetry = 0; symmetry < symmetries(axis); symmetry++) {
        multiply((view){folded, 1, 0}, to, matrix, frequencies, points, add, passing(axis, band)[symmetry]);
        folded += points;
        to.at += to.symmetry;
        matrix += points * frequencies;
    }
}

/* Compute `count` points of each symmetry, starting at `first`, from the coefficients of a line. */
INLINE void synthesize_points(const axis *axis, int64_t band, view from, int64_t first, int64_t count, lanes *to) {
    const float *matrix = axis->synthesis + first;
    for (int64_t symmetry = 0; symmetry < symmetries(axis); symmetry++) {
        multiply(from, (view){to, 1, 0}, matrix, axis->points, passing(axis, band)[symmetry], 0, count);
        from.at += from.symmetry;
        to += TILE;
        matrix += passing(axis, 0)[0] * axis->points;
    }
}

/* Compute samples i, n - i, i + n/2, and n/2 - i from a point of each symmetry; only the first two if n is odd. */
INLINE void unfold(const axis *axis, const lanes *point, lanes *samples) {
    lanes even = point[0] + point[TILE], even_mirrored = point[0] - point[TILE];
    samples[0] = even;
    samples[1] = even_mirrored;
    if (axis->length % 2 == 0) {
        lanes odd = point[2 * TILE] + point[3 * TILE], odd_mirrored = point[2 * TILE] - point[3 * TILE];
        samples[0] = even + odd;
        samples[1] = even_mirrored + odd_mirrored;
        samples[2] = even - odd;
        samples[3] = even_mirrored - odd_mirrored;
    }
}

/* Compute a line from its coefficients of the sinusoids that pass the edge `band`. */
static void synthesize(const axis *axis, int64_t band, view from, view to) {
    int64_t n = axis->length, half = n / 2;
    lanes points[SYMMETRIES * TILE], samples[SYMMETRIES];
    for (int64_t first = 0, end; first < axis->points; first = end) {
        end = first + tile_of(axis->points - first);
        synthesize_points(axis, band, from, first, end - first, points);
        for (int64_t i = first; i < end; i++) {
            unfold(axis, points + i - first, samples);
            to.at[i * to.step] = samples[0];
            to.at[(i ? n - i : 0) * to.step] = samples[1];
            if (n % 2 == 0) {
                to.at[(i + half) * to.step] = samples[2];
                to.at[(half - i) * to.step] = samples[3];
            }
        }
    }
}

/* Compute lines from the coefficients of each band, and their weighted sum; the weights of one band are `stride` apart
   from those of the next one. `points` is a buffer of (bands, SYMMETRIES, TILE). */
static void synthesize_sum(
    const axis *axis, int64_t bands, const view *from, lanes *to, const float *weights, int64_t stride, lanes *points
) {
    int64_t n = axis->length, half = n / 2;
    for (int64_t first = 0, end; first < axis->points; first = end) {
        end = first + tile_of(axis->points - first);
        for (int64_t band = 0; band < bands; band++)
            synthesize_points(axis, band, from[band], first, end - first, points + band * SYMMETRIES * TILE);
        for (int64_t i = first; i < end; i++) {
            int64_t last = i ? n - i : 0;
            lanes samples[SYMMETRIES], sums[SYMMETRIES] = {0};
            const float *weight = weights;
            for (int64_t band = 0; band < bands; band++, weight += stride) {
                unfold(axis, points + band * SYMMETRIES * TILE + i - first, samples);
                sums[0] += samples[0] * weight[i];
                sums[1] += samples[1] * weight[last];
                if (n % 2 == 0) {
                    sums[2] += samples[2] * weight[i + half];
                    sums[3] += samples[3] * weight[half - i];
                }
            }
            to[i] = sums[0];
            to[last] = sums[1];
            if (n % 2 == 0) {
                to[i + half] = sums[2];
                to[half - i] = sums[3];
            }
        }
    }
}

/* ---- Blocks of LANES channels of an image ---- */

typedef struct {
    int64_t images, channels, bands, channels_last;
    axis column, row;       /* of H and of W samples */
    const float *x;         /* (images, channels, H, W), or with the channels last */
    const float *attention; /* (images, bands, H, W) */
    const float *grad;      /* of y, laid out as x is; NULL for forward */
    float *y;               /* or the gradient of x */
    float *grad_attention;  /* (images, blocks of LANES channels, bands, H, W): to be summed over blocks */
    float *scratch;         /* fdconv_bands_scratch() */
    int64_t parts;
} bands_job;

typedef struct {
    const bands_job *job;
    int64_t channels; /* LANES or, in the last block, fewer */
    int64_t pixels;
    int64_t stride; /* from channel to channel; if channels are last, from pixel to pixel */
    const float *x, *grad, *attention;
    float *y, *grad_attention;
    lanes *planes;                 /* for each band, the coefficients of all rows */
    lanes *x_pixels, *grad_pixels; /* of a few rows */
    lanes *low_passed;             /* (bands, pixels of a few rows) */
    lanes *column;                 /* its coefficients */
    lanes *folded, *points;        /* see above */
    view *coefficients;            /* of a row, for each band */
    float *weights;                /* D (bands, pixels of a few rows) */
} block;

static int64_t num_blocks(const bands_job *job) { return (job->channels + LANES - 1) / LANES; }

/* Rows that are loaded together: enough pixels to fill vectors. */
static int64_t rows_at_once(const bands_job *job) {
    return smallest((4 * LANES + job->row.length - 1) / job->row.length, job->column.length);
}

/* Lay out the buffers of a block, starting at `memory`, and return their end. */
static float *lay_out(const bands_job *job, lanes *memory, block *to) {
    int64_t pixels = rows_at_once(job) * job->row.length;
    to->planes = memory;
    to->x_pixels = to->planes;
    for (int64_t band = 0; band < job->bands; band++)
        to->x_pixels += job->column.length * coefficients(&job->row, band);
    to->grad_pixels = to->x_pixels + pixels;
    to->low_passed = to->grad_pixels + pixels;
    to->column = to->low_passed + job->bands * pixels;
    to->folded = to->column + coefficients(&job->column, 0);
    to->points = to->folded + SYMMETRIES * largest(job->row.points, job->column.points);
    to->coefficients = (view *)(to->points + job->bands * SYMMETRIES * TILE);
    to->weights = (float *)(to->coefficients + job->bands);
    return to->weights + job->bands * pixels;
}

static int64_t part_lanes(const bands_job *job) {
    block unused;
    int64_t bytes = (char *)lay_out(job, (lanes *)job->scratch, &unused) - (char *)job->scratch;
    return (bytes + (int64_t)sizeof(lanes) - 1) / (int64_t)sizeof(lanes);
}

static block find_block(const bands_job *job, int64_t task, int64_t part) {
    int64_t image = task / num_blocks(job), first = task % num_blocks(job) * LANES;
    int64_t pixels = job->column.length * job->row.length;
    int64_t at = image * job->channels * pixels + first * (job->channels_last ? 1 : pixels);
    block found = {
        .job = job,
        .channels = smallest(job->channels - first, LANES),
        .pixels = pixels,
        .stride = job->channels_last ? job->channels : pixels,
        .x = job->x + at,
        .grad = job->grad ? job->grad + at : NULL,
        .attention = job->attention + image * job->bands * pixels,
        .y = job->y + at,
        .grad_attention = job->grad ? job->grad_attention + task * job->bands * pixels : NULL,
    };
    lay_out(job, (lanes *)job->scratch + part * part_lanes(job), &found);
    return found;
}

/* Load `count` pixels of x or of a gradient, starting at `first`, as one vector each; 0 for missing channels. */
static void load_pixels(const block *block, const float *from, int64_t first, int64_t count, lanes *to) {
    if (block->job->channels_last) {
        from += first * block->stride;
        for (int64_t i = 0; i < count; i++, from += block->stride)
            to[i] = block->channels == LANES ? load(from) : load_some(from, block->channels);
        return;
    }
    for (int64_t tile = 0; tile < count; tile += LANES) {
        int64_t start = largest(smallest(tile, count - LANES), 0); /* the last two may overlap */
        int64_t here = smallest(count, LANES);
        const float *at = from + first + start;
        lanes rows[LANES];
        if (block->channels == LANES && here == LANES)
            for (int channel = 0; channel < LANES; channel++)
                rows[channel] = load(at + channel * block->stride);
        else
            for (int channel = 0; channel < LANES; channel++)
                rows[channel] = channel < block->channels ? load_some(at + channel * block->stride, here) : all(0);
        transpose(rows);
        for (int64_t i = 0; i < here; i++)
            to[start + i] = rows[i];
    }
}

/* Write A_1 * from + sum, where `from` is x or a gradient, and the sum has one vector for each pixel. */
static void store_pixels(const block *block, const float *from, int64_t first, int64_t count, const lanes *sum) {
    const float *highest = block->attention + first;
    if (block->job->channels_last) {
        float *to = block->y + first * block->stride;
        from += first * block->stride;
        for (int64_t i = 0; i < count; i++, from += block->stride, to += block->stride)
            if (block->channels == LANES)
                store(to, load(from) * highest[i] + sum[i]);
            else
                store_some(to, load_some(from, block->channels) * highest[i] + sum[i], block->channels);
        return;
    }
    for (int64_t tile = 0; tile < count; tile += LANES) {
        int64_t start = largest(smallest(tile, count - LANES), 0);
        const float *at = from + first + start;
        float *to = block->y + first + start;
        lanes rows[LANES];
        if (block->channels == LANES && count >= LANES) {
            for (int i = 0; i < LANES; i++)
                rows[i] = sum[start + i];
            transpose(rows);
            for (int channel = 0; channel < LANES; channel++, at += block->stride, to += block->stride)
                store(to, load(at) * load(highest + start) + rows[channel]);
            continue;
        }
        int64_t here = smallest(count, LANES);
        for (int64_t i = 0; i < LANES; i++)
            rows[i] = i < here ? sum[start + i] : all(0);
        transpose(rows);
        for (int channel = 0; channel < block->channels; channel++, at += block->stride, to += block->stride)
            store_some(to, load_some(at, here) * load_some(highest + start, here) + rows[channel], here);
    }
}

/* Compute D for `count` pixels, starting at `first`. */
static void find_weights(const block *block, int64_t first, int64_t count) {
    const float *attention = block->attention + first;
    float *to = block->weights;
    for (int64_t band = 1; band < block->job->bands; band++, attention += block->pixels, to += count)
        for (int64_t i = 0; i < count; i++)
            to[i] = attention[block->pixels + i] - attention[i];
    for (int64_t i = 0; i < count; i++)
        to[i] = 1 - attention[i];
}

/* The sum of each of LANES vectors over its lanes. */
INLINE lanes sum_each(lanes *rows) {
#define ADD_HALVES(size)                                                                                      \
    for (int row = 0; row < size; row++)                                                                      \
        rows[row] = SHUFFLE(rows[row], rows[row + size], FROM_FIRST, size) +                                  \
                    SHUFFLE(rows[row], rows[row + size], FROM_SECOND, size);
#if LANES == 16
    ADD_HALVES(8)
#endif
#if LANES >= 8
    ADD_HALVES(4)
#endif
    ADD_HALVES(2)
    ADD_HALVES(1)
    return rows[0];
}

/* The gradient of attention from this block's channels: the sums of dy * (L_{m-1} - L_m), with L_0 = x. */
static void sum_channels(const block *block, int64_t first, int64_t count) {
    for (int64_t tile = 0; tile < count; tile += LANES) {
        int64_t start = largest(smallest(tile, count - LANES), 0), here = smallest(count, LANES);
        const lanes *low_passed = block->x_pixels;
        float *to = block->grad_attention + first + start;
        lanes higher = all(0);
        for (int64_t band = 0; band <= block->job->bands; band++) {
            lanes rows[LANES];
            for (int64_t i = 0; i < LANES; i++)
                rows[i] = i < here ? low_passed[start + i] * block->grad_pixels[start + i] : all(0);
            lanes sums = sum_each(rows);
            if (band > 0) {
                if (here == LANES)
                    store(to, higher - sums);
                else
                    store_some(to, higher - sums, here);
                to += block->pixels;
            }
            higher = sums;
            low_passed = block->low_passed + band * count;
        }
    }
}

/* ---- Rows and columns of a block ---- */

/* The coefficients of a row in the plane of a band. */
INLINE view row_of(const block *block, int64_t band, int64_t row) {
    const axis *axis = &block->job->row;
    lanes *at = block->planes + row * coefficients(axis, band);
    for (int64_t higher = 0; higher < band; higher++)
        at += block->job->column.length * coefficients(axis, higher);
    return (view){at, 1, passing(axis, band)[0]};
}

static void analyze_rows(
    const block *block, int64_t band, int64_t first, int64_t rows, lanes *pixels, const float *weights
) {
    const axis *axis = &block->job->row;
    for (int64_t row = first; row < first + rows; row++) {
        analyze(axis, band, (view){pixels, 1, 0}, weights, row_of(block, band, row), 0, block->folded);
        pixels += axis->length;
        weights = weights ? weights + axis->length : NULL;
    }
}

static void synthesize_rows(const block *block, int64_t band, int64_t first, int64_t rows, lanes *pixels) {
    const axis *axis = &block->job->row;
    for (int64_t row = first; row < first + rows; row++, pixels += axis->length)
        synthesize(axis, band, row_of(block, band, row), (view){pixels, 1, 0});
}

/* Analyze the columns of the planes of the first `from` bands and sum their coefficients; from the sum, synthesize the
   columns of the first `to` bands, in place. */
static void pass_columns(const block *block, int64_t from, int64_t to) {
    const axis *row = &block->job->row, *column = &block->job->column;
    view sum = {block->column, 1, passing(column, 0)[0]};
    for (int64_t symmetry = 0; symmetry < symmetries(row); symmetry++)
        for (int64_t frequency = 0; frequency < passing(row, 0)[symmetry]; frequency++)
            for (int synthesizes = 0; synthesizes < 2; synthesizes++)
                for (int64_t band = 0; band < (synthesizes ? to : from); band++) {
                    if (frequency >= passing(row, band)[symmetry])
                        break;
                    view samples = row_of(block, band, 0);
                    samples.at += symmetry * samples.symmetry + frequency;
                    samples.step = coefficients(row, band);
                    if (synthesizes)
                        synthesize(column, band, sum, samples);
                    else
                        analyze(column, band, samples, NULL, sum, band > 0, block->folded);
                }
}

/* Loop over all rows: `rows` of them at a time, starting at `first`. */
#define FOR_ROWS(block, first, rows)                                                                 \
    for (int64_t first = 0, rows;                                                                    \
         rows = smallest(rows_at_once((block)->job), (block)->job->column.length - first), rows > 0; \
         first += rows)

/* Compute the low-passes of x, as the coefficients of their rows. */
static void split(const block *block) {
    int64_t width = block->job->row.length;
    FOR_ROWS(block, first, rows) {
        load_pixels(block, block->x, first * width, rows * width, block->x_pixels);
        analyze_rows(block, 0, first, rows, block->x_pixels, NULL);
    }
    pass_columns(block, 1, block->job->bands);
}

static void forward(const block *block) {
    const bands_job *job = block->job;
    int64_t width = job->row.length;
    split(block);
    FOR_ROWS(block, first, rows) {
        int64_t pixel = first * width, count = rows * width;
        find_weights(block, pixel, count);
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t band = 0; band < job->bands; band++)
                block->coefficients[band] = row_of(block, band, first + row);
            lanes *to = block->low_passed + row * width;
            const float *weights = block->weights + row * width;
            synthesize_sum(&job->row, job->bands, block->coefficients, to, weights, count, block->points);
        }
        store_pixels(block, block->x, pixel, count, block->low_passed);
    }
}

static void backward(const block *block) {
    int64_t width = block->job->row.length, bands = block->job->bands;
    split(block);
    FOR_ROWS(block, first, rows) {
        int64_t pixel = first * width, count = rows * width;
        load_pixels(block, block->x, pixel, count, block->x_pixels);
        load_pixels(block, block->grad, pixel, count, block->grad_pixels);
        for (int64_t band = 0; band < bands; band++)
            synthesize_rows(block, band, first, rows, block->low_passed + band * count);
        sum_channels(block, pixel, count);
        find_weights(block, pixel, count);
        for (int64_t band = 0; band < bands; band++)
            analyze_rows(block, band, first, rows, block->grad_pixels, block->weights + band * count);
    }
    pass_columns(block, bands, 1);
    FOR_ROWS(block, first, rows) {
        synthesize_rows(block, 0, first, rows, block->low_passed);
        store_pixels(block, block->grad, first * width, rows * width, block->low_passed);
    }
}

/* ---- Functions that Python calls ---- */

static void run_part(const void *data, int64_t part) {
    const bands_job *job = data;
    int64_t tasks = job->images * num_blocks(job), end = share_start(tasks, part + 1, job->parts);
    for (int64_t task = share_start(tasks, part, job->parts); task < end; task++) {
        block block = find_block(job, task, part);
        if (job->grad)
            backward(&block);
        else
            forward(&block);
    }
}

/* Number of channels of a block. */
int64_t fdconv_bands_lanes(void) { return LANES; }

/* Number of floats of scratch memory, aligned like vectors, that the function below needs. */
int64_t fdconv_bands_scratch(const bands_job *job) { return job->parts * part_lanes(job) * LANES; }

/* Write y; or, if the gradient of y is given, the gradients of x and attention. */
void fdconv_modulate_bands(const bands_job *job) { run_parts(run_part, job, job->parts); }
