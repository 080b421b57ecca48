// config.json of a text decoder: both spellings, the class's defaults where a key is absent.
#include "common/model/decoder.h"

#include <math.h>
#include <string.h>

enum { MAX_WIDTH = 1 << 20, MAX_HEADS = 1 << 14, MAX_VOCABULARY = 1 << 24 };

static bool is_null(const config_reader_t *reader, const char *key) {
    return json_is_null(json_object_get(reader->object, key));
}

// ---- sizes ----

static status_t read_heads(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    out->heads = class->heads;
    TRY(config_integer(reader, "num_attention_heads", 1, MAX_HEADS, &out->heads));
    out->kv_heads = class->kv_heads && !is_null(reader, "num_key_value_heads") ? class->kv_heads : out->heads;
    TRY(config_integer(reader, "num_key_value_heads", 1, MAX_HEADS, &out->kv_heads));
    if ((class->whole_heads && out->hidden % out->heads) || out->heads % out->kv_heads)
        FAIL(STATUS_INVALID,
             "%s: hidden_size %d must be a multiple of num_attention_heads %d, and that of num_key_value_heads %d",
             reader->where, out->hidden, out->heads, out->kv_heads);
    int quotient = out->hidden / out->heads, size = class->head_dim ? class->head_dim : quotient;
    TRY(config_integer(reader, "head_dim", 1, ATTENTION_MAX_HEAD_DIM, &size));
    bool fits = !class->fixed_head_dim || size == quotient;
    if (!fits || size < 1 || size % 2 || size > ATTENTION_MAX_HEAD_DIM)
        FAIL(STATUS_INVALID,
             "%s: a head size of %d (hidden_size %d over %d heads) is not possible here: it must be %s%d",
             reader->where, size, out->hidden, out->heads, fits ? "even and at most " : "",
             fits ? (int)ATTENTION_MAX_HEAD_DIM : quotient);
    out->head_dim = size;
    return STATUS_OK;
}

static status_t read_sizes(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    double eps = class->rms_eps;
    out->vocabulary = class->vocabulary;
    out->hidden = class->hidden;
    out->intermediate = class->intermediate;
    out->layers = class->layers;
    TRY(config_integer(reader, "vocab_size", 2, MAX_VOCABULARY, &out->vocabulary));
    TRY(config_integer(reader, "hidden_size", 1, MAX_WIDTH, &out->hidden));
    TRY(config_integer(reader, "intermediate_size", 1, MAX_WIDTH, &out->intermediate));
    TRY(config_integer(reader, "num_hidden_layers", 1, DECODER_MAX_LAYERS, &out->layers));
    TRY(config_number(reader, "rms_norm_eps", 0.0, 1.0, &eps));
    out->rms_eps = (float)eps;
    return read_heads(reader, class, out);
}

// ---- token ids ----

static status_t read_tokens(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    out->bos_token = is_null(reader, "bos_token_id") ? -1 : class->bos;
    out->eos_tokens[0] = class->eos;
    out->eos_token_count = class->eos >= 0 && !is_null(reader, "eos_token_id");
    int count = 0, pad = is_null(reader, "pad_token_id") ? INT32_MIN : class->pad < 0 ? INT32_MIN : class->pad;
    TRY(config_integers(reader, "bos_token_id", &out->bos_token, 1, &count));
    TRY(config_integers(reader, "eos_token_id", out->eos_tokens, 8, &out->eos_token_count));
    TRY(config_integer(reader, "pad_token_id", -MAX_VOCABULARY, INT32_MAX, &pad));
    out->pad_token = pad >= 0 ? pad : -1;
    // As PyTorch's embedding takes it: a negative one counts from the end.
    if (pad < 0 && pad >= -out->vocabulary) pad += out->vocabulary;
    out->decoder.padding = pad >= 0 && pad < out->vocabulary ? pad : -1;
    return STATUS_OK;
}

// ---- what a layer is made of ----

static status_t read_activation(config_reader_t *reader, const decoder_class_t *class, activation_t *out) {
    static const struct {
        const char *name;
        activation_t kind;
    } kinds[] = {{"silu", ACTIVATION_SILU},
                 {"swish", ACTIVATION_SILU},
                 {"gelu", ACTIVATION_GELU_ERF},
                 {"gelu_python", ACTIVATION_GELU_ERF},
                 {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH},
                 {"gelu_new", ACTIVATION_GELU_TANH},
                 {"gelu_fast", ACTIVATION_GELU_TANH},
                 {"quick_gelu", ACTIVATION_QUICK_GELU}};
    const json_t *value = config_get(reader, class->activation_key);
    const char *text = value ? json_string_value(value) : NULL;
    *out = class->activation;
    if (!value) return STATUS_OK;
    for (size_t i = 0; text && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        *out = kinds[i].kind;
        if (!strcmp(text, kinds[i].name)) return STATUS_OK;
    }
    FAIL(STATUS_INVALID,
         "%s: '%s' is '%.32s', and Poise supports only 'silu', 'gelu', 'gelu_pytorch_tanh', 'quick_gelu'",
         reader->where, class->activation_key, text ? text : "no text");
}

