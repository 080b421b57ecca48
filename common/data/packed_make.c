// `poise pack`: JSON Lines and image files -> one HDF5 file.
#include "common/data/packed_format.h"
#include "common/data/packed_messages.h"

#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_IMAGES = 1024, IMAGE_LIMIT = 1 << 30 };
#define LIST_LIMIT ((size_t)4 << 30)

// A list that grows, of any item size.
typedef struct growing {
    void *data;
    size_t count, capacity;
} growing_t;

static status_t append(growing_t *list, const void *items, size_t count, size_t size) {
    TRY(memory_grow(&list->data, &list->capacity, list->count + count, size));
    if (count) memcpy((char *)list->data + list->count * size, items, count * size);
    list->count += count;
    return STATUS_OK;
}

// The first file of a content. Its bytes are read again when the output is written: data sets do not fit in memory.
typedef struct picture {
    char *path;
    uint64_t hash;
    size_t size;
    image_shape_t shape;
    int32_t number; // in the file; -1 until a sample that stays uses it
} picture_t;

typedef struct maker {
    const packed_options_t *options;
    FILE *report;
    packed_counts_t *counts;
    model_t *model; // configuration only
    tokenizer_t *tokenizer;
    chat_template_t *chat_template;
    char *folder; // image paths are relative to the input file's
    chat_turn_t turn;
    growing_t tokens, segments, sample_start, prompt_length, image_use, image_use_start, option_start, string_start,
        string_data;
    growing_t image_start, image_hash;
    growing_t pictures; // picture_t
    int32_t *table;     // hash table of pictures: index + 1, 0 = free
    size_t table_size;
    int64_t options_total;
    bool told_dropped; // the warning of chat_tell_dropped was written
} maker_t;

// One line on its way into the file.
typedef struct line_data {
    token_list_t prompt, response;
    uint8_t *segments; // of the response
    char *response_text;
    int32_t picture[MOST_IMAGES]; // indices
    image_shape_t shape[MOST_IMAGES];
    int images;
} line_data_t;

// ---- images ----

static picture_t *picture_at(const maker_t *m, size_t index) {
    return (picture_t *)m->pictures.data + index;
}

static status_t table_grow(maker_t *m) {
    size_t size = m->table_size ? 2 * m->table_size : 1024;
    int32_t *table;
    TRY(ALLOCATE(&table, size));
    for (size_t i = 0; i < m->pictures.count; i++) {
        size_t at = picture_at(m, i)->hash % size;
        while (table[at]) at = (at + 1) % size;
        table[at] = (int32_t)i + 1;
    }
    free(m->table);
    m->table = table;
    m->table_size = size;
    return STATUS_OK;
}

// The index of the picture with these bytes, added when it is new.
static status_t image_add(maker_t *m, const char *path, const char *bytes, size_t size, int32_t *index) {
    picture_t made = {.hash = XXH3_64bits(bytes, size), .size = size, .number = -1};
    if (2 * (m->pictures.count + 1) > m->table_size) TRY(table_grow(m));
    size_t at = made.hash % m->table_size;
    for (; m->table[at]; at = (at + 1) % m->table_size)
        if (picture_at(m, (size_t)m->table[at] - 1)->hash == made.hash) {
            *index = m->table[at] - 1;
            return STATUS_OK;
        }
    // Decoded once here, so that a damaged picture shows now and not in the middle of a run.
    image_patches_t *patches;
    TRY(image_patches_make(&m->model->config.image, bytes, size, &patches));
    made.shape = patches->shape;
    image_patches_free(patches);
    TRY(memory_copy_string(path, &made.path));
    status_t status = append(&m->pictures, &made, 1, sizeof(made));
    if (status) {
        free(made.path);
        return status;
    }
    *index = (int32_t)m->pictures.count - 1;
    m->table[at] = *index + 1;
    return STATUS_OK;
}

// The number of a picture in the file; the first sample that stays and uses it gives it the next one.
static status_t image_number(maker_t *m, int32_t index, int32_t *number) {
    picture_t *picture = picture_at(m, (size_t)index);
    if (picture->number < 0) {
        const int64_t *starts = m->image_start.data;
        int64_t end = starts[m->image_start.count - 1] + (int64_t)picture->size, hash = (int64_t)picture->hash;
        TRY(append(&m->image_start, &end, 1, sizeof(end)));
        TRY(append(&m->image_hash, &hash, 1, sizeof(hash)));
        picture->number = (int32_t)m->image_hash.count - 1;
    }
    *number = picture->number;
    return STATUS_OK;
}

