// What transformers makes of a folder's tokenizer.json. Its class, named by tokenizer_config.json or by the model's
// type, may put other normalizers, pre-tokenizers and decoders in place of the file's. Here the same is done to the
// JSON before it is read.
#include "common/text/tokenizer_parts.h"

#include "common/store/store.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONFIG_LIMIT = 64 << 20 };

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
    static const char *const names[] = {"config.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json"};
    json_t **into[] = {&out->model, &out->config, &out->map, &out->added};
    size_t bytes = strlen(directory) + 64;
    char *path;
    *out = (tokenizer_config_t){0};
    TRY(memory_allocate(bytes, 1, (void **)&path));
    status_t status = STATUS_OK;
    for (int i = 0; i < 4 && !status; i++) {
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
    json_decref(config->added);
}

status_t tokenizer_config_builds(const tokenizer_config_t *config, const json_t *root, bool *out) {
    const rebuild_t *class;
    TRY(choose_class(config->model, config->config, root, &class));
    *out = class != NULL;
    return STATUS_OK;
}

status_t tokenizer_config_names(const tokenizer_config_t *config, json_t **out) {
    const rebuild_t *class;
    special_tokens_t special;
    *out = NULL;
    TRY(choose_class(config->model, config->config, NULL, &class));
    status_t status = special_tokens_read(config, class ? class->defaults : NULL, NULL, false, &special);
    if (!status) *out = json_incref(special.named);
    special_tokens_free(&special);
    return status;
}

status_t tokenizer_config_apply(const tokenizer_config_t *config, bool converted, json_t *root) {
    const rebuild_t *class;
    special_tokens_t special;
    TRY(choose_class(config->model, config->config, root, &class));
    if (class) TRY(build_anew(class, config->config, root));
    status_t status = special_tokens_read(config, class ? class->defaults : NULL, root, converted, &special);
    if (!status && converted) status = special_tokens_frame(&special, config->config, root);
    if (!status) status = special_tokens_add(&special, class != NULL, class == &rebuilds[2], root);
    special_tokens_free(&special);
    return status;
}
