// Where a folder keeps its chat template and the names of its special tokens.
#include "common/text/chat_template.h"

#include "common/store/store.h"
#include "common/text/tokenizer_parts.h"
#include <stdint.h>
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
    char *path;
    *out = NULL;
    TRY(path_in(directory, name, &path));
    status_t status = tokenizer_read_object(path, out);
    free(path);
    return status;
}

// ---- special tokens ----

// The named tokens' texts.
static status_t read_tokens(const tokenizer_config_t *files, json_t **out) {
    json_t *named, *token;
    const char *name;
    TRY(tokenizer_config_names(files, &named));
    *out = json_object();
    bool whole = *out;
    json_object_foreach(named, name, token) {
        if (json_is_object(token)) token = json_object_get(token, "content");
        if (json_is_string(token)) whole = whole && json_object_set(*out, name, token) == 0;
    }
    json_decref(named);
    if (!whole) FAIL(STATUS_MEMORY, "out of memory while reading a chat template");
    return STATUS_OK;
}

// ---- the template ----

// One of several templates by its name, or NULL.
static const json_t *named_template(const json_t *value, const char *name) {
    const json_t *item, *found = json_object_get(value, name);
    size_t i;
    json_array_foreach(value, i, item) {
        const char *here = json_string_value(json_object_get(item, "name"));
        if (here && strcmp(here, name) == 0) found = json_object_get(item, "template");
    }
    return found;
}

// A template as a string, or the one named "default" of several.
static status_t choose(const json_t *value, const char *place, const char **out) {
    const json_t *chosen = value;
    *out = NULL;
    if (json_is_null(value) || !value) return STATUS_OK;
    if (json_is_object(value) || json_is_array(value)) chosen = named_template(value, "default");
    if (!json_is_string(chosen)) FAIL(STATUS_INVALID, "%s: 'chat_template' holds no template named 'default'", place);
    *out = json_string_value(chosen);
    return STATUS_OK;
}

static status_t parse(chat_template_t *made, const char *place, const char *source, size_t length) {
    TRY(memory_copy_string(place, &made->place));
    return status_context(template_parse(source, length, &made->parsed), "the chat template in %s", place);
}

// The template for samples with tools, where a tokenizer has one beside the other; processors do not look for it. It is
// parsed where it is used, so that a folder without such samples is not refused for what it holds.
static status_t keep_tools(chat_template_t *made, const char *source) {
    if (made->processor || made->tools || !source) return STATUS_OK;
    return memory_copy_string(source, &made->tools);
}

static status_t from_object(chat_template_t *made, const char *directory, const char *name, const json_t *object) {
    char *place;
    const char *source;
    if (made->parsed || !json_object_get(object, "chat_template")) return STATUS_OK;
    TRY(path_in(directory, name, &place));
    status_t status = choose(json_object_get(object, "chat_template"), place, &source);
    if (!status && source) status = parse(made, place, source, strlen(source));
    const json_t *tools = named_template(json_object_get(object, "chat_template"), "tool_use");
    if (!status) status = keep_tools(made, json_string_value(tools));
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
    if (!made->parsed) return STATUS_OK;
    char *text;
    size_t length;
    TRY(read_file(directory, "additional_chat_templates/tool_use.jinja", &text, &length));
    status_t status = keep_tools(made, text);
    free(text);
    return status;
}

static bool has_file(const char *directory, const char *name) {
    char path[4096];
    return snprintf(path, sizeof(path), "%s/%s", directory, name) < (int)sizeof(path) && access(path, F_OK) == 0;
}

static status_t read_template(chat_template_t *made, const char *directory, const json_t *config) {
    // Processors and tokenizers look in other places first.
    made->processor = has_file(directory, "preprocessor_config.json") || has_file(directory, "processor_config.json");
    if (made->processor) {
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
    tokenizer_config_t files;
    TRY(ALLOCATE(&made, 1));
    status_t status = tokenizer_config_read(directory, &files);
    if (!status) status = read_template(made, directory, files.config);
    if (!status) status = read_tokens(&files, &made->tokens);
    tokenizer_config_free(&files);
    if (status)
        chat_template_close(made);
    else
        *out = made;
    return status;
}

void chat_template_close(chat_template_t *chat_template) {
    if (!chat_template) return;
    template_free(chat_template->parsed);
    free(chat_template->tools);
    json_decref(chat_template->tokens);
    free(chat_template->place);
    free(chat_template);
}

status_t chat_template_render(const chat_template_t *chat_template, const json_t *messages, const json_t *variables,
                              bool generation_prompt, template_text_t *out) {
    json_t *given = json_pack("{s:O, s:n, s:n, s:b}", "messages", messages, "tools", "documents",
                              "add_generation_prompt", (int)generation_prompt);
    json_t *own = json_copy(chat_template->tokens), *value;
    const char *name;
    bool whole = given && own;
    json_object_foreach((json_t *)(uintptr_t)variables, name, value) {
        whole = whole && json_object_set(given, name, value) == 0;
        json_object_del(own, name);
    }
    template_t *tools = NULL;
    status_t status = whole ? STATUS_OK : STATUS_NEW(STATUS_MEMORY, "out of memory while rendering a chat");
    if (!status && chat_template->tools && !json_is_null(json_object_get(given, "tools")))
        status = status_context(template_parse(chat_template->tools, strlen(chat_template->tools), &tools),
                                "the template 'tool_use'");
    if (!status) status = template_render(tools ? tools : chat_template->parsed, given, own, out);
    template_free(tools);
    json_decref(given);
    json_decref(own);
    return status_context(status, "the chat template in %s", chat_template->place);
}
