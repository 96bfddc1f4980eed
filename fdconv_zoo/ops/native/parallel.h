/* Work shared out to the threads that torch keeps. */
#ifndef FDCONV_PARALLEL_H
#define FDCONV_PARALLEL_H

#include <stdint.h>

typedef void (*part_function)(const void *job, int64_t part);

/* Call `function(job, part)` for every part below `parts`, each once, on up to `parts` threads; return when all are done.
   Which thread takes which part is left open, so results must not depend on it. */
void run_parts(part_function function, const void *job, int64_t parts);

/* The first of the `tasks` that belong to a part: contiguous and even shares. */
static inline int64_t share_start(int64_t tasks, int64_t part, int64_t parts) { return tasks * part / parts; }

#endif
