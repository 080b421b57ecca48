// Opening a folder: tokenizer.json, or else tokenizer.model, with what stands beside it.
#include "common/text/tokenizer_parts.h"

#include "common/store/store.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    FILE_LIMIT = 512 << 20,
    MATCH_LIMIT = 50000000, // steps of one match; patterns come from files
};

// ---- post-processors: which tokens stand around a text ----

static status_t add_frame(tokenizer_t *tokenizer, bool after, int64_t id) {
    int *count = after ? &tokenizer->afters : &tokenizer->befores;
    if (id < 0 || id > INT32_MAX) FAIL(STATUS_INVALID, "the post_processor adds a token of the id %lld", (long long)id);
    if (*count == TOKENIZER_FRAME_TOKENS)
        FAIL(STATUS_INVALID, "the post_processor adds more than %d tokens", TOKENIZER_FRAME_TOKENS);
    (after ? tokenizer->after : tokenizer->before)[(*count)++] = (int32_t)id;
    return STATUS_OK;
}

// A later processor's tokens stand outside an earlier one's.
static status_t add_outside(tokenizer_t *tokenizer, const int32_t *before, int befores) {
    if (tokenizer->befores + befores > TOKENIZER_FRAME_TOKENS)
        FAIL(STATUS_INVALID, "the post_processor adds more than %d tokens", TOKENIZER_FRAME_TOKENS);
    memmove(tokenizer->before + befores, tokenizer->before, (size_t)tokenizer->befores * sizeof(*before));
    memcpy(tokenizer->before, before, (size_t)befores * sizeof(*before));
    tokenizer->befores += befores;
    return STATUS_OK;
}

static status_t read_template_token(tokenizer_t *tokenizer, const json_t *value, const json_t *item, bool after,
                                    int32_t *before, int *befores) {
    const char *name = json_text(json_object_get(item, "SpecialToken"), "id");
    const json_t *ids = json_object_get(json_object_get(json_object_get(value, "special_tokens"), name), "ids"), *id;
    size_t i;
    // A converted tokenizer's template names tokens only.
    if (!ids && tokenizer_find(tokenizer, name) >= 0) {
        if (after) return add_frame(tokenizer, true, tokenizer_find(tokenizer, name));
        if (*befores == TOKENIZER_FRAME_TOKENS) FAIL(STATUS_INVALID, "the post_processor adds too many tokens");
        before[(*befores)++] = tokenizer_find(tokenizer, name);
        return STATUS_OK;
    }
    if (!json_is_array(ids)) FAIL(STATUS_INVALID, "the post_processor has no ids for its token '%s'", name);
    json_array_foreach(ids, i, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            FAIL(STATUS_INVALID, "the post_processor has no usable id for its token '%s'", name);
        if (after) {
            TRY(add_frame(tokenizer, true, json_integer_value(id)));
        } else {
            if (*befores == TOKENIZER_FRAME_TOKENS) FAIL(STATUS_INVALID, "the post_processor adds too many tokens");
            before[(*befores)++] = (int32_t)json_integer_value(id);
        }
    }
    return STATUS_OK;
}

static status_t read_template(tokenizer_t *tokenizer, const json_t *value) {
    const json_t *single = json_object_get(value, "single"), *item;
    int32_t before[TOKENIZER_FRAME_TOKENS];
    int befores = 0;
    bool after = false;
    size_t i;
    if (!json_is_array(single)) FAIL(STATUS_INVALID, "the post_processor TemplateProcessing has no 'single' list");
    json_array_foreach(single, i, item) {
        if (json_object_get(item, "Sequence")) {
            if (after) FAIL(STATUS_INVALID, "the post_processor repeats the text, which is not supported");
            after = true;
            continue;
        }
        TRY(read_template_token(tokenizer, value, item, after, before, &befores));
    }
    if (!after) FAIL(STATUS_INVALID, "the post_processor leaves the text out, which is not supported");
    return add_outside(tokenizer, before, befores);
}

