#include "parallel.h"

#include <stddef.h>

/* A second OpenMP runtime beside torch's would have threads of its own, and the two would wait for each other's cores.
   This is the entry of the one that torch uses; GCC's, Intel's and LLVM's all have it. NULL: run on one thread. */
typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);
static parallel_function parallel;

void fdconv_set_parallel(void *gomp_parallel) { parallel = (parallel_function)gomp_parallel; }

typedef struct {
    part_function function;
    const void *job;
    int64_t parts, next;
} team;

/* The runtime may grant fewer threads than asked for: each takes parts until none is left. */
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
