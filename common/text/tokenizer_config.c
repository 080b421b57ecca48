// What transformers makes of a folder's tokenizer.json. Its class, named by tokenizer_config.json or by the model's
// type, may put other normalizers, pre-tokenizers and decoders in place of the file's; and tokenizer_config.json and
// special_tokens_map.json add tokens. Here the same is done to the JSON before it is read.
#include "common/text/tokenizer_parts.h"

#include "common/store/store.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONFIG_LIMIT = 64 << 20 };

const char *const tokenizer_named_tokens[NAMED_TOKENS] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                          "pad_token", "cls_token", "mask_token"};

// A class that builds the tokenizer anew from the vocabulary. The texts are JSON; NULL fields stand for null.
typedef struct rebuild {
    const char *name;
    const char *normalizer, *pre_tokenizer, *decoder;
    bool fuse_unknown, byte_fallback, keeps_unknown;
    const char *defaults[NAMED_TOKENS]; // in the order of tokenizer_named_tokens
} rebuild_t;

#define SPACE_DECODERS                                                                                                 \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},"  \
    "{\"type\":\"Fuse\"}"
#define QWEN_PATTERN                                                                                                   \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "                                  \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static const rebuild_t rebuilds[] = {
    {.name = "LlamaTokenizer",
     .pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"split\":false}",
     .decoder = "{\"type\":\"Sequence\",\"decoders\":[" SPACE_DECODERS
                ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}",
     .fuse_unknown = true,
     .byte_fallback = true,
     .defaults = {"<s>", "</s>", "<unk>"}},
    {.name = "GemmaTokenizer",
     .normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}",
     .pre_tokenizer =
         "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}",
     .decoder = "{\"type\":\"Sequence\",\"decoders\":[" SPACE_DECODERS "]}",
     .fuse_unknown = true,
     .byte_fallback = true,
     .keeps_unknown = true,
     .defaults = {"<bos>", "<eos>", "<unk>", NULL, "<pad>", NULL, "<mask>"}},
    {.name = "Qwen2Tokenizer",
     .normalizer = "{\"type\":\"NFC\"}",
     .pre_tokenizer =
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" QWEN_PATTERN
         "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":"
         "false,\"use_regex\":false}]}",
     .decoder = "{\"type\":\"ByteLevel\"}",
     .defaults = {NULL, "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>"}},
    {.name = "GPT2Tokenizer",
     .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}",
     .decoder = "{\"type\":\"ByteLevel\"}",
     .defaults = {"<|endoftext|>", "<|endoftext|>", "<|endoftext|>"}},
};

// ---- which class ----

typedef struct family {
    const char *model, *tokenizer;
    bool overrules; // a class named by the folder
} family_t;

static const family_t families[] = {
    {"mistral", "MistralCommonBackend", false}, {"llava_next", "TokenizersBackend", true},
    {"llava", "TokenizersBackend", true},       {"qwen2", "Qwen2Tokenizer", true},
    {"qwen2_vl", "Qwen2Tokenizer", false},      {"qwen2_5_vl", "Qwen2Tokenizer", false},
    {"gemma", "GemmaTokenizer", false},         {"gemma2", "GemmaTokenizer", false},
    {"gemma3", "GemmaTokenizer", false},        {"gemma3_text", "GemmaTokenizer", false},
};

// Classes that build anew in ways that are not followed here.
static const char *const other_classes[] = {"CodeLlamaTokenizer",  "GPTNeoXTokenizer", "CohereTokenizer", "T5Tokenizer",
                                            "XLMRobertaTokenizer", "RobertaTokenizer", "BertTokenizer"};

static const rebuild_t *find_rebuild(const char *name, size_t length) {
    for (size_t i = 0; i < sizeof(rebuilds) / sizeof(rebuilds[0]); i++)
        if (strlen(rebuilds[i].name) == length && memcmp(rebuilds[i].name, name, length) == 0) return &rebuilds[i];
    return NULL;
}

