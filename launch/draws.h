// Keyed draws for data that is generated: item i of a split is the same whatever else is made.
#ifndef LAUNCH_DRAWS_H
#define LAUNCH_DRAWS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct draws {
    uint64_t seed, item;
    uint32_t split, next;
} draws_t;
// A whole number in [0, bound).
int draws_below(draws_t *draws, int bound);
bool draws_chance(draws_t *draws, double probability);

#endif
