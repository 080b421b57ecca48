// What a warp's tensor-core instructions do: ldmatrix, and mma.m16n8k16 in bf16.
#include "kernels/sim/state.h"

#include <math.h>
#include <string.h>

enum { EVERY_LANE = -1, ROWS = 16, COLUMNS = 8, DEPTH = 16 };

sim_words_t sim_load_matrices(const void *row, bool transposed, const char *file, int line) {
    if ((uintptr_t)row % 16) sim_fault(file, line, "ldmatrix: a row is not aligned to 16 bytes");
    const unsigned char *all =
        sim_warp_exchange("ldmatrix", (uint32_t)EVERY_LANE, &row, sizeof(row), false, file, line);
    int lane = sim_lane();
    sim_words_t out;
    for (int m = 0; m < 4; m++) {
        const char *at[2];
        for (int i = 0; i < 2; i++) {
            int from = m * 8 + (transposed ? lane % 4 * 2 + i : lane / 4);
            memcpy(&at[i], all + from * SIM_PACKET, sizeof(at[i]));
            at[i] += transposed ? lane / 4 * 2 : lane % 4 * 4 + i * 2;
            // The warp reads the whole row: so its words are asked about.
            if (i == 0 || transposed) sim_access(at[i] - (uintptr_t)at[i] % 4, 4, false, __builtin_return_address(0));
        }
        uint16_t low, high;
        memcpy(&low, at[0], sizeof(low));
        memcpy(&high, at[1], sizeof(high));
        out.at[m] = low | (uint32_t)high << 16;
    }
    return out;
}

typedef struct packet {
    uint32_t a[4], b[2];
    float d[4];
} packet_t;

static inline float widened(uint32_t bits) {
    float out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}

static inline __attribute__((always_inline)) void multiply(sim_exchange_t *exchange) {
    float a[ROWS][DEPTH], b[DEPTH][COLUMNS], d[ROWS][COLUMNS];
    for (int lane = 0; lane < SIM_WARP; lane++) {
        packet_t given;
        memcpy(&given, exchange->packet + lane * SIM_PACKET, sizeof(given));
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
            a[row][k] = widened(given.a[i] << 16);
            a[row][k + 1] = widened(given.a[i] & 0xffff0000u);
            d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = given.d[i];
        }
        for (int i = 0; i < 2; i++) {
            int k = lane % 4 * 2 + i * 8;
            b[k][lane / 4] = widened(given.b[i] << 16);
            b[k + 1][lane / 4] = widened(given.b[i] & 0xffff0000u);
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int k = 0; k < DEPTH; k++)
            for (int column = 0; column < COLUMNS; column++)
                d[row][column] = fmaf(a[row][k], b[k][column], d[row][column]);
    for (int lane = 0; lane < SIM_WARP; lane++)
        for (int i = 0; i < 4; i++) exchange->product[lane][i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

#if defined(__x86_64__)
// The same with the processor's own instruction, which has fmaf's bits.
__attribute__((target("avx2,fma"))) static void multiply_fused(sim_exchange_t *exchange) {
    multiply(exchange);
}
static void multiply_any(sim_exchange_t *exchange) {
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        multiply_fused(exchange);
    else
        multiply(exchange);
}
#else
static void multiply_any(sim_exchange_t *exchange) {
    multiply(exchange);
}
#endif

sim_floats_t sim_mma(sim_words_t a, uint64_t b, sim_floats_t d, const char *file, int line) {
    packet_t given = {.b = {(uint32_t)b, (uint32_t)(b >> 32)}};
    memcpy(given.a, a.at, sizeof(given.a));
    memcpy(given.d, d.at, sizeof(given.d));
    (void)sim_warp_exchange("mma", (uint32_t)EVERY_LANE, &given, sizeof(given), false, file, line);
    sim_exchange_t *exchange = sim_now->running->exchange;
    if (!exchange->multiplied) multiply_any(exchange);
    exchange->multiplied = true;
    sim_floats_t out;
    memcpy(out.at, exchange->product[sim_lane()], sizeof(out.at));
    return out;
}
