#include "common/text/chat.h"

#include "common/text/chat_template.h"
#include "common/vision/image_text.h"
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// ---- reading messages ----

static status_t add_image(chat_t *chat, const char *path) {
    size_t capacity = (size_t)chat->images; // grown one by one: pictures are few
    TRY(memory_grow((void **)&chat->image, &capacity, (size_t)chat->images + 1, sizeof(*chat->image)));
    TRY(memory_copy_string(path, &chat->image[chat->images]));
    chat->images++;
    return STATUS_OK;
}

// A picture's part as the template sees it: "image_url" becomes "image", as the processors have it.
static status_t read_image_part(json_t *part, size_t message, size_t place, chat_t *chat) {
    json_t *image = json_object_get(part, "image"), *url = json_object_get(part, "image_url");
    if (json_is_object(url)) url = json_object_get(url, "url");
    if (!image || json_is_null(image)) image = url;
    if (image && !json_is_null(image) && !json_is_string(image))
        FAIL(STATUS_INVALID, "part %zu of message %zu: 'image' must be the path of a picture", place + 1, message + 1);
    const char *path = json_is_string(image) ? json_string_value(image) : "";
    if (strncmp(path, "file://", 7) == 0) path += 7;
    TRY(add_image(chat, path));
    const char *type = json_string_value(json_object_get(part, "type"));
    if (!type || strcmp(type, "image_url") != 0) return STATUS_OK;
    json_object_set_new(part, "type", json_string("image"));
    if (url) json_object_set(part, "url", url);
    json_object_del(part, "image_url");
    return STATUS_OK;
}

static status_t read_part(json_t *part, size_t message, size_t place, chat_t *chat) {
    if (!json_is_object(part)) FAIL(STATUS_INVALID, "part %zu of message %zu is no object", place + 1, message + 1);
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *text = json_object_get(part, "text");
    bool image = type ? strcmp(type, "image") == 0 || strcmp(type, "image_url") == 0
                      : json_object_get(part, "image") || json_object_get(part, "image_url");
    if (image) return read_image_part(part, message, place, chat);
    if (type && strcmp(type, "text") != 0)
        FAIL(STATUS_INVALID, "part %zu of message %zu has the type '%s'; 'text' and 'image' are supported", place + 1,
             message + 1, type);
    if (!json_is_string(text)) FAIL(STATUS_INVALID, "part %zu of message %zu has no 'text'", place + 1, message + 1);
    return STATUS_OK;
}

// Members that are null are as good as absent, as in the reference.
static void drop_nulls(json_t *message) {
    const char *key;
    json_t *member;
    void *next;
    json_object_foreach_safe(message, next, key, member) {
        if (json_is_null(member)) json_object_del(message, key);
    }
}

// What an assistant thought goes by several names; templates read the first.
static void name_reasoning(json_t *message) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (int i = 0; i < 3; i++) {
        json_t *reasoning = json_object_get(message, names[i]);
        if (!reasoning) continue;
        if (!json_object_get(message, "thinking")) json_object_set(message, "thinking", reasoning);
        json_object_set(message, "reasoning_content", reasoning);
        return;
    }
}

static status_t read_message(json_t *message, size_t place, chat_t *chat) {
    const char *role = json_string_value(json_object_get(message, "role"));
    json_t *part;
    size_t i;
    if (!role || !*role) FAIL(STATUS_INVALID, "message %zu has no 'role'", place + 1);
    drop_nulls(message);
    name_reasoning(message);
    json_t *content = json_object_get(message, "content");
    bool calls = json_object_get(message, "tool_calls");
    if (!json_is_string(content) && !json_is_array(content) && !(calls && !content))
        FAIL(STATUS_INVALID, "message %zu has no 'content' (a string or a list of parts)", place + 1);
    if (json_array_size(content) > INT_MAX / 2) FAIL(STATUS_INVALID, "message %zu has too many parts", place + 1);
    json_array_foreach(content, i, part) TRY(read_part(part, place, i, chat));
    return STATUS_OK;
}