static status_t read_post_processor(tokenizer_t *tokenizer, const json_t *value, int depth) {
    const char *type = json_text(value, "type");
    if (!json_is_set(value) || strcmp(type, "ByteLevel") == 0) return STATUS_OK;
    if (depth > TOKENIZER_DEPTH) FAIL(STATUS_INVALID, "the post_processor is nested too deeply");
    if (strcmp(type, "Sequence") == 0) {
        size_t i;
        json_t *item;
        json_array_foreach(json_object_get(value, "processors"), i, item)
            TRY(read_post_processor(tokenizer, item, depth + 1));
        return STATUS_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(tokenizer, value);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        const json_t *first = json_array_get(json_object_get(value, "cls"), 1);
        const json_t *last = json_array_get(json_object_get(value, "sep"), 1);
        int32_t id = (int32_t)json_integer_value(first);
        if (!json_is_integer(first) || !json_is_integer(last) || json_integer_value(first) < 0 ||
            json_integer_value(first) > INT32_MAX)
            FAIL(STATUS_INVALID, "the post_processor %s has no ids", type);
        TRY(add_frame(tokenizer, true, json_integer_value(last)));
        return add_outside(tokenizer, &id, 1);
    }
    FAIL(STATUS_INVALID,
         "the post_processor '%s' is not supported (ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing "
         "and "
         "Sequence are)",
         type);
}

// ---- the whole ----

// clean_up_tokenization_spaces: blanks before punctuation and contractions go from the whole decoded text. Of BPE
// models transformers does so only where the key with the long name says so.
static status_t read_cleanup(tokenizer_t *tokenizer, const json_t *config) {
    static const char *const pairs[][2] = {{" .", "."},     {" ?", "?"},     {" !", "!"},   {" ,", ","},
                                           {" ' ", "'"},    {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"},
                                           {" 've", "'ve"}, {" 're", "'re"}};
    bool forced = json_flag(config, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output");
    bool joins_by_blanks = !tokenizer->has_decoder;
    if (!json_flag(config, "clean_up_tokenization_spaces") || (tokenizer->kind == MODEL_BPE && !forced))
        return STATUS_OK;
    json_t *steps = json_pack("[{s:s}]", "type", "Fuse");
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String",
                                               pairs[i][0], "content", pairs[i][1]));
    json_t *whole = json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
    status_t status = whole ? tokenizer_read_decoder(tokenizer, whole, 0)
                            : STATUS_NEW(STATUS_MEMORY, "out of memory for a tokenizer");
    json_decref(whole);
    tokenizer->has_decoder = !joins_by_blanks;
    return status;
}

static status_t read_all(tokenizer_t *tokenizer, const json_t *config, const json_t *root) {
    TRY(tokenizer_read_normalizer(tokenizer, json_object_get(root, "normalizer"), 0));
    TRY(tokenizer_read_cuts(tokenizer, json_object_get(root, "pre_tokenizer"), 0));
    TRY(tokenizer_read_decoder(tokenizer, json_object_get(root, "decoder"), 0));
    TRY(tokenizer_read_model(tokenizer, root));
    TRY(read_cleanup(tokenizer, config));
    tokenizer->split_special = json_flag(config, "split_special_tokens");
    if (tokenizer->byte_level && tokenizer->kind != MODEL_BPE)
        FAIL(STATUS_INVALID, "the pre_tokenizer ByteLevel is supported with BPE models only");
    TRY(tokenizer_read_added(tokenizer, root));
    return read_post_processor(tokenizer, json_object_get(root, "post_processor"), 0);
}

