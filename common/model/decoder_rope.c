// Rope: its keys in config.json, old and new, and the frequencies that follow from them.
#include "common/model/decoder.h"

#include <math.h>
#include <string.h>

static const double pi = 3.14159265358979323846;

static status_t read_type(config_reader_t *reader, bool old_key, bool sections, decoder_rope_type_t *out) {
    static const char *const names[] = {"default", "linear", "llama3"};
    const json_t *value = config_get(reader, "rope_type");
    if (!value && old_key) value = config_get(reader, "type");
    if (old_key) config_get(reader, "type");
    if (!value) return STATUS_OK;
    const char *text = json_string_value(value);
    for (int i = 0; text && i < 3; i++) {
        *out = (decoder_rope_type_t)i;
        if (!strcmp(text, names[i])) return STATUS_OK;
    }
    *out = DECODER_ROPE_DEFAULT;
    if (text && sections && !strcmp(text, "mrope")) return STATUS_OK;
    FAIL(STATUS_INVALID, "%s: the rope type '%.32s' is not supported; Poise has 'default', 'linear' and 'llama3'%s",
         reader->where, text ? text : "no text", sections ? " and 'mrope'" : "");
}

static status_t require_number(config_reader_t *reader, const char *key, double *out) {
    TRY(config_number(reader, key, 1e-6, 1e9, out));
    if (*out > 0.0) return STATUS_OK;
    FAIL(STATUS_INVALID, "%s: this rope type needs the number '%s'", reader->where, key);
}

// One object of rope keys. old_key: its type may stand under "type". theta and original positions hold the defaults.
static status_t read_object(config_reader_t *reader, bool old_key, bool sections, decoder_rope_t *rope) {
    double partial = 1.0;
    TRY(read_type(reader, old_key, sections, &rope->type));
    TRY(config_number(reader, "rope_theta", 1e-6, 1e15, &rope->theta));
    TRY(config_number(reader, "partial_rotary_factor", 0.0, 1.0, &partial));
    if (partial < 1.0)
        FAIL(STATUS_INVALID, "%s: 'partial_rotary_factor' is %g, and Poise turns whole heads only (1)", reader->where,
             partial);
    if (rope->type == DECODER_ROPE_DEFAULT) return STATUS_OK;
    TRY(require_number(reader, "factor", &rope->factor));
    if (rope->type == DECODER_ROPE_LINEAR) return STATUS_OK;
    TRY(require_number(reader, "low_freq_factor", &rope->low));
    TRY(require_number(reader, "high_freq_factor", &rope->high));
    return config_number(reader, "original_max_position_embeddings", 1.0, 1e12, &rope->original_positions);
}

static status_t read_sections(config_reader_t *reader, config_reader_t *rope, model_config_t *out) {
    int section[3] = {16, 24, 24}, count = 3, half = out->head_dim / 2;
    bool given = rope && config_get(rope, "mrope_section");
    if (rope) TRY(config_integers(rope, "mrope_section", section, 3, &count));
    if (count != 3 || (int64_t)section[0] + section[1] + section[2] != half)
        FAIL(STATUS_INVALID,
             "%s: mrope_section (%d, %d, %d%s) must have three entries that sum to half the head size, %d",
             reader->where, section[0], section[1], section[2], given ? "" : ", the default", half);
    memcpy(out->decoder.rope_sections, section, sizeof(section));
    return STATUS_OK;
}

// Layer types under one roof: only families with two ropes have them.
static status_t refuse_nested(const config_reader_t *reader, const json_t *object) {
    const char *const kinds[] = {"full_attention", "sliding_attention"};
    for (int i = 0; i < 2; i++)
        if (json_is_object(json_object_get(object, kinds[i])))
            FAIL(STATUS_INVALID, "%s: rope_parameters by layer type ('%s') are not supported for this family",
                 reader->where, kinds[i]);
    return STATUS_OK;
}

