#include "launch/draws.h"

#include "kernels/base/philox.h"

int draws_below(draws_t *draws, int bound) {
    return (int)philox_below(draws->seed, PHILOX_DATA, draws->item, draws->split, draws->next++, (uint32_t)bound);
}

bool draws_chance(draws_t *draws, double probability) {
    return draws_below(draws, 1 << 24) < (int)(probability * (1 << 24));
}