static status_t image_read(maker_t *m, const char *name, line_data_t *line) {
    char path[4096];
    char *bytes;
    size_t size;
    int32_t index = 0;
    if (line->images == MOST_IMAGES) FAIL(STATUS_INVALID, "a sample may have at most %d images", MOST_IMAGES);
    if (strstr(name, "://") || strncmp(name, "data:", 5) == 0)
        FAIL(STATUS_INVALID, "the image '%.80s' is no file; download it and give its path", name);
    int length = *name == '/' ? snprintf(path, sizeof(path), "%s", name)
                              : snprintf(path, sizeof(path), "%s/%s", m->folder, name);
    if (!*name || length >= (int)sizeof(path)) FAIL(STATUS_INVALID, "an image has no usable file name");
    TRY(file_read_whole(path, IMAGE_LIMIT, &bytes, &size));
    status_t status = status_context(image_add(m, path, bytes, size, &index), "the image %s", path);
    free(bytes);
    TRY(status);
    line->picture[line->images] = index;
    line->shape[line->images++] = picture_at(m, (size_t)index)->shape;
    return STATUS_OK;
}

// ---- one line ----

static status_t read_prompt(maker_t *m, const json_t *json, const json_t *messages, line_data_t *line) {
    chat_t chat;
    TRY(chat_read_line(json, messages, &chat));
    status_t status = STATUS_OK;
    if (chat.images && !m->model->config.has_vision)
        status = STATUS_NEW(STATUS_INVALID, "the sample has images and the model has no vision");
    for (int i = 0; !status && i < chat.images; i++) status = image_read(m, chat.image[i], line);
    if (!status)
        status = chat_encode(m->chat_template, m->tokenizer, &chat, true, &m->model->config.image, line->shape,
                             &line->prompt);
    if (!status) chat_tell_dropped(&chat, &m->told_dropped, m->report);
    chat_free(&chat);
    return status;
}

// Tokens and segments of the response, the end of the turn included.
static status_t read_response(maker_t *m, line_data_t *line) {
    char *text = NULL; // of the tokens: what generation would give, and what offsets count in
    int32_t *offsets = NULL;
    size_t length;
    if (!line->response_text) return STATUS_OK;
    TRY(chat_encode_response(&m->turn, m->tokenizer, line->response_text, strlen(line->response_text),
                             &line->response));
    int count = line->response.count;
    TRY(ALLOCATE(&line->segments, count + 1));
    TRY(ALLOCATE(&offsets, 2 * count + 2));
    status_t status = tokenizer_decode_offsets(m->tokenizer, line->response.id, count, false, &text, &length, offsets);
    if (!status) answer_segments(text, length, offsets, count, line->segments);
    free(text);
    free(offsets);
    TRY(status);
    line->segments[count] = SEGMENT_ANSWER;
    return STATUS_OK;
}

static status_t append_string(maker_t *m, const char *text) {
    TRY(append(&m->string_data, text, strlen(text) + 1, 1));
    int64_t end = (int64_t)m->string_data.count;
    return append(&m->string_start, &end, 1, sizeof(end));
}

// A field that may be absent, text or number.
static status_t append_field(maker_t *m, const json_t *line, const char *name) {
    const json_t *value = json_object_get(line, name);
    char number[32];
    if (!value || json_is_null(value)) return append_string(m, "");
    if (json_is_string(value)) return append_string(m, json_string_value(value));
    if (json_is_boolean(value)) return append_string(m, json_is_true(value) ? "true" : "false");
    if (json_is_integer(value))
        snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(value));
    else
        snprintf(number, sizeof(number), "%.17g", json_number_value(value));
    return append_string(m, number);
}

