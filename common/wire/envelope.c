#include "common/wire/envelope.h"

#include <string.h>

// Layout: "POIS", schema (1 byte), kind (1), zero (2), then six little-endian 64-bit numbers in the struct's order.
static const char magic[4] = {'P', 'O', 'I', 'S'};

static void put_u64(uint8_t *at, uint64_t value) {
    for (int i = 0; i < 8; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_u64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

void envelope_encode(const envelope_t *envelope, uint8_t out[ENVELOPE_BYTES]) {
    memset(out, 0, ENVELOPE_BYTES);
    memcpy(out, magic, sizeof(magic));
    out[4] = ENVELOPE_SCHEMA;
    out[5] = (uint8_t)envelope->kind;
    put_u64(out + 8, envelope->epoch);
    put_u64(out + 16, envelope->sequence);
    put_u64(out + 24, envelope->received);
    put_u64(out + 32, envelope->beyond);
    put_u64(out + 40, envelope->limit);
    put_u64(out + 48, envelope->progress);
}

bool envelope_decode(const void *data, size_t size, envelope_t *out) {
    const uint8_t *bytes = data;
    if (size != ENVELOPE_BYTES || memcmp(bytes, magic, sizeof(magic)) != 0 || bytes[4] != ENVELOPE_SCHEMA) return false;
    if (bytes[5] < ENVELOPE_HELLO || bytes[5] > ENVELOPE_LAST || bytes[6] || bytes[7]) return false;
    *out = (envelope_t){
        .kind = (envelope_kind_t)bytes[5],
        .epoch = get_u64(bytes + 8),
        .sequence = get_u64(bytes + 16),
        .received = get_u64(bytes + 24),
        .beyond = get_u64(bytes + 32),
        .limit = get_u64(bytes + 40),
        .progress = get_u64(bytes + 48),
    };
    return true;
}