static bool names_byte_level(const json_t *root) {
    char *text = json_dumps(json_object_get(root, "pre_tokenizer"), JSON_ENCODE_ANY);
    char *more = json_dumps(json_object_get(root, "decoder"), JSON_ENCODE_ANY);
    bool found = (text && strstr(text, "\"ByteLevel\"")) || (more && strstr(more, "\"ByteLevel\""));
    free(text);
    free(more);
    return found;
}

// The class that builds anew, or NULL where tokenizer.json stands as it is.
static status_t choose_class(const json_t *model, const json_t *config, const json_t *root, const rebuild_t **out) {
    const char *named = json_text(config, "tokenizer_class"), *type = json_text(model, "model_type");
    if (!*named) named = json_text(model, "tokenizer_class");
    size_t length = strlen(named);
    const family_t *family = NULL;
    *out = NULL;
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        if (strcmp(families[i].model, type) == 0) family = &families[i];
    if (length > 4 && strcmp(named + length - 4, "Fast") == 0) length -= 4;
    const rebuild_t *by_name = find_rebuild(named, length);
    const rebuild_t *by_family = family ? find_rebuild(family->tokenizer, strlen(family->tokenizer)) : NULL;
    bool llama = by_name == &rebuilds[0];
    if (llama && !(family && family->overrules) && strcmp(type, "mistral") != 0 && names_byte_level(root))
        return STATUS_OK;
    if (family && (!by_family || !length || family->overrules || by_name == by_family)) {
        *out = by_family;
        return STATUS_OK;
    }
    for (size_t i = 0; i < sizeof(other_classes) / sizeof(other_classes[0]); i++)
        if (strlen(other_classes[i]) == length && memcmp(other_classes[i], named, length) == 0)
            FAIL(STATUS_INVALID, "the tokenizer class '%s' is not supported", named);
    *out = by_name;
    return STATUS_OK;
}

// ---- building anew ----

