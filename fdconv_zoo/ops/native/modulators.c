/* KSM in inference: all modulators from the pooled features of images, in one call.

   With hidden = act(norm(reduce pooled)), each head computes factors 2 * sigmoid((weight hidden + bias) / temperature).
   Those of FDW's kernels are divided by the number of kernels. The windows of the local branch are the normalized
   features around each channel. */

#include <math.h>
#include <stddef.h>

#include "lanes.h"
#include "parallel.h"

#define HEADS 4 /* kernel, channel, filter, spatial */

/* The sizes in the order in which Python passes them: hidden is 0 without a global branch, width is 0 without a local
   branch, and the size of a missing head is 0. */
typedef struct {
    int64_t images, channels, hidden, width, head_sizes[HEADS], parts;
} modulator_sizes;

typedef struct {
    float temperatures[HEADS], epsilon, local_epsilon;
} modulator_numbers;

/* Missing tensors are NULL. */
typedef struct {
    const float *reduce, *norm_weight, *norm_bias, *mean, *variance, *act_scale, *act_bias;
    const float *heads[HEADS][2]; /* weight and bias */
    const float *local_weight, *local_bias;
} branch_tensors;

typedef struct {
    float *heads[HEADS]; /* (images, size) */
    float *windows;      /* (images, channels, width) */
} branch_results;

typedef struct {
    const modulator_sizes *s;
    const modulator_numbers *numbers;
    const float *pooled; /* (images, channels) */
    const branch_tensors *tensors;
    const branch_results *results;
    float *scratch; /* images * hidden floats, or channels */
} modulators_job;

static float dot(const float *a, const float *b, int64_t size) {
    lanes sum = {0};
    int64_t at = 0;
    for (; at + LANES <= size; at += LANES)
        sum += load(a + at) * load(b + at);
    if (at < size)
        sum += load_some(a + at, size - at) * load_some(b + at, size - at);
    return sum_lanes(sum);
}

static void reduce_features(const void *data, int64_t part) {
    const modulators_job *job = data;
    const modulator_sizes *s = job->s;
    const branch_tensors *t = job->tensors;
    int64_t end = share_start(s->hidden, part + 1, s->parts);
    for (int64_t unit = share_start(s->hidden, part, s->parts); unit < end; unit++)
        for (int64_t image = 0; image < s->images; image++) {
            float x = dot(t->reduce + unit * s->channels, job->pooled + image * s->channels, s->channels);
            x = (x - t->mean[unit]) / sqrtf(t->variance[unit] + job->numbers->epsilon);
            x = x * t->norm_weight[unit] + t->norm_bias[unit];
            x = x < 0 ? 0 : x; /* NaN stays NaN */
            job->scratch[image * s->hidden + unit] = *t->act_scale * x * x + *t->act_bias;
        }
}

static void apply_heads(const void *data, int64_t part) {
    const modulators_job *job = data;
    const modulator_sizes *s = job->s;
    for (int head = 0; head < HEADS; head++) {
        int64_t size = s->head_sizes[head], start = share_start(size, part, s->parts);
        int64_t end = share_start(size, part + 1, s->parts);
        const float *weight = job->tensors->heads[head][0], *bias = job->tensors->heads[head][1];
        for (int64_t row = start; row < end; row++)
            for (int64_t image = 0; image < s->images; image++) {
                float logit = dot(weight + row * s->hidden, job->scratch + image * s->hidden, s->hidden) + bias[row];
                job->results->heads[head][image * size + row] = logit / job->numbers->temperatures[head];
            }
        float scale = head == 0 ? 2.0f / (float)size : 2;
        for (int64_t image = 0; image < s->images; image++)
            for (int64_t row = start; row < end; row += LANES) {
                float *factors = job->results->heads[head] + image * size + row;
                int64_t count = end - row < LANES ? end - row : LANES;
                store_some(factors, scale * sigmoid(load_some(factors, count)), count);
            }
    }
}

static void make_windows(const modulators_job *job, int64_t image) {
    const modulator_sizes *s = job->s;
    const float *pooled = job->pooled + image * s->channels;
    double mean = 0, variance = 0;
    for (int64_t channel = 0; channel < s->channels; channel++)
        mean += pooled[channel];
    mean /= (double)s->channels;
    for (int64_t channel = 0; channel < s->channels; channel++)
        variance += (pooled[channel] - mean) * (pooled[channel] - mean);
    double scale = 1 / sqrt(variance / (double)s->channels + job->numbers->local_epsilon);
    for (int64_t channel = 0; channel < s->channels; channel++) {
        float normalized = (float)((pooled[channel] - mean) * scale);
        job->scratch[channel] = normalized * job->tensors->local_weight[channel] + job->tensors->local_bias[channel];
    }
    float *to = job->results->windows + image * s->channels * s->width;
    for (int64_t channel = 0; channel < s->channels; channel++)
        for (int64_t tap = 0; tap < s->width; tap++) {
            int64_t from = channel + tap - s->width / 2;
            *to++ = from < 0 || from >= s->channels ? 0 : job->scratch[from];
        }
}

void fdconv_predict_modulators(
    const modulator_sizes *sizes, const modulator_numbers *numbers, const float *pooled, const branch_tensors *tensors,
    const branch_results *results, float *scratch
) {
    modulators_job job = {sizes, numbers, pooled, tensors, results, scratch};
    if (sizes->hidden > 0) {
        run_parts(reduce_features, &job, sizes->parts);
        run_parts(apply_heads, &job, sizes->parts);
    }
    for (int64_t image = 0; image < sizes->images && sizes->width > 0; image++)
        make_windows(&job, image);
}
