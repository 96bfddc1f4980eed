/* Distributes work over torch's threads. */
#ifndef FDCONV_PARALLEL_H
#define FDCONV_PARALLEL_H

#include <stdint.h>

typedef void (*part_function)(const void *job, int64_t part);

/* Call `function(job, part)` once for every part below `parts`, on up to `parts` threads; return when all are done. Any
   thread may take any part, so results must not depend on it. */
void run_parts(part_function function, const void *job, int64_t parts);

/* The first task of a part: each part has a contiguous range of the `tasks`, and all have about as many. */
static inline int64_t share_start(int64_t tasks, int64_t part, int64_t parts) { return tasks * part / parts; }

#endif
