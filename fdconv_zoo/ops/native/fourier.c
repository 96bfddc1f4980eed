#include "fourier.h"

#include <math.h>
#include <stdlib.h>

static fourier_plan *plans;

static const fourier_plan *find_in(const fourier_plan *list, int64_t length) {
    while (list != NULL && list->length != length)
        list = list->next;
    return list;
}

static int factorize(int64_t number, int *factors) {
    int count = 0;
    for (; number % 8 == 0 && number != 16; number /= 8) /* 4 * 4 is faster than 8 * 2 */
        factors[count++] = 8;
    for (; number % 4 == 0; number /= 4)
        factors[count++] = 4;
    for (int64_t prime = 2; number > 1; prime++) {
        if (prime * prime > number)
            prime = number;
        for (; number % prime == 0; number /= prime)
            factors[count++] = (int)prime;
    }
    return count;
}

const fourier_plan *find_plan(int64_t length) {
    const fourier_plan *found = find_in(__atomic_load_n(&plans, __ATOMIC_ACQUIRE), length);
    if (found != NULL)
        return found;
    fourier_plan *plan = malloc(sizeof *plan);
    float *roots = malloc(sizeof *roots * 2 * (size_t)length);
    if (plan == NULL || roots == NULL) {
        free(plan);
        free(roots);
        return NULL;
    }
    for (int64_t k = 0; k < length; k++) {
        double angle = 2 * 3.14159265358979323846 * (double)k / (double)length;
        roots[2 * k] = (float)cos(angle);
        roots[2 * k + 1] = (float)sin(angle);
    }
    plan->length = length;
    plan->num_factors = factorize(length, plan->factors);
    plan->roots = roots;
    /* Two threads may make the same plan: both are correct, and later calls find one of them. */
    plan->next = __atomic_load_n(&plans, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&plans, &plan->next, plan, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    return plan;
}