static status_t check_fields(const json_t *line) {
    static const char *const names[] = {"id", "answer", "kind", "listing"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const json_t *value = json_object_get(line, names[i]);
        if (json_is_object(value) || json_is_array(value))
            FAIL(STATUS_INVALID, "'%s' must be text or a number", names[i]);
    }
    const json_t *options = json_object_get(line, "options");
    if (options && !json_is_null(options) && !json_is_array(options)) FAIL(STATUS_INVALID, "'options' must be a list");
    if (json_array_size(options) > ANSWER_MOST_OPTIONS)
        FAIL(STATUS_INVALID, "a question may have at most %d options", ANSWER_MOST_OPTIONS);
    for (size_t i = 0; i < json_array_size(options); i++)
        if (!json_is_string(json_array_get(options, i))) FAIL(STATUS_INVALID, "'options' must be a list of texts");
    return STATUS_OK;
}

static status_t append_texts(maker_t *m, const json_t *line, int64_t number) {
    const json_t *id = json_object_get(line, "id");
    char place[32];
    snprintf(place, sizeof(place), "%lld", (long long)number);
    if (id && !json_is_null(id))
        TRY(append_field(m, line, "id"));
    else
        TRY(append_string(m, place)); // a sample without an id is named by its place in the input
    TRY(append_field(m, line, "answer"));
    TRY(append_field(m, line, "kind"));
    TRY(append_field(m, line, "listing"));
    const json_t *options = json_object_get(line, "options");
    for (size_t i = 0; i < json_array_size(options); i++)
        TRY(append_string(m, json_string_value(json_array_get(options, i))));
    m->options_total += (int64_t)json_array_size(options);
    return append(&m->option_start, &m->options_total, 1, sizeof(m->options_total));
}

static status_t append_sample(maker_t *m, const json_t *json, int64_t number, const line_data_t *line) {
    packed_counts_t *c = m->counts;
    int answer = line->response_text ? line->response.count + 1 : 0; // with the end of the turn
    int32_t prompt = line->prompt.count;
    static const uint8_t none = SEGMENT_NONE;
    int64_t think = 0;
    TRY(append(&m->tokens, line->prompt.id, (size_t)prompt, sizeof(int32_t)));
    for (int i = 0; i < prompt; i++) TRY(append(&m->segments, &none, 1, 1));
    if (answer) {
        TRY(append(&m->tokens, line->response.id, (size_t)line->response.count, sizeof(int32_t)));
        TRY(append(&m->tokens, &m->turn.end, 1, sizeof(int32_t)));
        TRY(append(&m->segments, line->segments, (size_t)answer, 1));
    }
    for (int i = 0; i < answer; i++) think += line->segments[i] == SEGMENT_THINK;
    int64_t end = (int64_t)m->tokens.count, uses;
    TRY(append(&m->sample_start, &end, 1, sizeof(end)));
    TRY(append(&m->prompt_length, &prompt, 1, sizeof(prompt)));
    for (int i = 0; i < line->images; i++) {
        int32_t image = 0;
        TRY(image_number(m, line->picture[i], &image));
        TRY(append(&m->image_use, &image, 1, sizeof(image)));
    }
    uses = (int64_t)m->image_use.count;
    TRY(append(&m->image_use_start, &uses, 1, sizeof(uses)));
    TRY(append_texts(m, json, number));
    c->samples++;
    c->tokens += prompt + answer;
    c->think_tokens += think;
    c->answer_tokens += answer - think;
    c->empty_think += answer && !think;
    return STATUS_OK;
}

static status_t make_line(maker_t *m, const json_t *json, int64_t number, line_data_t *line, bool *too_long) {
    json_t *messages;
    if (!json_is_object(json)) FAIL(STATUS_INVALID, "the line is no JSON object");
    TRY(check_fields(json));
    TRY(packed_messages(json, &messages, &line->response_text));
    status_t status = STATUS_OK;
    if (m->options->require_response && (!line->response_text || !*line->response_text))
        status = STATUS_NEW(STATUS_INVALID,
                            "the sample has no assistant's turn to learn from (--prompts packs prompts alone)");
    // Prompts are packed alone even where the line has a turn: that turn is the reference, not the sample.
    if (!m->options->require_response) {
        free(line->response_text);
        line->response_text = NULL;
    }
    if (!status) status = read_prompt(m, json, messages, line);
    json_decref(messages);
    if (!status) status = read_response(m, line);
    TRY(status);
    int length = line->prompt.count + (line->response_text ? line->response.count + 1 : 0);
    *too_long = length > m->options->max_length;
    return *too_long ? STATUS_OK : append_sample(m, json, number, line);
}

