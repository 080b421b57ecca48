// Keyed random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
//
// A draw is a function of what it is for and of nothing else, so who draws, and when, never matters. Seeds and
// purposes form the key and the counter; there is no state to save.
#ifndef KERNELS_BASE_PHILOX_H
#define KERNELS_BASE_PHILOX_H

#include <stdint.h>

typedef struct philox_block {
    uint32_t word[4];
} philox_block_t;

// What a stream of draws is for. Two streams with different purposes never share a draw under one seed.
typedef enum philox_purpose {
    PHILOX_SAMPLING = 1, // a token: (group serial, completion, position)
    PHILOX_SHUFFLE,      // the order of samples: (epoch, index)
    PHILOX_INIT,         // a weight: (tensor number, element)
    PHILOX_DATA,         // generated data: (split, item)
    PHILOX_BOOTSTRAP,    // resampling in reports
    PHILOX_DROPOUT,
    PHILOX_TEST,
} philox_purpose_t;

// One block of four words for (seed, purpose, a, b, c): key = seed, counter = (a low, a high ^ purpose << 24, b, c).
philox_block_t philox_draw(uint64_t seed, philox_purpose_t purpose, uint64_t a, uint32_t b, uint32_t c);
// A float in [0, 1) from the upper 24 bits of a word: an exact multiple of 2^-24.
static inline float philox_uniform(uint32_t word) {
    return (float)(word >> 8) * 0x1p-24f;
}
// A whole number in [0, bound), bound > 0, without modulo bias beyond 2^-32 (multiply-high of 64 bits).
uint32_t philox_below(uint64_t seed, philox_purpose_t purpose, uint64_t a, uint32_t b, uint32_t c, uint32_t bound);
// A standard normal number (Box-Muller in double precision, rounded once).
float philox_normal(uint64_t seed, philox_purpose_t purpose, uint64_t a, uint32_t b, uint32_t c);
// The place of item `index` in a keyed shuffle of `count` items of one epoch: a bijection of [0, count), computed
// without a table by cycle-walking a Feistel network, so any rank can ask for any index.
uint64_t philox_permute(uint64_t seed, uint64_t epoch, uint64_t index, uint64_t count);

#endif