static status_t set_json(json_t *root, const char *key, const char *text) {
    json_t *value = text ? json_loads(text, JSON_DECODE_ANY, NULL) : json_null();
    if (!value || json_object_set_new(root, key, value)) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

static status_t set_flags(const rebuild_t *class, const json_t *config, json_t *root) {
    json_t *model = json_object_get(root, "model");
    const json_t *given = json_object_get(config, "unk_token");
    if (json_is_object(given)) given = json_object_get(given, "content");
    const char *unknown = json_is_string(given) ? json_string_value(given) : class->defaults[2];
    int failed = json_object_set_new(model, "fuse_unk", json_boolean(class->fuse_unknown)) |
                 json_object_set_new(model, "byte_fallback", json_boolean(class->byte_fallback)) |
                 json_object_set_new(model, "ignore_merges", json_false()) |
                 json_object_set_new(model, "continuing_subword_prefix", json_null()) |
                 json_object_set_new(model, "end_of_word_suffix", json_null()) |
                 json_object_set_new(model, "dropout", json_null()) |
                 json_object_set_new(model, "unk_token", class->keeps_unknown ? json_string(unknown) : json_null());
    if (failed) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

// LlamaTokenizer asks the configuration where blanks are put in front.
static status_t set_spaces(const rebuild_t *class, const json_t *config, json_t *root) {
    const json_t *space = json_object_get(config, "add_prefix_space");
    json_t *cut = json_object_get(root, "pre_tokenizer");
    if (class == &rebuilds[0]) {
        bool prefix = !json_is_false(space);
        const char *scheme = !prefix ? "never" : json_flag(config, "legacy") ? "always" : "first";
        if (json_object_set_new(cut, "prepend_scheme", json_string(scheme)))
            FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
        if (!prefix) TRY(set_json(root, "decoder", "{\"type\":\"Sequence\",\"decoders\":[" SPACE_DECODERS "]}"));
        return STATUS_OK;
    }
    if (!json_is_true(space) || class == &rebuilds[1]) return STATUS_OK;
    json_t *list = json_object_get(cut, "pretokenizers");
    if (list) cut = json_array_get(list, json_array_size(list) - 1);
    if (json_object_set_new(cut, "add_prefix_space", json_true())) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

static status_t build_anew(const rebuild_t *class, const json_t *config, json_t *root) {
    if (!json_is_object(json_object_get(json_object_get(root, "model"), "vocab")))
        FAIL(STATUS_INVALID, "the tokenizer class '%s' needs a BPE model", class->name);
    TRY(set_json(root, "normalizer", class->normalizer));
    TRY(set_json(root, "pre_tokenizer", class->pre_tokenizer));
    TRY(set_json(root, "decoder", class->decoder));
    TRY(set_flags(class, config, root));
    return set_spaces(class, config, root);
}

// ---- added tokens ----

static const char *token_text(const json_t *token) {
    return json_is_string(token) ? json_string_value(token) : json_text(token, "content");
}

// A token as added_tokens has it. A plain text is special and not normalised.
static json_t *make_token(const json_t *token, bool special) {
    bool plain = json_is_string(token);
    const json_t *normalised = json_object_get(token, "normalized");
    special |= plain || json_flag(token, "special");
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b}", "content", token_text(token), "single_word",
                     json_flag(token, "single_word"), "lstrip", json_flag(token, "lstrip"), "rstrip",
                     json_flag(token, "rstrip"), "normalized",
                     plain        ? 0
                     : normalised ? json_is_true(normalised)
                                  : !special,
                     "special", special);
}

static status_t put_token(json_t *list, const json_t *token, bool special) {
    if (!*token_text(token)) return STATUS_OK;
    json_t *made = make_token(token, special);
    if (!made || json_array_append_new(list, made)) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

// The texts of a list's tokens as keys, with the last token of each.
static status_t index_tokens(const json_t *list, json_t **out) {
    const json_t *item;
    size_t i;
    *out = json_object();
    if (!*out) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    json_array_foreach(list, i, item) {
        const char *text = token_text(item);
        if (*text && json_object_set_nocheck(*out, text, (json_t *)(uintptr_t)item))
            FAIL(STATUS_MEMORY, "out of memory for added tokens");
    }
    return STATUS_OK;
}

static int compare_keys(const void *a, const void *b) {
    long left = strtol(*(const char *const *)a, NULL, 10), right = strtol(*(const char *const *)b, NULL, 10);
    return (left > right) - (left < right);
}

// added_tokens_decoder {"id": token} as a list by id.
static status_t list_decoder(const json_t *decoder, json_t *out) {
    size_t count = json_object_size(decoder), i = 0;
    const char **keys, *key;
    json_t *token;
    status_t status = STATUS_OK;
    TRY(ALLOCATE(&keys, count + 1));
    json_object_foreach((json_t *)(uintptr_t)decoder, key, token) keys[i++] = key;
    if (count) qsort(keys, count, sizeof(*keys), compare_keys);
    for (i = 0; i < count && !status; i++) status = put_token(out, json_object_get(decoder, keys[i]), false);
    free((void *)keys);
    return status;
}

// The configuration's tokens by name, what special_tokens_map.json says included, then the extra ones.
// `root` has those that a tokenizer.model brought.
static status_t list_named(const rebuild_t *class, const json_t *config, const json_t *map, const json_t *root,
                           json_t *out) {
    const json_t *extra = NULL, *item;
    const char *key;
    size_t i;
    for (i = 0; i < NAMED_TOKENS; i++) {
        const json_t *token = json_object_get(map, tokenizer_named_tokens[i]);
        bool given = token || json_object_get(config, tokenizer_named_tokens[i]);
        if (!token) token = json_object_get(config, tokenizer_named_tokens[i]);
        if (!given && !class) token = json_object_get(root, tokenizer_named_tokens[i]);
        json_t *standard = !given && class && class->defaults[i] ? json_string(class->defaults[i]) : NULL;
        status_t status = token || standard ? put_token(out, token ? token : standard, true) : STATUS_OK;
        json_decref(standard);
        TRY(status);
    }
    json_object_foreach((json_t *)(uintptr_t)config, key, item) {
        size_t length = strlen(key);
        bool known = length < 6 || strcmp(key + length - 6, "_token") != 0 || !json_is_string(item);
        for (i = 0; i < NAMED_TOKENS && !known; i++) known = strcmp(key, tokenizer_named_tokens[i]) == 0;
        if (!known) TRY(put_token(out, item, true));
    }
    if (map) extra = json_object_get(map, "extra_special_tokens");
    if (!extra && map) extra = json_object_get(map, "additional_special_tokens");
    if (!extra) extra = json_object_get(config, "extra_special_tokens");
    if (!json_is_set(extra) || (json_is_array(extra) && !json_array_size(extra)))
        extra = json_object_get(config, "additional_special_tokens");
    if (!extra) extra = json_object_get(root, "extra_special_tokens");
    json_array_foreach(extra, i, item) TRY(put_token(out, item, json_is_string(item)));
    json_object_foreach((json_t *)(uintptr_t)extra, key, item) TRY(put_token(out, item, true));
    return STATUS_OK;
}

// Appends to `list` what `more` has: in full where `all`, else only tokens of a text that `known` lacks.
static status_t add_tokens(json_t *list, json_t *known, const json_t *more, const json_t *flags, bool all) {
    json_t *item;
    size_t i;
    json_array_foreach(more, i, item) {
        const char *text = token_text(item);
        const json_t *full = flags ? json_object_get(flags, text) : NULL;
        if (!all && json_object_get(known, text)) continue;
        json_t *made = make_token(full ? full : item, flags != NULL && json_flag(item, "special"));
        if (!made || json_array_append(list, made) || json_object_set_new_nocheck(known, text, made))
            FAIL(STATUS_MEMORY, "out of memory for added tokens");
    }
    return STATUS_OK;
}

// Qwen2Tokenizer at last adds its named tokens as plain special ones.
static status_t add_plain(json_t *list, const json_t *named) {
    const json_t *item;
    size_t i;
    json_array_foreach(named, i, item) {
        json_t *plain = json_string(token_text(item));
        status_t status = plain ? put_token(list, plain, true) : STATUS_NEW(STATUS_MEMORY, "out of memory");
        json_decref(plain);
        TRY(status);
    }
    return STATUS_OK;
}

static status_t merge_added(const rebuild_t *class, const json_t *config, const json_t *map, json_t *root) {
    const json_t *decoder = json_object_get(config, "added_tokens_decoder");
    json_t *own = json_object_get(root, "added_tokens"), *list = json_array(), *more = json_array(),
           *named = json_array(), *known = NULL, *flags = NULL;
    status_t status = list && more && named ? STATUS_OK : STATUS_NEW(STATUS_MEMORY, "out of memory for added tokens");
    if (!status && json_is_object(decoder)) status = list_decoder(decoder, more);
    if (!status && json_is_array(own) && (!class || !decoder))
        status = json_array_extend(class ? more : list, own) ? STATUS_NEW(STATUS_MEMORY, "out of memory") : STATUS_OK;
    if (!status) status = index_tokens(list, &known);
    if (!status) status = index_tokens(decoder || class ? more : list, &flags);
    if (!status) status = list_named(class, config, decoder ? NULL : map, root, named);
    if (!status) status = add_tokens(list, known, more, NULL, true);
    if (!status) status = add_tokens(list, known, named, flags, false);
    if (!status && class == &rebuilds[2]) status = add_plain(list, named);
    if (!status && json_object_set(root, "added_tokens", list))
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for added tokens");
    json_decref(list);
    json_decref(more);
    json_decref(named);
    json_decref(known);
    json_decref(flags);
    return status;
}

// ---- the frame of a converted tokenizer ----

static status_t frame_token(const char *key, const rebuild_t *class, const json_t *config, json_t *root,
                            json_t *template) {
    const json_t *token = json_object_get(config, key);
    const char *text = json_is_set(token) ? token_text(token) : "";
    int place = strcmp(key, "bos_token") == 0 ? 0 : 1;
    if (!token && class && class->defaults[place]) text = class->defaults[place];
    if (!token && !class) text = json_text(root, key);
    if (!*text) return STATUS_OK;
    json_t *item = json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", text, "type_id", 0);
    json_t *single = json_object_get(template, "single");
    if (!item || (place ? json_array_append_new(single, item) : json_array_insert_new(single, 0, item)))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

// Where there was no tokenizer.json, add_bos_token and add_eos_token say what is put around a text.
static status_t set_frame(const rebuild_t *class, const json_t *config, json_t *root) {
    json_t *template = json_pack("{s:s, s:[{s:{s:s, s:i}}]}", "type", "TemplateProcessing", "single", "Sequence", "id",
                                 "A", "type_id", 0);
    if (!template) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    status_t status = STATUS_OK;
    if (json_flag(config, "add_bos_token")) status = frame_token("bos_token", class, config, root, template);
    if (!status && json_flag(config, "add_eos_token")) status = frame_token("eos_token", class, config, root, template);
    if (!status && json_object_set(root, "post_processor", template))
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for a tokenizer");
    json_decref(template);
    return status;
}

// ---- files ----

status_t tokenizer_read_object(const char *path, json_t **out) {
    char *text;
    size_t size;
    json_error_t error;
    *out = NULL;
    if (access(path, R_OK) != 0) return STATUS_OK;
    TRY(file_read_whole(path, CONFIG_LIMIT, &text, &size));
    // model_max_length is often written as 10^30, which is no whole number for the parser.
    *out = json_loadb(text, size, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    free(text);
    if (*out && json_is_object(*out)) return STATUS_OK;
    json_decref(*out);
    bool parsed = *out;
    *out = NULL;
    if (parsed) FAIL(STATUS_INVALID, "%s: the file holds no JSON object", path);
    FAIL(STATUS_INVALID, "%s: line %d: %s", path, error.line, error.text);
}

status_t tokenizer_config_read(const char *directory, tokenizer_config_t *out) {
    static const char *const names[] = {"config.json", "tokenizer_config.json", "special_tokens_map.json"};
    json_t **into[] = {&out->model, &out->config, &out->map};
    size_t bytes = strlen(directory) + 64;
    char *path;
    *out = (tokenizer_config_t){0};
    TRY(memory_allocate(bytes, 1, (void **)&path));
    status_t status = STATUS_OK;
    for (int i = 0; i < 3 && !status; i++) {
        snprintf(path, bytes, "%s/%s", directory, names[i]);
        status = tokenizer_read_object(path, into[i]);
    }
    free(path);
    return status;
}

void tokenizer_config_free(tokenizer_config_t *config) {
    json_decref(config->model);
    json_decref(config->config);
    json_decref(config->map);
}

status_t tokenizer_config_builds(const tokenizer_config_t *config, const json_t *root, bool *out) {
    const rebuild_t *class;
    TRY(choose_class(config->model, config->config, root, &class));
    *out = class != NULL;
    return STATUS_OK;
}

status_t tokenizer_config_names(const tokenizer_config_t *config, const char *const **out) {
    const rebuild_t *class;
    TRY(choose_class(config->model, config->config, NULL, &class));
    *out = class ? class->defaults : NULL;
    return STATUS_OK;
}

status_t tokenizer_config_apply(const tokenizer_config_t *config, bool converted, json_t *root) {
    const rebuild_t *class;
    TRY(choose_class(config->model, config->config, root, &class));
    if (class) TRY(build_anew(class, config->config, root));
    if (converted) TRY(set_frame(class, config->config, root));
    return merge_added(class, config->config, config->map, root);
}