static void line_free(line_data_t *line) {
    token_list_free(&line->prompt);
    token_list_free(&line->response);
    free(line->segments);
    free(line->response_text);
}

// Takes one sample; `broken` says why there is none. A bad one is reported and counted; running out of memory ends it
// all.
static status_t take_sample(maker_t *m, const json_t *json, int64_t number, status_t broken) {
    line_data_t line = {0};
    bool too_long = false;
    status_t bad = json ? make_line(m, json, number, &line, &too_long) : broken;
    line_free(&line);
    m->counts->dropped_long += too_long;
    if (!bad || status_kind(bad) == STATUS_MEMORY) return bad;
    m->counts->dropped_bad++;
    if (m->report) fprintf(m->report, "%s:%lld: %s\n", m->options->input, (long long)number, status_message(bad));
    status_free(bad);
    return STATUS_OK;
}

static status_t take_lines(maker_t *m, FILE *input) {
    char *text = NULL;
    size_t capacity = 0;
    status_t status = STATUS_OK;
    int64_t number = 0;
    errno = 0;
    for (ssize_t length; !status && (length = getline(&text, &capacity, input)) >= 0;) {
        number++;
        if (strspn(text, " \t\r\n") == (size_t)length) continue;
        json_error_t error;
        json_t *json = json_loadb(text, (size_t)length, 0, &error);
        status =
            take_sample(m, json, number, json ? NULL : STATUS_NEW(STATUS_INVALID, "not valid JSON: %s", error.text));
        json_decref(json);
    }
    if (!status && (ferror(input) || errno == ENOMEM))
        status = STATUS_NEW(STATUS_IO, "cannot read %s: %s", m->options->input, strerror(errno));
    free(text);
    return status;
}

// A file that is one JSON list, as ShareGPT's are.
static status_t take_list(maker_t *m) {
    char *text;
    size_t size;
    json_error_t error;
    TRY(file_read_whole(m->options->input, LIST_LIMIT, &text, &size));
    json_t *list = json_loadb(text, size, 0, &error);
    free(text);
    if (!list) FAIL(STATUS_INVALID, "%s:%d: not valid JSON: %s", m->options->input, error.line, error.text);
    status_t status = STATUS_OK;
    for (size_t i = 0; i < json_array_size(list) && !status; i++)
        status = take_sample(m, json_array_get(list, i), (int64_t)i + 1, NULL);
    json_decref(list);
    return status;
}

static status_t take_input(maker_t *m, FILE *input) {
    int first;
    do first = fgetc(input);
    while (first == ' ' || first == '\t' || first == '\r' || first == '\n');
    rewind(input);
    TRY(first == '[' ? take_list(m) : take_lines(m, input));
    int64_t all = m->counts->samples + m->counts->dropped_long + m->counts->dropped_bad;
    if (m->counts->dropped_bad * 100 > all)
        FAIL(STATUS_INVALID,
             "%lld of %lld lines of %s are bad, more than 1 %%; mend or remove them (they are listed above)",
             (long long)m->counts->dropped_bad, (long long)all, m->options->input);
    if (!m->counts->samples) FAIL(STATUS_INVALID, "%s has no usable sample", m->options->input);
    return STATUS_OK;
}

// ---- writing ----

static status_t write_images(maker_t *m, store_t *store, const int64_t *starts, int64_t bytes) {
    TRY(store_write_part(store, "image_data", DTYPE_U8, bytes, 0, 0, NULL));
    for (size_t i = 0; i < m->pictures.count; i++) {
        const picture_t *picture = picture_at(m, i);
        char *data;
        size_t size;
        if (picture->number < 0) continue;
        TRY(file_read_whole(picture->path, IMAGE_LIMIT, &data, &size));
        status_t status =
            size == picture->size && XXH3_64bits(data, size) == picture->hash
                ? store_write_part(store, "image_data", DTYPE_U8, bytes, starts[picture->number], (int64_t)size, data)
                : STATUS_NEW(STATUS_IO, "the image %s changed while it was packed", picture->path);
        free(data);
        TRY(status);
    }
    return STATUS_OK;
}