status_t chat_read(const json_t *messages, chat_t *out) {
    size_t i;
    json_t *message;
    *out = (chat_t){0};
    if (!json_is_array(messages) || json_array_size(messages) == 0 || json_array_size(messages) > INT_MAX)
        FAIL(STATUS_INVALID, "'messages' must be a list of one message or more");
    out->messages = json_deep_copy(messages);
    if (!out->messages) FAIL(STATUS_MEMORY, "out of memory while reading messages");
    json_array_foreach(out->messages, i, message) {
        status_t status = read_message(message, i, out);
        if (status) {
            chat_free(out);
            return status;
        }
    }
    return STATUS_OK;
}

// Variables that follow from the rest of the line or from what is asked of it.
static status_t check_variable(const char *name) {
    static const char *const taken[] = {
        "messages", "conversation",          "tools", "add_generation_prompt", "chat_template",
        "tokenize", "continue_final_message"};
    for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
        if (strcmp(name, taken[i]) == 0)
            FAIL(STATUS_INVALID, "'chat_template_kwargs' cannot set '%s'; leave it out", name);
    return STATUS_OK;
}

// Data sets whose columns have one type keep the list as a string of JSON.
static status_t read_tools(const json_t *line, chat_t *chat) {
    json_t *list = json_object_get(line, "tools"), *tool;
    size_t i;
    if (!list || json_is_null(list)) return STATUS_OK;
    json_t *parsed = json_is_string(list) ? json_loads(json_string_value(list), 0, NULL) : json_incref(list);
    bool array = json_is_array(parsed), failed = array && json_object_set(chat->variables, "tools", parsed);
    json_decref(parsed);
    if (failed) FAIL(STATUS_MEMORY, "out of memory while reading messages");
    if (!array) FAIL(STATUS_INVALID, "'tools' must be a list of objects");
    json_array_foreach(json_object_get(chat->variables, "tools"), i, tool) {
        if (!json_is_object(tool)) FAIL(STATUS_INVALID, "element %zu of 'tools' is no object", i + 1);
    }
    return STATUS_OK;
}

static status_t read_variables(const json_t *line, chat_t *chat) {
    const json_t *more = json_object_get(line, "chat_template_kwargs");
    const char *name;
    json_t *value;
    chat->variables = json_object();
    if (!chat->variables) FAIL(STATUS_MEMORY, "out of memory while reading messages");
    TRY(read_tools(line, chat));
    if (!more || json_is_null(more)) return STATUS_OK;
    if (!json_is_object(more)) FAIL(STATUS_INVALID, "'chat_template_kwargs' must be an object");
    json_object_foreach((json_t *)(uintptr_t)more, name, value) {
        TRY(check_variable(name));
        if (json_object_set(chat->variables, name, value)) FAIL(STATUS_MEMORY, "out of memory while reading messages");
    }
    return STATUS_OK;
}

status_t chat_read_line(const json_t *line, const json_t *messages, chat_t *out) {
    TRY(chat_read(messages, out));
    status_t status = read_variables(line, out);
    if (status) chat_free(out);
    return status;
}

void chat_free(chat_t *chat) {
    for (int i = 0; i < chat->images; i++) free(chat->image[i]);
    free(chat->image);
    json_decref(chat->variables);
    json_decref(chat->messages);
    *chat = (chat_t){0};
}

status_t chat_render(const chat_template_t *chat_template, const chat_t *chat, bool generation_prompt, char **out) {
    template_text_t text;
    TRY(chat_template_render(chat_template, chat->messages, chat->variables, generation_prompt, &text));
    *out = text.text;
    free(text.given);
    return STATUS_OK;
}

// ---- pictures ----

typedef struct expansion {
    const image_rules_t *rules;
    const image_shape_t *shapes;
    int images;
    char *mark, *image, *start, *end; // spellings
} expansion_t;

static status_t spelling(const tokenizer_t *tokenizer, int id, char **out) {
    const char *text = id < 0 ? "" : tokenizer_spelling(tokenizer, id, NULL);
    if (!text) FAIL(STATUS_INVALID, "no token has the id %d", id);
    return memory_copy_string(text, out);
}

static status_t read_spellings(const tokenizer_t *tokenizer, expansion_t *e) {
    status_t status = spelling(tokenizer, image_text_mark(e->rules), &e->mark);
    if (!status) status = spelling(tokenizer, e->rules->image_token, &e->image);
    bool framed = image_text_mark(e->rules) != e->rules->image_token;
    if (!status) status = spelling(tokenizer, framed ? e->rules->vision_start : -1, &e->start);
    if (!status) status = spelling(tokenizer, framed ? e->rules->vision_end : -1, &e->end);
    if (!status && (!*e->mark || !*e->image))
        status = STATUS_NEW(STATUS_INVALID, "the tokenizer has no token that stands for a picture");
    return status_context(status, "the tokenizer does not belong to the model");
}

