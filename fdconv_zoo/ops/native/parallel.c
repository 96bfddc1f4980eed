#include "parallel.h"

#include <stddef.h>

/* A second OpenMP runtime would have its own threads, which would compete with torch's for the cores. So this is the
   entry point of the runtime that torch uses, which GCC's, Intel's and LLVM's all have. NULL: run on one thread. */
typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);
static parallel_function parallel;

void fdconv_set_parallel(void *gomp_parallel) { parallel = (parallel_function)gomp_parallel; }

typedef struct {
    part_function function;
    const void *job;
    int64_t parts, next;
} team;

/* The runtime may start fewer threads than requested: each takes parts until none is left. */
static void work(void *data) {
    team *shared = data;
    int64_t part;
    while ((part = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED)) < shared->parts)
        shared->function(shared->job, part);
}

void run_parts(part_function function, const void *job, int64_t parts) {
    team shared = {function, job, parts, 0};
    if (parts > 1 && parallel != NULL)
        parallel(work, &shared, (unsigned)parts, 0);
    else
        work(&shared);
}