static status_t write_arrays(maker_t *m, store_t *store) {
    packed_arrays_t a = {.samples = (int64_t)m->prompt_length.count,
                         .token_count = (int64_t)m->tokens.count,
                         .image_uses = (int64_t)m->image_use.count,
                         .images = (int64_t)m->image_hash.count,
                         .strings = (int64_t)m->string_start.count - 1,
                         .string_bytes = (int64_t)m->string_data.count,
                         .tokens = m->tokens.data,
                         .segments = m->segments.data,
                         .sample_start = m->sample_start.data,
                         .prompt_length = m->prompt_length.data,
                         .image_use_start = m->image_use_start.data,
                         .image_use = m->image_use.data,
                         .option_start = m->option_start.data,
                         .string_start = m->string_start.data,
                         .string_data = m->string_data.data,
                         .image_start = m->image_start.data,
                         .image_hash = m->image_hash.data};
    char model[17];
    TRY(packed_model_hash(m->options->model, &m->model->config.image, model));
    TRY(packed_write_arrays(store, &a));
    TRY(write_images(m, store, a.image_start, a.image_start[a.images]));
    return packed_write_hashes(store, &a, model);
}

static status_t maker_open(maker_t *m) {
    static const int64_t zero = 0;
    char *copy;
    TRY(model_open(m->options->model, NULL, &m->model));
    TRY(tokenizer_open(m->options->model, &m->tokenizer));
    TRY(chat_template_open(m->options->model, &m->chat_template));
    TRY(chat_turn_open(m->chat_template, m->tokenizer, &m->turn));
    if (m->turn.end < 0 && m->model->config.eos_token_count) m->turn.end = m->model->config.eos_tokens[0];
    if (m->turn.end < 0) FAIL(STATUS_INVALID, "%s names no token that ends a turn (eos_token_id)", m->options->model);
    TRY(memory_copy_string(m->options->input, &copy));
    status_t status = memory_copy_string(dirname(copy), &m->folder);
    free(copy);
    TRY(status);
    if (m->options->max_length < 1) FAIL(STATUS_INVALID, "the largest length of a sample must be 1 or more");
    growing_t *starts[] = {&m->sample_start, &m->image_use_start, &m->option_start, &m->string_start, &m->image_start};
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) TRY(append(starts[i], &zero, 1, sizeof(zero)));
    growing_t *bytes[] = {&m->tokens, &m->segments, &m->prompt_length, &m->image_use, &m->string_data, &m->image_hash};
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++)
        TRY(memory_grow(&bytes[i]->data, &bytes[i]->capacity, 1, sizeof(int64_t)));
    return STATUS_OK;
}

static void maker_close(maker_t *m) {
    growing_t *lists[] = {&m->tokens,      &m->segments,        &m->sample_start, &m->prompt_length,
                          &m->image_use,   &m->image_use_start, &m->option_start, &m->string_start,
                          &m->string_data, &m->image_start,     &m->image_hash,   &m->pictures};
    for (size_t i = 0; i < m->pictures.count; i++) free(picture_at(m, i)->path);
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) free(lists[i]->data);
    free(m->table);
    free(m->folder);
    chat_turn_close(&m->turn);
    tokenizer_close(m->tokenizer);
    chat_template_close(m->chat_template);
    model_close(m->model);
}

status_t packed_make(const packed_options_t *options, FILE *report, packed_counts_t *counts) {
    maker_t m = {.options = options, .report = report, .counts = counts};
    store_t *store = NULL;
    *counts = (packed_counts_t){0};
    FILE *input = fopen(options->input, "rb");
    if (!input) FAIL(STATUS_INVALID, "cannot open %s: %s", options->input, strerror(errno));
    status_t status = maker_open(&m);
    if (!status) status = take_input(&m, input);
    if (!status) status = store_create(options->output, &store);
    if (!status) status = write_arrays(&m, store);
    if (!status) status = store_commit(store);
    if (!status) counts->images = (int64_t)m.image_hash.count;
    store_close(store);
    maker_close(&m);
    fclose(input);
    return status;
}
