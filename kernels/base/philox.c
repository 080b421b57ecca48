#include "kernels/base/philox.h"

#include <math.h>

static inline void philox_round(uint32_t c[4], const uint32_t k[2]) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
    uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t c0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k[0];
    uint32_t c2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k[1];
    c[1] = (uint32_t)p1;
    c[3] = (uint32_t)p0;
    c[0] = c0;
    c[2] = c2;
}

philox_block_t philox_draw(uint64_t seed, philox_purpose_t purpose, uint64_t a, uint32_t b, uint32_t c) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox_block_t block = {{(uint32_t)a, (uint32_t)(a >> 32) ^ ((uint32_t)purpose << 24), b, c}};
    for (int round = 0; round < 10; round++) {
        philox_round(block.word, key);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return block;
}

uint32_t philox_below(uint64_t seed, philox_purpose_t purpose, uint64_t a, uint32_t b, uint32_t c, uint32_t bound) {
    philox_block_t block = philox_draw(seed, purpose, a, b, c);
    uint64_t wide = ((uint64_t)block.word[0] << 32) | block.word[1];
    return (uint32_t)(((unsigned __int128)wide * bound) >> 64);
}

float philox_normal(uint64_t seed, philox_purpose_t purpose, uint64_t a, uint32_t b, uint32_t c) {
    philox_block_t block = philox_draw(seed, purpose, a, b, c);
    double u = ((double)block.word[0] + 1.0) * 0x1p-32; // (0, 1]
    double v = (double)block.word[1] * 0x1p-32;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

uint64_t philox_permute(uint64_t seed, uint64_t epoch, uint64_t index, uint64_t count) {
    if (count < 2) return 0;
    int half = 1;
    while (((uint64_t)1 << (2 * half)) < count) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = index >> half, right = index & mask;
        for (uint32_t round = 0; round < 6; round++) {
            philox_block_t block = philox_draw(seed, PHILOX_SHUFFLE, epoch, round, (uint32_t)right);
            uint64_t mixed = left ^ ((block.word[0] ^ block.word[1] * (uint32_t)(right >> 32)) & mask);
            left = right;
            right = mixed;
        }
        index = (left << half) | right;
    } while (index >= count);
    return index;
}