static status_t load_json(const char *path, json_t **out) {
    char *text;
    size_t size;
    json_error_t error;
    TRY(file_read_whole(path, FILE_LIMIT, &text, &size));
    *out = json_loadb(text, size, JSON_ALLOW_NUL, &error);
    free(text);
    if (!*out) FAIL(STATUS_INVALID, "line %d: %s", error.line, error.text);
    if (json_is_object(*out)) return STATUS_OK;
    json_decref(*out);
    *out = NULL;
    FAIL(STATUS_INVALID, "the file holds no JSON object");
}

static status_t load_proto(const char *path, const tokenizer_config_t *config, json_t **out) {
    char *bytes;
    size_t size;
    bool builds;
    TRY(tokenizer_config_builds(config, NULL, &builds));
    TRY(file_read_whole(path, FILE_LIMIT, &bytes, &size));
    status_t status = tokenizer_read_proto(bytes, size, builds, config, out);
    free(bytes);
    return status;
}

static bool is_there(const char *path) {
    return access(path, R_OK) == 0;
}

static status_t open_folder(tokenizer_t *tokenizer, const char *directory, char *path, size_t bytes) {
    tokenizer_config_t config;
    json_t *root = NULL;
    status_t status = tokenizer_config_read(directory, &config);
    snprintf(path, bytes, "%s/tokenizer.model", directory);
    bool converted = is_there(path);
    snprintf(path, bytes, "%s/tokenizer.json", directory);
    converted = converted && !is_there(path);
    if (converted) snprintf(path, bytes, "%s/tokenizer.model", directory);
    if (!status) status = converted ? load_proto(path, &config, &root) : load_json(path, &root);
    if (!status) status = tokenizer_config_apply(&config, converted, root);
    if (!status) status = read_all(tokenizer, config.config, root);
    json_decref(root);
    tokenizer_config_free(&config);
    return status;
}

status_t tokenizer_open(const char *directory, tokenizer_t **out) {
    tokenizer_t *tokenizer;
    *out = NULL;
    size_t bytes = strlen(directory) + 32;
    char *path;
    TRY(memory_allocate(bytes, 1, (void **)&path));
    status_t status = ALLOCATE(&tokenizer, 1);
    if (!status) {
        tokenizer->limits = pcre2_match_context_create(NULL);
        if (tokenizer->limits) {
            pcre2_set_match_limit(tokenizer->limits, MATCH_LIMIT);
            status = open_folder(tokenizer, directory, path, bytes);
        } else {
            status = STATUS_NEW(STATUS_MEMORY, "out of memory");
        }
        if (status) tokenizer_close(tokenizer);
    }
    // Some errors name the file already.
    char *name = strrchr(path, '/');
    *name = 0;
    const char *named = status ? strstr(status_message(status), path) : NULL;
    *name = '/';
    if (status && !(named && named[name - path] == '/')) status = status_context(status, "%s", path);
    free(path);
    if (!status) *out = tokenizer;
    return status;
}

void tokenizer_close(tokenizer_t *tokenizer) {
    if (!tokenizer) return;
    for (int id = 0; id < tokenizer->size && tokenizer->entry; id++) {
        free(tokenizer->entry[id].text);
        free(tokenizer->entry[id].shown);
    }
    free(tokenizer->entry);
    free(tokenizer->word);
    free(tokenizer->merge);
    free(tokenizer->score);
    free(tokenizer->prefix);
    free(tokenizer->suffix);
    free(tokenizer->added);
    trie_free(&tokenizer->pieces);
    trie_free(&tokenizer->raw);
    trie_free(&tokenizer->normalised);
    for (int i = 0; i < tokenizer->normals; i++) normal_step_free(&tokenizer->normal[i]);
    for (int i = 0; i < tokenizer->cuts; i++) pattern_free(&tokenizer->cut[i].pattern);
    for (int i = 0; i < tokenizer->decodes; i++) {
        pattern_free(&tokenizer->decode[i].pattern);
        free(tokenizer->decode[i].content);
    }
    pcre2_match_context_free(tokenizer->limits);
    free(tokenizer);
}