static void free_spellings(expansion_t *e) {
    free(e->mark);
    free(e->image);
    free(e->start);
    free(e->end);
}

// The template's next mark at or after `from`: one that users spelled is text. NULL: there is none.
static const char *next_mark(const template_text_t *text, const char *mark, size_t from) {
    size_t length = strlen(mark);
    for (const char *at = text->text + from;; at += length) {
        at = memmem(at, text->length - (size_t)(at - text->text), mark, length);
        if (!at || memchr(text->given + (at - text->text), 0, length)) return at;
    }
}

typedef struct growing_text {
    char *text, *given;
    size_t length, capacity, given_capacity;
} growing_text_t;

static status_t append(growing_text_t *out, const char *bytes, const char *given, size_t length) {
    TRY(memory_grow((void **)&out->text, &out->capacity, out->length + length + 1, 1));
    TRY(memory_grow((void **)&out->given, &out->given_capacity, out->length + length + 1, 1));
    memcpy(out->text + out->length, bytes, length);
    if (given)
        memcpy(out->given + out->length, given, length);
    else
        memset(out->given + out->length, 0, length);
    out->length += length;
    return STATUS_OK;
}

static status_t expand_into(const template_text_t *text, const expansion_t *e, growing_text_t *out) {
    size_t done = 0;
    int marks = 0;
    for (const char *at = text->text; (at = next_mark(text, e->mark, (size_t)(at - text->text))); at += strlen(e->mark))
        marks++;
    if (marks != e->images)
        FAIL(STATUS_INVALID, "the chat template writes %d image marks ('%s') and there are %d images", marks, e->mark,
             e->images);
    for (int i = 0; i < marks; i++) {
        char *picture;
        size_t at = (size_t)(next_mark(text, e->mark, done) - text->text);
        TRY(append(out, text->text + done, text->given + done, at - done));
        TRY(image_text_expand(e->rules, &e->shapes[i], e->image, e->start, e->end, &picture));
        status_t status = append(out, picture, NULL, strlen(picture));
        free(picture);
        TRY(status);
        done = at + strlen(e->mark);
    }
    return append(out, text->text + done, text->given + done, text->length - done);
}

// Puts every picture's text in place of its mark.
static status_t expand(const tokenizer_t *tokenizer, template_text_t *text, expansion_t *e) {
    growing_text_t grown = {0};
    status_t status = read_spellings(tokenizer, e);
    if (!status) status = expand_into(text, e, &grown);
    free_spellings(e);
    if (status) {
        free(grown.text);
        free(grown.given);
        return status;
    }
    template_text_free(text);
    *text = (template_text_t){.text = grown.text, .given = grown.given, .length = grown.length};
    return STATUS_OK;
}

static status_t count_tokens(const token_list_t *list, int from, const expansion_t *e) {
    int64_t wanted = 0, found = 0;
    for (int i = 0; i < e->images; i++) wanted += e->shapes[i].feature_rows;
    for (int i = from; i < list->count; i++) found += list->id[i] == e->rules->image_token;
    if (found != wanted)
        FAIL(STATUS_INVALID,
             "the pictures become %lld image tokens and the text has %lld; the tokenizer does not belong to the model",
             (long long)wanted, (long long)found);
    return STATUS_OK;
}

// Tokenizers take a template's text as it is. Processors put a beginning-of-text token before it, and whatever else the
// tokenizer puts around a text, unless the template has begun with that token: LLaVA-NeXT's leaves it to them.
static status_t encode_text(const chat_template_t *chat_template, const tokenizer_t *tokenizer,
                            const template_text_t *text, token_list_t *out) {
    const char *first = json_string_value(json_object_get(chat_template->tokens, "bos_token"));
    bool begun = first && strncmp(text->text, first, strlen(first)) == 0 && (!*first || !text->given[0]);
    return chat_template->processor && !begun
               ? tokenizer_encode_whole(tokenizer, text->text, text->given, text->length, out)
               : tokenizer_encode_marked(tokenizer, text->text, text->given, text->length, out);
}

