// Where a folder keeps its chat template and the names of its special tokens.
#include "common/text/chat_template.h"

#include "common/store/store.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_LIMIT = 64 << 20 };

static status_t path_in(const char *directory, const char *name, char **out) {
    size_t bytes = strlen(directory) + strlen(name) + 2;
    TRY(memory_allocate(bytes, 1, (void **)out));
    snprintf(*out, bytes, "%s/%s", directory, name);
    return STATUS_OK;
}

// A file of the folder, whole; *out NULL where there is none.
static status_t read_file(const char *directory, const char *name, char **out, size_t *length) {
    char *path;
    *out = NULL;
    TRY(path_in(directory, name, &path));
    status_t status = access(path, F_OK) == 0 ? file_read_whole(path, FILE_LIMIT, out, length) : STATUS_OK;
    free(path);
    return status;
}

// A JSON object of the folder; *out NULL where there is no such file.
static status_t read_object(const char *directory, const char *name, json_t **out) {
    char *text;
    size_t length;
    json_error_t error;
    *out = NULL;
    TRY(read_file(directory, name, &text, &length));
    if (!text) return STATUS_OK;
    // Version 5 writes model_max_length as 10^30, which no integer of the library holds.
    *out = json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    free(text);
    if (!*out) FAIL(STATUS_INVALID, "%s/%s:%d: not valid JSON: %s", directory, name, error.line, error.text);
    if (json_is_object(*out)) return STATUS_OK;
    json_decref(*out);
    *out = NULL;
    FAIL(STATUS_INVALID, "%s/%s is no JSON object", directory, name);
}

// ---- special tokens ----

static const char *const token_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};
enum { TOKEN_NAMES = sizeof(token_names) / sizeof(token_names[0]) };

// What the reference's classes name their tokens where the folder says nothing, in the order of token_names.
static const struct {
    const char *class, *token[TOKEN_NAMES];
} defaults[] = {
    {"LlamaTokenizer", {"<s>", "</s>", "<unk>"}},
    {"GemmaTokenizer", {"<bos>", "<eos>", "<unk>", NULL, "<pad>", NULL, "<mask>"}},
    {"Qwen2Tokenizer", {NULL, "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>"}},
    {"GPT2Tokenizer", {"<|endoftext|>", "<|endoftext|>", "<|endoftext|>"}},
};

static void add_defaults(const json_t *config, json_t *tokens) {
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    for (size_t d = 0; class && d < sizeof(defaults) / sizeof(defaults[0]); d++) {
        size_t length = strlen(defaults[d].class);
        if (strncmp(class, defaults[d].class, length) != 0 || (class[length] && strcmp(class + length, "Fast") != 0))
            continue;
        for (int i = 0; i < TOKEN_NAMES; i++)
            if (defaults[d].token[i]) json_object_set_new(tokens, token_names[i], json_string(defaults[d].token[i]));
    }
}

// A token is a string, or an object that holds it; null takes a default away.
static void add_tokens(const json_t *from, json_t *tokens) {
    for (int i = 0; i < TOKEN_NAMES; i++) {
        json_t *token = json_object_get(from, token_names[i]);
        if (json_is_null(token)) json_object_del(tokens, token_names[i]);
        if (json_is_object(token)) token = json_object_get(token, "content");
        if (json_is_string(token)) json_object_set(tokens, token_names[i], token);
    }
}

static status_t read_tokens(const char *directory, const json_t *config, json_t **out) {
    *out = json_object();
    if (!*out) FAIL(STATUS_MEMORY, "out of memory while reading a chat template");
    add_defaults(config, *out);
    add_tokens(config, *out);
    if (json_object_get(config, "added_tokens_decoder")) return STATUS_OK;
    json_t *map;
    TRY(read_object(directory, "special_tokens_map.json", &map));
    add_tokens(map, *out);
    json_decref(map);
    return STATUS_OK;
}

// ---- the template ----

