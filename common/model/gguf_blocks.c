// Quantised blocks to f32. Each value is computed by the operations that gguf-py uses, in its order and in f32, so the
// results are equal to the bit: a product that is rounded, then a sum that is rounded (no fused multiply-add).
#include "common/model/gguf.h"
#include "common/model/half.h"

enum { SMALL = 32, SUPER = 256 }; // values of a plain and of a K block

typedef struct block_kind {
    gguf_type_t type;
    const char *name;
    int values, bytes;
    void (*convert)(const unsigned char *block, float *out);
} block_kind_t;

static float half_at(const unsigned char *at) {
    return half_to_float((uint16_t)(at[0] | at[1] << 8));
}

static void convert_f32(const unsigned char *block, float *out) {
    memcpy(out, block, sizeof(*out));
}

static void convert_f16(const unsigned char *block, float *out) {
    *out = half_at(block);
}

static void convert_bf16(const unsigned char *block, float *out) {
    uint32_t bits = (uint32_t)(block[0] | block[1] << 8) << 16;
    memcpy(out, &bits, sizeof(bits));
}

static void convert_q4_0(const unsigned char *block, float *out) {
    float d = half_at(block);
    for (int i = 0; i < SMALL / 2; i++) {
        out[i] = d * (float)((block[2 + i] & 15) - 8);
        out[i + SMALL / 2] = d * (float)((block[2 + i] >> 4) - 8);
    }
}

static void convert_q4_1(const unsigned char *block, float *out) {
    float d = half_at(block), m = half_at(block + 2);
    for (int i = 0; i < SMALL / 2; i++) {
        out[i] = d * (float)(block[4 + i] & 15) + m;
        out[i + SMALL / 2] = d * (float)(block[4 + i] >> 4) + m;
    }
}

// Value i of 32 whose low 4 bits are in `low` and whose fifth is bit i of `high`.
static int five_bits(const unsigned char *high, const unsigned char *low, int i) {
    int nibble = i < SMALL / 2 ? low[i] & 15 : low[i - SMALL / 2] >> 4;
    return nibble | (high[i / 8] >> (i % 8) & 1) << 4;
}

static void convert_q5_0(const unsigned char *block, float *out) {
    float d = half_at(block);
    for (int i = 0; i < SMALL; i++) out[i] = d * (float)(five_bits(block + 2, block + 6, i) - 16);
}

static void convert_q5_1(const unsigned char *block, float *out) {
    float d = half_at(block), m = half_at(block + 2);
    for (int i = 0; i < SMALL; i++) out[i] = d * (float)five_bits(block + 4, block + 8, i) + m;
}

static void convert_q8_0(const unsigned char *block, float *out) {
    float d = half_at(block);
    for (int i = 0; i < SMALL; i++) out[i] = (float)(int8_t)block[2 + i] * d;
}

// Scale and minimum of group i of 8, 6 bits each: the first four lie in the low bits of bytes 0-3 and 4-7, the others
// in nibbles of bytes 8-11 with their upper two bits on top of bytes 0-7.
static void group_scale(const unsigned char *packed, int i, int *scale, int *minimum) {
    if (i < 4) {
        *scale = packed[i] & 63;
        *minimum = packed[i + 4] & 63;
        return;
    }
    *scale = (packed[i + 4] & 15) | (packed[i - 4] >> 2 & 48);
    *minimum = packed[i + 4] >> 4 | (packed[i] >> 2 & 48);
}

// Q4_K, and Q5_K where `high` has each value's fifth bit: bit `group` of byte i is that of value i of the group.
static void convert_groups(const unsigned char *block, const unsigned char *high, const unsigned char *low,
                           float *out) {
    float d = half_at(block), least = half_at(block + 2);
    for (int group = 0; group < SUPER / SMALL; group++) {
        int scale, minimum;
        group_scale(block + 4, group, &scale, &minimum);
        float step = d * (float)scale, base = least * (float)minimum;
        const unsigned char *bytes = low + group / 2 * SMALL;
        for (int i = 0; i < SMALL; i++) {
            int q = group % 2 ? bytes[i] >> 4 : bytes[i] & 15;
            if (high) q |= (high[i] >> group & 1) << 4;
            out[group * SMALL + i] = step * (float)q - base;
        }
    }
}

static void convert_q4_k(const unsigned char *block, float *out) {
    convert_groups(block, NULL, block + 16, out);
}

static void convert_q5_k(const unsigned char *block, float *out) {
    convert_groups(block, block + 16, block + 48, out);
}

// 128 bytes of low nibbles, 64 of upper bit pairs, 16 scales, the factor.
static void convert_q6_k(const unsigned char *block, float *out) {
    const unsigned char *low = block, *high = block + 128, *scales = block + 192;
    float d = half_at(block + 208);
    for (int i = 0; i < SUPER; i++) {
        // Each half of the block has four runs of 32 values.
        int half = i / 128, run = i % 128 / 32, at = i % 32;
        int nibbles = low[half * 64 + run % 2 * 32 + at];
        int q = (run < 2 ? nibbles & 15 : nibbles >> 4) | (high[half * 32 + at] >> (2 * run) & 3) << 4;
        float step = d * (float)(int8_t)scales[i / 16];
        out[i] = step * (float)(q - 32);
    }
}

static const block_kind_t kinds[] = {
    {GGUF_TYPE_F32, "F32", 1, 4, convert_f32},          {GGUF_TYPE_F16, "F16", 1, 2, convert_f16},
    {GGUF_TYPE_BF16, "BF16", 1, 2, convert_bf16},       {GGUF_TYPE_Q4_0, "Q4_0", SMALL, 18, convert_q4_0},
    {GGUF_TYPE_Q4_1, "Q4_1", SMALL, 20, convert_q4_1},  {GGUF_TYPE_Q5_0, "Q5_0", SMALL, 22, convert_q5_0},
    {GGUF_TYPE_Q5_1, "Q5_1", SMALL, 24, convert_q5_1},  {GGUF_TYPE_Q8_0, "Q8_0", SMALL, 34, convert_q8_0},
    {GGUF_TYPE_Q4_K, "Q4_K", SUPER, 144, convert_q4_k}, {GGUF_TYPE_Q5_K, "Q5_K", SUPER, 176, convert_q5_k},
    {GGUF_TYPE_Q6_K, "Q6_K", SUPER, 210, convert_q6_k},
};

static const block_kind_t *find_kind(uint32_t type) {
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if ((uint32_t)kinds[i].type == type) return &kinds[i];
    return NULL;
}

bool gguf_block(uint32_t type, int *values, int *bytes) {
    const block_kind_t *kind = find_kind(type);
    if (!kind) return false;
    *values = kind->values;
    *bytes = kind->bytes;
    return true;
}

const char *gguf_type_name(gguf_type_t type) {
    const block_kind_t *kind = find_kind((uint32_t)type);
    return kind ? kind->name : "unknown";
}

status_t gguf_dequantise(const gguf_tensor_t *tensor, int64_t first, int64_t elements, float *out) {
    const block_kind_t *kind = find_kind((uint32_t)tensor->type);
    if (!kind || first < 0 || elements < 0 || elements > tensor->elements - first || first % kind->values ||
        elements % kind->values)
        FAIL(STATUS_INVALID, "the tensor '%.160s' has no %lld values from value %lld on", tensor->name,
             (long long)elements, (long long)first);
    const unsigned char *block = (const unsigned char *)tensor->data + first / kind->values * kind->bytes;
    for (int64_t i = 0; i < elements; i += kind->values, block += kind->bytes) kind->convert(block, out + i);
    return STATUS_OK;
}
