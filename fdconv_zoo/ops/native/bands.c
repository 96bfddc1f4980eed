/* Frequency Band Modulation: y = A_1 x + sum over bands m of D_m L_m(x), with D_m = A_{m+1} - A_m and ideal low-passes
   L_m, and its gradients; the equations are in bands_plain.py and bands_rebuild.py.

   A vector holds the same pixel of LANES channels, and a line (a row or a column of the map) is transformed by small
   products with sinusoids. Sinusoids have symmetries: sample i of a cosine equals sample -i, of a sine minus that; those
   of even frequency repeat after half a line, those of odd frequency with the sign changed. So the sums and differences of
   samples that mirror each other are multiplied, a quarter of the line for each symmetry, not the samples. */
#include "lanes.h"
#include "parallel.h"

#include <stddef.h>

#define LINES 2 /* transformed together: a number of a basis is loaded once for both */
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 8 /* rows of a product at once: LINES * TILE sums, in the registers */
#else
#define TILE 5
#endif
#define SYMMETRIES 4

/* A line of n samples: n/2 even or odd n/2 in one. Symmetries: cosines and sines of even frequency, then of odd frequency;
   where n is odd, cosines and sines of any, and no others. */
typedef struct {
    int64_t length;           /* n */
    int64_t points;           /* samples that the others mirror: n/4 + 1, or (n + 1)/2 where n is odd */
    const int64_t *passing;   /* (bands, SYMMETRIES): frequencies that pass each edge, most of the first symmetry */
    const float *analysis;    /* (SYMMETRIES, points, passing[0]); halved where a sample mirrors itself */
    const float *synthesis;   /* (SYMMETRIES, passing[0], points) */
} axis;

typedef struct {
    int64_t images, channels, bands, channels_last;
    axis column, row;         /* of H and of W samples */
    const float *x;           /* (images, channels, H, W) */
    const float *attention;   /* (images, bands, H, W) */
    const float *grad;        /* of y, for backward */
    float *y;                 /* or the gradient of x */
    float *grad_attention;    /* (images, blocks of LANES channels, bands, H, W): to be summed over blocks */
    float *scratch;           /* (parts, fdconv_bands_scratch()) */
    int64_t parts;
} bands_job;

/* Vectors, by line, by sample or frequency within a symmetry, and by symmetry. */
typedef struct {
    lanes *at;
    int64_t line, step, symmetry;
} view;

INLINE int64_t symmetries(const axis *axis) { return axis->length % 2 ? 2 : 4; }

INLINE const int64_t *passing(const axis *axis, int64_t band) { return axis->passing + band * SYMMETRIES; }

/* Coefficients of one line; odd, since vectors a power of two apart share few places in a cache. */
INLINE int64_t coefficients(const axis *axis, int64_t band) { return symmetries(axis) * passing(axis, band)[0] | 1; }

/* to[j] = sum of matrix[k][j] from[k] over k < depth, for j < tile and every line; added to what is there if `add`. */
INLINE void multiply_tile(view from, view to, const float *matrix, int64_t stride, int64_t depth, int add,
                          const int tile, const int lines) {
    lanes sums[TILE][LINES];
    for (int j = 0; j < tile; j++)
        for (int line = 0; line < lines; line++)
            sums[j][line] = add ? to.at[j * to.step + line * to.line] : all(0);
    for (int64_t k = 0; k < depth; k++, matrix += stride)
        for (int j = 0; j < tile; j++)
            for (int line = 0; line < lines; line++)
                sums[j][line] += from.at[k * from.step + line * from.line] * matrix[j];
    for (int j = 0; j < tile; j++)
        for (int line = 0; line < lines; line++)
            to.at[j * to.step + line * to.line] = sums[j][line];
}

#define TILE_CASE(tile)                                                             \
    case tile:                                                                      \
        multiply_tile(from, to, matrix, stride, depth, add, tile, lines);           \
        break;

INLINE void multiply(view from, view to, const float *matrix, int64_t stride, int64_t depth, int add, int64_t count,
                     const int lines) {
    while (count > 0) {
        int64_t tiles = (count + TILE - 1) / TILE, tile = (count + tiles - 1) / tiles;
        switch (tile) {
            TILE_CASE(1)
            TILE_CASE(2)
            TILE_CASE(3)
            TILE_CASE(4)
            TILE_CASE(5)
#if TILE == 8
            TILE_CASE(6)
            TILE_CASE(7)
            TILE_CASE(8)
#endif
        }
        count -= tile, matrix += tile, to.at += tile * to.step;
    }
}