// Whether the beginning of a text stands in what the template wrote. Templates strip blanks.
static bool is_written(const json_t *words, const template_text_t *text) {
    enum { ENOUGH = 24 };
    const char *from = json_string_value(words);
    size_t length = json_string_length(words);
    while (length && strchr(" \t\r\n", *from)) from++, length--;
    while (length && strchr(" \t\r\n", from[length - 1])) length--;
    return !length || memmem(text->text, text->length, from, length < ENOUGH ? length : ENOUGH);
}

static int find_dropped(const chat_t *chat, const template_text_t *text) {
    const json_t *message, *part;
    size_t i, at;
    json_array_foreach(chat->messages, i, message) {
        const char *role = json_string_value(json_object_get(message, "role"));
        const json_t *content = json_object_get(message, "content");
        if (!role || strcmp(role, "user") != 0) continue;
        bool written = !json_is_string(content) || is_written(content, text);
        json_array_foreach(content, at, part) {
            const json_t *words = json_object_get(part, "text");
            written = written && (!json_is_string(words) || is_written(words, text));
        }
        if (!written) return (int)i + 1;
    }
    return 0;
}

void chat_tell_dropped(const chat_t *chat, bool *told, FILE *out) {
    if (*told || !chat->dropped) return;
    *told = true;
    fprintf(out,
            "warning: the folder's chat template leaves out the text of message %d; it may want 'content' as a list of "
            "parts ({\"type\": \"text\", \"text\": ...}) or as plain text\n",
            chat->dropped);
}

status_t chat_encode(const chat_template_t *chat_template, const tokenizer_t *tokenizer, chat_t *chat,
                     bool generation_prompt, const image_rules_t *rules, const image_shape_t *shapes,
                     token_list_t *out) {
    expansion_t expansion = {.rules = rules, .shapes = shapes, .images = chat->images};
    template_text_t text;
    int count = out->count;
    TRY(chat_template_render(chat_template, chat->messages, chat->variables, generation_prompt, &text));
    chat->dropped = find_dropped(chat, &text);
    status_t status = chat->images ? expand(tokenizer, &text, &expansion) : STATUS_OK;
    if (!status) status = encode_text(chat_template, tokenizer, &text, out);
    template_text_free(&text);
    if (!status && chat->images) status = count_tokens(out, count, &expansion);
    if (status) out->count = count;
    return status;
}

// ---- an assistant's turn ----

static const char probe[] = "Zqxj";

// Renders one exchange whose answer is the probe, or, to be answered, its question alone.
static status_t render_probe(const chat_template_t *chat_template, bool parts, bool answered, template_text_t *out) {
    json_t *messages =
        parts ? json_pack("[{s:s, s:[{s:s, s:s}]}, {s:s, s:[{s:s, s:s}]}]", "role", "user", "content", "type", "text",
                          "text", "a", "role", "assistant", "content", "type", "text", "text", probe)
              : json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "user", "content", "a", "role", "assistant", "content",
                          probe);
    if (!messages || (!answered && json_array_remove(messages, 1))) {
        json_decref(messages);
        FAIL(STATUS_MEMORY, "out of memory while rendering a chat");
    }
    status_t status = chat_template_render(chat_template, messages, NULL, !answered, out);
    json_decref(messages);
    return status;
}

// The special token that follows the probe at once, or -1.
static status_t find_end(const tokenizer_t *tokenizer, const template_text_t *text, const char *at, int32_t *out) {
    token_list_t list = {0};
    size_t after = (size_t)(at - text->text) + strlen(probe);
    TRY(tokenizer_encode(tokenizer, text->text + after, text->length - after, true, &list));
    status_t status = STATUS_OK;
    if (list.count && list.offset[0] == 0) {
        bool special = false;
        (void)tokenizer_spelling(tokenizer, list.id[0], &special);
        *out = special ? list.id[0] : -1;
    }
    token_list_free(&list);
    return status;
}