// A template as a string, or the one named "default" of several.
static status_t choose(const json_t *value, const char *place, const char **out) {
    const json_t *item, *chosen = value;
    size_t i;
    *out = NULL;
    if (json_is_null(value) || !value) return STATUS_OK;
    if (json_is_object(value)) chosen = json_object_get(value, "default");
    if (json_is_array(value)) {
        chosen = NULL;
        json_array_foreach(value, i, item) {
            const char *name = json_string_value(json_object_get(item, "name"));
            if (name && strcmp(name, "default") == 0) chosen = json_object_get(item, "template");
        }
    }
    if (!json_is_string(chosen)) FAIL(STATUS_INVALID, "%s: 'chat_template' holds no template named 'default'", place);
    *out = json_string_value(chosen);
    return STATUS_OK;
}

static status_t parse(chat_template_t *made, const char *place, const char *source, size_t length) {
    TRY(memory_copy_string(place, &made->place));
    return status_context(template_parse(source, length, &made->parsed), "the chat template in %s", place);
}

static status_t from_object(chat_template_t *made, const char *directory, const char *name, const json_t *object) {
    char *place;
    const char *source;
    if (made->parsed || !json_object_get(object, "chat_template")) return STATUS_OK;
    TRY(path_in(directory, name, &place));
    status_t status = choose(json_object_get(object, "chat_template"), place, &source);
    if (!status && source) status = parse(made, place, source, strlen(source));
    free(place);
    return status;
}

static status_t from_json_file(chat_template_t *made, const char *directory, const char *name) {
    json_t *object;
    if (made->parsed) return STATUS_OK;
    TRY(read_object(directory, name, &object));
    status_t status = from_object(made, directory, name, object);
    json_decref(object);
    return status;
}

static status_t from_jinja(chat_template_t *made, const char *directory) {
    static const char *const names[] = {"chat_template.jinja", "chat_templates/default.jinja"};
    for (int i = 0; i < 2 && !made->parsed; i++) {
        char *text, *place;
        size_t length;
        TRY(read_file(directory, names[i], &text, &length));
        if (!text) continue;
        status_t status = path_in(directory, names[i], &place);
        if (!status) {
            status = parse(made, place, text, length);
            free(place);
        }
        free(text);
        TRY(status);
    }
    return STATUS_OK;
}

static bool has_file(const char *directory, const char *name) {
    char path[4096];
    return snprintf(path, sizeof(path), "%s/%s", directory, name) < (int)sizeof(path) && access(path, F_OK) == 0;
}

static status_t read_template(chat_template_t *made, const char *directory, const json_t *config) {
    // Processors and tokenizers look in other places first.
    bool processor = has_file(directory, "preprocessor_config.json") || has_file(directory, "processor_config.json");
    if (processor) {
        TRY(from_json_file(made, directory, "processor_config.json"));
        TRY(from_json_file(made, directory, "chat_template.json"));
    }
    TRY(from_jinja(made, directory));
    TRY(from_object(made, directory, "tokenizer_config.json", config));
    TRY(from_json_file(made, directory, "chat_template.json"));
    if (!made->parsed)
        FAIL(STATUS_INVALID,
             "%s has no chat template, so that 'messages' cannot be read; add the model's chat_template.jinja, or give "
             "'prompt_ids'",
             directory);
    return STATUS_OK;
}

status_t chat_template_open(const char *directory, chat_template_t **out) {
    chat_template_t *made;
    json_t *config = NULL;
    TRY(ALLOCATE(&made, 1));
    status_t status = read_object(directory, "tokenizer_config.json", &config);
    if (!status) status = read_template(made, directory, config);
    if (!status) status = read_tokens(directory, config, &made->tokens);
    json_decref(config);
    if (status)
        chat_template_close(made);
    else
        *out = made;
    return status;
}

void chat_template_close(chat_template_t *chat_template) {
    if (!chat_template) return;
    template_free(chat_template->parsed);
    json_decref(chat_template->tokens);
    free(chat_template->place);
    free(chat_template);
}

status_t chat_template_render(const chat_template_t *chat_template, const json_t *messages, bool generation_prompt,
                              template_text_t *out) {
    json_t *given = json_pack("{s:O, s:n, s:n, s:b}", "messages", messages, "tools", "documents",
                              "add_generation_prompt", (int)generation_prompt);
    if (!given) FAIL(STATUS_MEMORY, "out of memory while rendering a chat");
    status_t status = template_render(chat_template->parsed, given, chat_template->tokens, out);
    json_decref(given);
    return status_context(status, "the chat template in %s", chat_template->place);
}