/* Coefficients of lines, of those sinusoids that pass the edge `band`. Samples are multiplied with `weights` (lines, n)
   unless NULL. `folded` has room for (SYMMETRIES, points, lines). */
INLINE void analyze(const axis *axis, int64_t band, view samples, const float *weights, view to, int add, lanes *folded,
                    const int lines) {
    int64_t n = axis->length, points = axis->points, half = n / 2, frequencies = passing(axis, 0)[0];
    view from = {folded, 1, lines, points * lines};
#define SAMPLE(i) (samples.at[(i) * samples.step + line * samples.line] * (weights ? weights[line * n + (i)] : 1))
    for (int64_t i = 0; i < points; i++)
        for (int line = 0; line < lines; line++) {
            lanes *point = folded + i * lines + line;
            if (n % 2) {
                lanes first = SAMPLE(i), last = SAMPLE(i ? n - i : 0);
                point[0] = first + last;
                point[from.symmetry] = first - last;
            } else {
                lanes first = SAMPLE(i), second = SAMPLE(i + half), third = SAMPLE(half - i), last = SAMPLE(i ? n - i : 0);
                lanes even = first + second, even_mirrored = last + third, odd = first - second, odd_mirrored = last - third;
                point[0] = even + even_mirrored;
                point[from.symmetry] = even - even_mirrored;
                point[2 * from.symmetry] = odd + odd_mirrored;
                point[3 * from.symmetry] = odd - odd_mirrored;
            }
        }
#undef SAMPLE
    for (int64_t symmetry = 0; symmetry < symmetries(axis); symmetry++) {
        multiply(from, to, axis->analysis + symmetry * points * frequencies, frequencies, points, add,
                 passing(axis, band)[symmetry], lines);
        from.at += from.symmetry, to.at += to.symmetry;
    }
}

/* Samples of lines from their coefficients, those that pass the edge `band`; with `weights` (lines, n) unless NULL. */
INLINE void synthesize(const axis *axis, int64_t band, view from, view samples, const float *weights, int add,
                       const int lines) {
    int64_t n = axis->length, points = axis->points, half = n / 2, frequencies = passing(axis, 0)[0];
    lanes parts[SYMMETRIES][TILE][LINES];
#define PUT(i, values)                                                                       \
    do {                                                                                     \
        lanes *sample = samples.at + (i) * samples.step + line * samples.line;               \
        lanes value = values;                                                                \
        if (weights)                                                                         \
            value *= weights[line * n + (i)];                                                \
        *sample = add ? *sample + value : value;                                             \
    } while (0)
    for (int64_t start = 0; start < points; start += TILE) {
        int64_t tile = points - start < TILE ? points - start : TILE;
        for (int64_t symmetry = 0; symmetry < symmetries(axis); symmetry++) {
            view coefficients = from, to = {parts[symmetry][0], 1, LINES, 0};
            coefficients.at += symmetry * from.symmetry;
            multiply(coefficients, to, axis->synthesis + symmetry * frequencies * points + start, points,
                     passing(axis, band)[symmetry], 0, tile, lines);
        }
        for (int64_t j = 0; j < tile; j++)
            for (int line = 0; line < lines; line++) {
                int64_t i = start + j;
                lanes plus = parts[0][j][line] + parts[1][j][line], minus = parts[0][j][line] - parts[1][j][line];
                if (n % 2) {
                    PUT(i, plus);
                    if (i > 0)
                        PUT(n - i, minus);
                    continue;
                }
                lanes odd_plus = parts[2][j][line] + parts[3][j][line], odd_minus = parts[2][j][line] - parts[3][j][line];
                PUT(i, plus + odd_plus);
                PUT(i + half, plus - odd_plus);
                if (i > 0 && 2 * i != half) { /* otherwise the point mirrors itself */
                    PUT(half - i, minus - odd_minus);
                    PUT(n - i, minus + odd_minus);
                }
            }
    }
#undef PUT
}

/* The buffers of a part. */
typedef struct {
    lanes *planes;  /* for each band (H, coefficients of a row) */
    lanes *x, *grad; /* a few rows: (pixels) */
    lanes *bands;   /* (bands, pixels) */
    lanes *column;  /* coefficients of LINES columns */
    lanes *folded;
    float *weights; /* D (bands, pixels) */
} buffers;

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows that are loaded together: pairs, and enough pixels to fill vectors. */
static int64_t rows_at_once(const bands_job *job) {
    int64_t pairs = (2 * LANES + job->row.length - 1) / job->row.length;
    return smallest(2 * pairs, job->column.length);
}