static status_t refuse_unless_off(config_reader_t *reader, const char *key) {
    const json_t *value = config_get(reader, key);
    if (!value || json_is_false(value)) return STATUS_OK;
    FAIL(STATUS_INVALID, "%s: '%s' is set, and Poise does not support it", reader->where, key);
}

static status_t read_rules(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    decoder_config_t *decoder = &out->decoder;
    bool attention = false;
    double scalar = class->query_scalar;
    if (class->attention_bias_key) TRY(config_boolean(reader, "attention_bias", &attention));
    if (class->mlp_bias_key) TRY(config_boolean(reader, "mlp_bias", &decoder->mlp_bias));
    decoder->qkv_bias = class->qkv_bias || attention;
    decoder->o_bias = attention;
    decoder->head_norms = class->head_norms;
    decoder->four_norms = class->four_norms;
    decoder->norm = class->norm;
    TRY(read_activation(reader, class, &decoder->activation));
    if (class->query_scalar > 0.0) {
        TRY(config_number(reader, "query_pre_attn_scalar", 1e-6, 1e9, &scalar));
        TRY(refuse_unless_off(reader, "final_logit_softcapping"));
        // The class takes this key and does nothing with it: where it says something, the user hears of it.
        const char *const unused[] = {"attn_logit_softcapping", NULL};
        if (!json_is_number(json_object_get(reader->object, unused[0]))) config_ignore(reader, unused);
        TRY(refuse_unless_off(reader, "use_bidirectional_attention"));
    } else {
        scalar = out->head_dim;
    }
    decoder->attention_scale = (float)pow(scalar, -0.5);
    decoder->embedding_scale = class->scaled_embedding ? (float)sqrt(out->hidden) : 0.0F;
    out->tied_embeddings = class->tied;
    return config_boolean(reader, "tie_word_embeddings", &out->tied_embeddings);
}

// ---- windows ----

static status_t read_layer_types(config_reader_t *reader, model_config_t *out, bool *given) {
    const char *const kinds[] = {"full_attention", "sliding_attention"};
    const json_t *types = config_get(reader, "layer_types");
    *given = types != NULL;
    if (!types) return STATUS_OK;
    if (!json_is_array(types) || json_array_size(types) != (size_t)out->layers)
        FAIL(STATUS_INVALID, "%s: 'layer_types' must be a list of %d entries", reader->where, out->layers);
    for (int i = 0; i < out->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (!type || (strcmp(type, kinds[0]) != 0 && strcmp(type, kinds[1]) != 0))
            FAIL(STATUS_INVALID, "%s: 'layer_types' may hold '%s' and '%s'", reader->where, kinds[0], kinds[1]);
        out->decoder.sliding[i] = !strcmp(type, kinds[1]);
    }
    return STATUS_OK;
}

static status_t read_windows(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    decoder_config_t *decoder = &out->decoder;
    bool use = class->windows != DECODER_WINDOW_FROM, typed = false, some = false;
    int window = is_null(reader, "sliding_window") ? 0 : class->window;
    int first = class->first_window_layer, pattern = 6;
    if (class->windows == DECODER_WINDOW_NONE) return STATUS_OK;
    TRY(config_integer(reader, "sliding_window", 1, INT32_MAX, &window));
    if (class->windows == DECODER_WINDOW_FROM) {
        TRY(config_boolean(reader, "use_sliding_window", &use));
        TRY(config_integer(reader, "max_window_layers", 0, INT32_MAX, &first));
    }
    if (class->windows == DECODER_WINDOW_PATTERN) {
        const char *const older[] = {"_sliding_window_pattern", NULL};
        config_ignore(reader, older);
        TRY(config_integer(reader, "sliding_window_pattern", 1, INT32_MAX, &pattern));
    }
    if (class->windows != DECODER_WINDOW_ALL) TRY(read_layer_types(reader, out, &typed));
    for (int i = 0; i < out->layers; i++) {
        bool slides = class->windows == DECODER_WINDOW_ALL    ? window > 0
                      : class->windows == DECODER_WINDOW_FROM ? window > 0 && i >= first
                                                              : (i + 1) % pattern != 0;
        decoder->sliding[i] = use && (typed ? decoder->sliding[i] : slides);
        some = some || decoder->sliding[i];
    }
    if (some && !window)
        FAIL(STATUS_INVALID, "%s: layers slide over a window, and 'sliding_window' is null", reader->where);
    decoder->window = window;
    return STATUS_OK;
}

status_t decoder_read_config(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) {
    TRY(read_sizes(reader, class, out));
    TRY(read_tokens(reader, class, out));
    TRY(read_rules(reader, class, out));
    TRY(decoder_read_rope(reader, class, out));
    TRY(read_windows(reader, class, out));
    if (class->ignored) config_ignore(reader, class->ignored);
    config_ignore_common(reader);
    return STATUS_OK;
}

status_t decoder_read_text_family(const json_t *config, const decoder_class_t *class, model_config_t *out) {
    out->image = (image_rules_t){.image_token = -1, .vision_start = -1, .vision_end = -1};
    config_reader_t root = config_reader(config, "config.json");
    TRY(decoder_read_config(&root, class, out));
    config_finish(&root);
    return STATUS_OK;
}