// The opening is the generation prompt and the blanks that the template puts between it and the response. Anything else
// there (an empty trace of reasoning, for one) is nothing that generation would begin with.
static status_t find_opening(const tokenizer_t *tokenizer, const template_text_t *prompt, const char *whole,
                             const char *at, chat_turn_t *turn) {
    size_t blanks = 0;
    if ((size_t)(at - whole) > prompt->length && memcmp(whole, prompt->text, prompt->length) == 0) {
        blanks = (size_t)(at - whole) - prompt->length;
        if (strspn(whole + prompt->length, " \t\r\n") < blanks) blanks = 0;
    }
    turn->length = prompt->length + blanks;
    TRY(memory_allocate(turn->length + 1, 1, (void **)&turn->opening));
    TRY(memory_allocate(turn->length + 1, 1, (void **)&turn->given));
    memcpy(turn->opening, prompt->text, prompt->length);
    memcpy(turn->given, prompt->given, prompt->length);
    memcpy(turn->opening + prompt->length, whole + prompt->length, blanks);
    return tokenizer_encode_marked(tokenizer, prompt->text, prompt->given, prompt->length, &turn->prompt);
}

static status_t read_turn(const chat_template_t *chat_template, const tokenizer_t *tokenizer, bool parts,
                          chat_turn_t *turn) {
    template_text_t whole, prompt;
    TRY(render_probe(chat_template, parts, true, &whole));
    const char *at = memmem(whole.text, whole.length, probe, strlen(probe));
    status_t status = at ? find_end(tokenizer, &whole, at, &turn->end) : STATUS_OK;
    if (!status && at) {
        status = render_probe(chat_template, parts, false, &prompt);
        if (!status) {
            status = find_opening(tokenizer, &prompt, whole.text, at, turn);
            template_text_free(&prompt);
        }
    }
    template_text_free(&whole);
    return status;
}

status_t chat_turn_open(const chat_template_t *chat_template, const tokenizer_t *tokenizer, chat_turn_t *out) {
    *out = (chat_turn_t){.end = -1};
    for (int parts = 0; parts < 2 && !out->opening; parts++) {
        status_t status = read_turn(chat_template, tokenizer, parts, out);
        if (!status) continue;
        // Templates that take no strings, or no lists, say so.
        chat_turn_close(out);
        out->end = -1;
        if (status_kind(status) == STATUS_MEMORY) return status;
        status_free(status);
    }
    const char *eos = json_string_value(json_object_get(chat_template->tokens, "eos_token"));
    if (out->end < 0 && eos) out->end = tokenizer_find(tokenizer, eos);
    return STATUS_OK;
}

void chat_turn_close(chat_turn_t *turn) {
    free(turn->opening);
    free(turn->given);
    token_list_free(&turn->prompt);
    *turn = (chat_turn_t){0};
}

// Ids of opening and response together; they count where they begin with the generation prompt's.
static status_t encode_behind(const chat_turn_t *turn, const tokenizer_t *tokenizer, const char *text, size_t length,
                              token_list_t *list) {
    char *joined, *given;
    size_t all = turn->length + length;
    if (all < length) FAIL(STATUS_INVALID, "the response is too long");
    TRY(memory_allocate(all + 1, 1, (void **)&joined));
    status_t status = memory_allocate(all + 1, 1, (void **)&given);
    if (!status) {
        memcpy(joined, turn->opening, turn->length);
        memcpy(joined + turn->length, text, length);
        memcpy(given, turn->given, turn->length);
        memset(given + turn->length, 1, length);
        status = tokenizer_encode_marked(tokenizer, joined, given, all, list);
        free(given);
    }
    free(joined);
    return status;
}

status_t chat_encode_response(const chat_turn_t *turn, const tokenizer_t *tokenizer, const char *text, size_t length,
                              token_list_t *out) {
    token_list_t list = {0};
    int skip = turn->prompt.count;
    if (!turn->opening) return tokenizer_encode(tokenizer, text, length, false, out);
    status_t status = encode_behind(turn, tokenizer, text, length, &list);
    bool follows = !status && list.count >= skip &&
                   (!skip || memcmp(list.id, turn->prompt.id, sizeof(*list.id) * (size_t)skip) == 0);
    if (!status && !follows) status = tokenizer_encode(tokenizer, text, length, false, out);
    for (int i = skip; follows && !status && i < list.count; i++)
        status = token_list_add(out, list.id[i], list.offset[2 * i], list.offset[2 * i + 1]);
    token_list_free(&list);
    return status;
}