static int64_t plane_lanes(const bands_job *job, int64_t band) {
    return job->column.length * coefficients(&job->row, band);
}

static int64_t folded_lanes(const axis *axis) { return SYMMETRIES * axis->points * LINES; }

/* Lay out the buffers from `memory`, and return where they end. */
static float *lay_out(const bands_job *job, float *memory, buffers *to) {
    int64_t pixels = rows_at_once(job) * job->row.length;
    to->planes = (lanes *)memory;
    to->x = to->planes;
    for (int64_t band = 0; band < job->bands; band++)
        to->x += plane_lanes(job, band);
    to->grad = to->x + pixels;
    to->bands = to->grad + pixels;
    to->column = to->bands + job->bands * pixels;
    to->folded = to->column + SYMMETRIES * passing(&job->column, 0)[0] * LINES;
    to->weights = (float *)(to->folded + largest(folded_lanes(&job->row), folded_lanes(&job->column)));
    return to->weights + (job->bands * pixels + LANES - 1) / LANES * LANES;
}

static int64_t part_floats(const bands_job *job) {
    buffers unused;
    return lay_out(job, NULL, &unused) - (float *)NULL;
}

/* A block of LANES channels of an image; its last one may have fewer. */
typedef struct {
    int64_t channels, pixels, stride; /* stride: of channels, or of pixels where channels come last */
    const float *x, *grad, *attention;
    float *y, *grad_attention;
    buffers buffers;
} block;

static int64_t num_blocks(const bands_job *job) { return (job->channels + LANES - 1) / LANES; }

static block find_block(const bands_job *job, int64_t task, int64_t part) {
    int64_t image = task / num_blocks(job), first = task % num_blocks(job) * LANES;
    int64_t pixels = job->column.length * job->row.length;
    int64_t at = image * job->channels * pixels + first * (job->channels_last ? 1 : pixels);
    block found = {
        .channels = smallest(job->channels - first, LANES),
        .pixels = pixels,
        .stride = job->channels_last ? job->channels : pixels,
        .x = job->x + at,
        .grad = job->grad == NULL ? NULL : job->grad + at,
        .attention = job->attention + image * job->bands * pixels,
        .y = job->y + at,
        .grad_attention = job->grad_attention == NULL ? NULL : job->grad_attention + task * job->bands * pixels,
    };
    lay_out(job, job->scratch + part * part_floats(job), &found.buffers);
    return found;
}

/* Pixels of a block from memory, a vector each; 0 for channels that are not there. */
static void load_pixels(const bands_job *job, const block *block, const float *from, int64_t count, lanes *to) {
    if (job->channels_last) {
        for (int64_t i = 0; i < count; i++, from += block->stride)
            to[i] = block->channels == LANES ? load(from) : load_some(from, block->channels);
        return;
    }
    for (int64_t tile = 0; tile < count; tile += LANES) {
        int64_t start = count < LANES ? 0 : smallest(tile, count - LANES); /* the last two may overlap */
        lanes rows[LANES];
        for (int channel = 0; channel < LANES; channel++) {
            const float *at = from + channel * block->stride + start;
            rows[channel] = channel >= block->channels ? all(0) : count < LANES ? load_some(at, count) : load(at);
        }
        transpose(rows);
        for (int64_t i = 0; i < smallest(count, LANES); i++)
            to[start + i] = rows[i];
    }
}

/* Write A_1 * from + sum, of pixels in the memory of x, and vectors. */
static void store_pixels(const bands_job *job, const block *block, int64_t first, int64_t count, const float *from,
                         const lanes *sum) {
    float *to = block->y + first * (job->channels_last ? block->stride : 1);
    const float *highest = block->attention + first;
    if (job->channels_last) {
        for (int64_t i = 0; i < count; i++, from += block->stride, to += block->stride)
            if (block->channels == LANES)
                store(to, load(from) * highest[i] + sum[i]);
            else
                store_some(to, load_some(from, block->channels) * highest[i] + sum[i], block->channels);
        return;
    }
    for (int64_t tile = 0; tile < count; tile += LANES) {
        int64_t start = count < LANES ? 0 : smallest(tile, count - LANES);
        lanes rows[LANES];
        for (int64_t i = 0; i < LANES; i++)
            rows[i] = i < count ? sum[start + i] : all(0);
        transpose(rows);
        for (int channel = 0; channel < block->channels; channel++) {
            int64_t at = channel * block->stride + start;
            if (count < LANES)
                store_some(to + at, load_some(from + at, count) * load_some(highest, count) + rows[channel], count);
            else
                store(to + at, load(from + at) * load(highest + start) + rows[channel]);
        }
    }
}