static status_t read_one(config_reader_t *reader, const decoder_class_t *class, double positions, model_config_t *out) {
    const json_t *old, *new;
    decoder_rope_t *rope = &out->decoder.rope[0];
    TRY(config_object(reader, "rope_scaling", &old));
    TRY(config_object(reader, "rope_parameters", &new));
    *rope = (decoder_rope_t){.theta = class->theta, .original_positions = positions};
    TRY(config_number(reader, "rope_theta", 1e-6, 1e15, &rope->theta));
    // The older key wins where it says anything.
    const json_t *object = json_object_size(old) ? old : new;
    config_reader_t inner = config_reader(object, object == old ? "rope_scaling" : "rope_parameters");
    if (object) {
        TRY(refuse_nested(reader, object));
        TRY(read_object(&inner, true, class->sections, rope));
        // Beside rope's own keys this one counts more.
        TRY(config_number(reader, "original_max_position_embeddings", 1.0, 1e12, &rope->original_positions));
    }
    if (class->sections) TRY(read_sections(reader, object ? &inner : NULL, out));
    if (object) config_finish(&inner);
    return STATUS_OK;
}

// Gemma-3: older files scale the full layers' rope by rope_scaling, newer ones have an object for each layer type.
static status_t read_two(config_reader_t *reader, const decoder_class_t *class, double positions, model_config_t *out) {
    static const char *const kinds[] = {"full_attention", "sliding_attention"};
    static const char *const theta_keys[] = {"rope_theta", "rope_local_base_freq"};
    const double thetas[] = {class->theta, class->local_theta};
    const json_t *scaling, *parameters;
    TRY(config_object(reader, "rope_scaling", &scaling));
    TRY(config_object(reader, "rope_parameters", &parameters));
    config_reader_t outer = config_reader(parameters, "rope_parameters");
    for (int i = 0; i < 2; i++) {
        const json_t *object = NULL;
        decoder_rope_t *rope = &out->decoder.rope[i];
        *rope = (decoder_rope_t){.theta = thetas[i], .original_positions = positions};
        TRY(config_number(reader, theta_keys[i], 1e-6, 1e15, &rope->theta));
        if (parameters) TRY(config_object(&outer, kinds[i], &object));
        config_reader_t inner = config_reader(object, kinds[i]);
        if (object) TRY(read_object(&inner, false, false, rope));
        if (object) config_finish(&inner);
        if (i || !scaling) continue;
        inner = config_reader(scaling, "rope_scaling");
        TRY(read_object(&inner, false, false, rope));
        config_finish(&inner);
    }
    if (parameters) config_finish(&outer);
    return STATUS_OK;
}

status_t decoder_read_rope(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    double positions = class->max_positions, partial = 1.0;
    TRY(config_number(reader, "max_position_embeddings", 1.0, 1e12, &positions));
    TRY(config_number(reader, "partial_rotary_factor", 0.0, 1.0, &partial));
    if (partial < 1.0)
        FAIL(STATUS_INVALID, "%s: 'partial_rotary_factor' is %g, and Poise turns whole heads only (1)", reader->where,
             partial);
    out->decoder.two_ropes = class->two_ropes;
    out->decoder.rope_sections[0] = out->head_dim / 2;
    return class->two_ropes ? read_two(reader, class, positions, out) : read_one(reader, class, positions, out);
}

// Long waves are stretched by the factor, short ones stay, and those between go from one to the other. In fp32 and in
// the reference's order, reciprocals included: where the two ends are near each other its rounding shows.
static float llama3_scaled(const decoder_rope_t *rope, float frequency) {
    float low = (float)rope->low, original = (float)rope->original_positions, factor = (float)rope->factor;
    float wave = 1.0F / frequency * (float)(2.0 * pi);
    if (wave > (float)(rope->original_positions / rope->low)) return frequency / factor;
    if (wave < (float)(rope->original_positions / rope->high)) return frequency;
    float blend = (1.0F / wave * original - low) / (float)(rope->high - rope->low);
    return (1.0F - blend) * frequency / factor + blend * frequency;
}

void decoder_inverse_frequencies(const decoder_rope_t *rope, int head_dim, float *out) {
    for (int i = 0; i < head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)head_dim;
        out[i] = 1.0F / (float)pow((double)(float)rope->theta, (double)exponent);
        if (rope->type == DECODER_ROPE_LINEAR) out[i] /= (float)rope->factor;
        if (rope->type == DECODER_ROPE_LLAMA3) out[i] = llama3_scaled(rope, out[i]);
    }
}