/* D of some pixels, for each band. */
static void find_weights(const bands_job *job, const block *block, int64_t first, int64_t count) {
    const float *attention = block->attention + first;
    float *to = block->buffers.weights;
    for (int64_t band = 0; band < job->bands; band++, attention += block->pixels, to += count)
        if (band + 1 < job->bands)
            for (int64_t i = 0; i < count; i++)
                to[i] = attention[block->pixels + i] - attention[i];
        else
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

/* The gradient of attention from this block: sums of dy * (L_m - L_{m+1}) over its channels. */
static void sum_channels(const bands_job *job, const block *block, int64_t first, int64_t count) {
    const buffers *b = &block->buffers;
    for (int64_t tile = 0; tile < count; tile += LANES) {
        int64_t start = count < LANES ? 0 : smallest(tile, count - LANES);
        lanes higher = all(0);
        for (int64_t band = 0; band <= job->bands; band++) {
            const lanes *low_pass = band ? b->bands + (band - 1) * count : b->x;
            lanes rows[LANES];
            for (int64_t i = 0; i < LANES; i++)
                rows[i] = i < count ? low_pass[start + i] * b->grad[start + i] : all(0);
            lanes sums = sum_each(rows);
            if (band) {
                float *to = block->grad_attention + (band - 1) * block->pixels + first + start;
                if (count < LANES)
                    store_some(to, higher - sums, count);
                else
                    store(to, higher - sums);
            }
            higher = sums;
        }
    }
}

INLINE view plane(const bands_job *job, const block *block, int64_t band) {
    lanes *at = block->buffers.planes;
    for (int64_t higher = 0; higher < band; higher++)
        at += plane_lanes(job, higher);
    return (view){at, coefficients(&job->row, band), 1, passing(&job->row, band)[0]};
}

/* Coefficients of `rows` rows of pixels, to those from `first` on in the plane of the band. */
static void analyze_rows(const bands_job *job, const block *block, int64_t band, int64_t first, int64_t rows,
                         lanes *pixels, const float *weights) {
    int64_t width = job->row.length;
    view from = {pixels, width, 1, 0}, to = plane(job, block, band);
    to.at += first * to.line;
    for (; rows > 0; rows -= LINES) {
        if (rows >= LINES)
            analyze(&job->row, band, from, weights, to, 0, block->buffers.folded, LINES);
        else
            analyze(&job->row, band, from, weights, to, 0, block->buffers.folded, 1);
        from.at += LINES * from.line, to.at += LINES * to.line;
        weights = weights == NULL ? NULL : weights + LINES * width;
    }
}

/* Low-passed pixels from them. */
static void synthesize_rows(const bands_job *job, const block *block, int64_t band, int64_t first, int64_t rows,
                            lanes *pixels, const float *weights, int add) {
    int64_t width = job->row.length;
    view from = plane(job, block, band), to = {pixels, width, 1, 0};
    from.at += first * from.line;
    for (; rows > 0; rows -= LINES) {
        if (rows >= LINES)
            synthesize(&job->row, band, from, to, weights, add, LINES);
        else
            synthesize(&job->row, band, from, to, weights, add, 1);
        from.at += LINES * from.line, to.at += LINES * to.line;
        weights = weights == NULL ? NULL : weights + LINES * width;
    }
}

/* Analyze columns of the planes of the first `from` bands, and synthesize those of the first `to` bands from the sum, in
   place. */
INLINE void pass_lines(const bands_job *job, const block *block, int64_t from, int64_t to, int64_t symmetry,
                       int64_t frequency, const int lines) {
    view sums = {block->buffers.column, 1, lines, passing(&job->column, 0)[0] * lines};
    for (int synthesizes = 0; synthesizes < 2; synthesizes++)
        for (int64_t band = 0; band < (synthesizes ? to : from); band++) {
            if (frequency >= passing(&job->row, band)[symmetry])
                break;
            view samples = plane(job, block, band);
            samples.at += symmetry * samples.symmetry + frequency;
            samples.step = samples.line;
            samples.line = 1;
            if (synthesizes)
                synthesize(&job->column, band, sums, samples, NULL, 0, lines);
            else
                analyze(&job->column, band, samples, NULL, sums, band > 0, block->buffers.folded, lines);
        }
}

static void pass_columns(const bands_job *job, const block *block, int64_t from, int64_t to) {
    for (int64_t symmetry = 0; symmetry < symmetries(&job->row); symmetry++)
        for (int64_t band = job->bands; band > 0; band--) { /* columns that pass this edge and not the next */
            int64_t column = band < job->bands ? passing(&job->row, band)[symmetry] : 0;
            int64_t end = passing(&job->row, band - 1)[symmetry];
            for (; column + LINES <= end; column += LINES)
                pass_lines(job, block, from, to, symmetry, column, LINES);
            for (; column < end; column++)
                pass_lines(job, block, from, to, symmetry, column, 1);
        }
}

#define FOR_ROWS(job, first, rows)                                                                              \
    for (int64_t first = 0, rows; rows = smallest(rows_at_once(job), (job)->column.length - first), rows > 0; \
         first += rows)

INLINE const float *pixels_at(const bands_job *job, const block *block, const float *of, int64_t first) {
    return of + first * (job->channels_last ? block->stride : 1);
}

/* The low-passes of x: rows of their planes. */
static void split(const bands_job *job, const block *block) {
    int64_t width = job->row.length;
    FOR_ROWS(job, first, rows) {
        load_pixels(job, block, pixels_at(job, block, block->x, first * width), rows * width, block->buffers.x);
        analyze_rows(job, block, 0, first, rows, block->buffers.x, NULL);
    }
    pass_columns(job, block, 1, job->bands);
}

static void forward_block(const bands_job *job, const block *block) {
    const buffers *b = &block->buffers;
    split(job, block);
    FOR_ROWS(job, first, rows) {
        int64_t pixel = first * job->row.length, count = rows * job->row.length;
        find_weights(job, block, pixel, count);
        for (int64_t band = 0; band < job->bands; band++)
            synthesize_rows(job, block, band, first, rows, b->bands, b->weights + band * count, band > 0);
        store_pixels(job, block, pixel, count, pixels_at(job, block, block->x, pixel), b->bands);
    }
}

static void backward_block(const bands_job *job, const block *block) {
    const buffers *b = &block->buffers;
    split(job, block);
    FOR_ROWS(job, first, rows) {
        int64_t pixel = first * job->row.length, count = rows * job->row.length;
        load_pixels(job, block, pixels_at(job, block, block->x, pixel), count, b->x);
        load_pixels(job, block, pixels_at(job, block, block->grad, pixel), count, b->grad);
        for (int64_t band = 0; band < job->bands; band++)
            synthesize_rows(job, block, band, first, rows, b->bands + band * count, NULL, 0);
        sum_channels(job, block, pixel, count);
        find_weights(job, block, pixel, count);
        for (int64_t band = 0; band < job->bands; band++)
            analyze_rows(job, block, band, first, rows, b->grad, b->weights + band * count);
    }
    pass_columns(job, block, job->bands, 1);
    FOR_ROWS(job, first, rows) {
        int64_t pixel = first * job->row.length, count = rows * job->row.length;
        synthesize_rows(job, block, 0, first, rows, b->bands, NULL, 0);
        store_pixels(job, block, pixel, count, pixels_at(job, block, block->grad, pixel), b->bands);
    }
}

static void run_part(const void *data, int64_t part) {
    const bands_job *job = data;
    int64_t tasks = job->images * num_blocks(job), end = share_start(tasks, part + 1, job->parts);
    for (int64_t task = share_start(tasks, part, job->parts); task < end; task++) {
        block block = find_block(job, task, part);
        if (job->grad == NULL)
            forward_block(job, &block);
        else
            backward_block(job, &block);
    }
}

/* Channels that are worked on at once. */
int64_t fdconv_bands_lanes(void) { return LANES; }

/* Floats of scratch memory, aligned to 64 bytes. */
int64_t fdconv_bands_scratch(const bands_job *job) { return job->parts * part_floats(job); }

/* y, or where there is a gradient of y, those of x and attention. */
void fdconv_modulate_bands(const bands_job *job) { run_parts(run_part, job, job->parts); }
