// `poise pack`: JSON Lines and image files -> one HDF5 file.
#include "common/data/packed_format.h"
#include "common/data/packed_messages.h"

#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MOST_IMAGES = 1024, MOST_OPTIONS = 256 };

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

typedef struct maker {
    const packed_options_t *options;
    FILE *report;
    packed_counts_t *counts;
    model_t *model; // configuration only
    tokenizer_t *tokenizer;
    char *folder; // image paths are relative to the input file's
    int32_t end_of_turn;
    growing_t tokens, segments, sample_start, prompt_length, image_use, image_use_start, option_start, string_start,
        string_data;
    growing_t image_start, image_hash, image_rows; // image_rows: feature rows, not written
    int32_t *table;                                // hash table of images: number + 1, 0 = free
    size_t table_size;
    FILE *spool; // image bytes until they are written; data sets do not fit in memory
    int64_t options_total;
} maker_t;

// One line on its way into the file.
typedef struct line_data {
    token_list_t prompt, response;
    uint8_t *segments; // of the response
    char *response_text;
    int32_t image[MOST_IMAGES];
    int feature_rows[MOST_IMAGES];
    int images;
} line_data_t;

// ---- images ----

static status_t table_grow(maker_t *m) {
    size_t size = m->table_size ? 2 * m->table_size : 1024;
    int32_t *table;
    TRY(ALLOCATE(&table, size));
    const int64_t *hashes = m->image_hash.data;
    for (size_t i = 0; i < m->image_hash.count; i++) {
        size_t at = (uint64_t)hashes[i] % size;
        while (table[at]) at = (at + 1) % size;
        table[at] = (int32_t)i + 1;
    }
    free(m->table);
    m->table = table;
    m->table_size = size;
    return STATUS_OK;
}

// The number of the image with these bytes, added when it is new.
static status_t image_add(maker_t *m, const char *bytes, size_t size, int32_t *number) {
    int64_t hash = (int64_t)XXH3_64bits(bytes, size);
    if (2 * (m->image_hash.count + 1) > m->table_size) TRY(table_grow(m));
    size_t at = (uint64_t)hash % m->table_size;
    for (; m->table[at]; at = (at + 1) % m->table_size)
        if (((const int64_t *)m->image_hash.data)[m->table[at] - 1] == hash) {
            *number = m->table[at] - 1;
            return STATUS_OK;
        }
    // Decoded once here, so that a damaged picture shows now and not in the middle of a run.
    image_patches_t *patches;
    TRY(image_patches_make(&m->model->config.image, bytes, size, &patches));
    int32_t rows = patches->feature_rows;
    image_patches_free(patches);
    if (fwrite(bytes, 1, size, m->spool) != size) FAIL(STATUS_IO, "cannot write a temporary file: %s", strerror(errno));
    const int64_t *starts = m->image_start.data;
    int64_t end = starts[m->image_start.count - 1] + (int64_t)size;
    TRY(append(&m->image_start, &end, 1, sizeof(end)));
    TRY(append(&m->image_rows, &rows, 1, sizeof(rows)));
    TRY(append(&m->image_hash, &hash, 1, sizeof(hash)));
    *number = (int32_t)m->image_hash.count - 1;
    m->table[at] = *number + 1;
    return STATUS_OK;
}

static status_t image_read(maker_t *m, const char *name, line_data_t *line) {
    char path[4096];
    char *bytes;
    size_t size;
    int32_t number = 0;
    if (line->images == MOST_IMAGES) FAIL(STATUS_INVALID, "a sample may have at most %d images", MOST_IMAGES);
    int length = *name == '/' ? snprintf(path, sizeof(path), "%s", name)
                              : snprintf(path, sizeof(path), "%s/%s", m->folder, name);
    if (!*name || length >= (int)sizeof(path)) FAIL(STATUS_INVALID, "an image has no usable file name");
    TRY(file_read_whole(path, (size_t)1 << 30, &bytes, &size));
    status_t status = status_context(image_add(m, bytes, size, &number), "the image %s", path);
    free(bytes);
    TRY(status);
    line->image[line->images] = number;
    line->feature_rows[line->images++] = ((const int32_t *)m->image_rows.data)[number];
    return STATUS_OK;
}

// ---- one line ----

static status_t read_prompt(maker_t *m, const json_t *messages, line_data_t *line) {
    chat_t chat;
    TRY(chat_read(messages, &chat));
    status_t status = STATUS_OK;
    if (chat.images && !m->model->config.has_vision)
        status = STATUS_NEW(STATUS_INVALID, "the sample has images and the model has no vision");
    for (int i = 0; !status && i < chat.messages; i++)
        for (int p = 0; !status && p < chat.message[i].parts; p++)
            if (chat.message[i].part[p].is_image) status = image_read(m, chat.message[i].part[p].text, line);
    if (!status)
        status = chat_encode(m->tokenizer, &chat, true, m->model->config.image.image_token, line->feature_rows,
                             &line->prompt);
    chat_free(&chat);
    return status;
}

// Tokens and segments of the response, the end of the turn included.
static status_t read_response(maker_t *m, line_data_t *line) {
    char *text = NULL; // as the tokenizer normalised it: what the offsets count in
    if (!line->response_text) return STATUS_OK;
    TRY(tokenizer_encode(m->tokenizer, line->response_text, strlen(line->response_text), false, &line->response));
    TRY(ALLOCATE(&line->segments, line->response.count + 1));
    TRY(tokenizer_decode(m->tokenizer, line->response.id, line->response.count, false, &text));
    answer_segments(text, strlen(text), line->response.offset, line->response.count, line->segments);
    free(text);
    line->segments[line->response.count] = SEGMENT_ANSWER;
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
    if (json_array_size(options) > MOST_OPTIONS)
        FAIL(STATUS_INVALID, "a question may have at most %d options", MOST_OPTIONS);
    for (size_t i = 0; i < json_array_size(options); i++)
        if (!json_is_string(json_array_get(options, i))) FAIL(STATUS_INVALID, "'options' must be a list of texts");
    return STATUS_OK;
}

static status_t append_texts(maker_t *m, const json_t *line) {
    TRY(append_field(m, line, "id"));
    TRY(append_field(m, line, "answer"));
    TRY(append_field(m, line, "kind"));
    TRY(append_field(m, line, "listing"));
    const json_t *options = json_object_get(line, "options");
    for (size_t i = 0; i < json_array_size(options); i++)
        TRY(append_string(m, json_string_value(json_array_get(options, i))));
    m->options_total += (int64_t)json_array_size(options);
    return append(&m->option_start, &m->options_total, 1, sizeof(m->options_total));
}

static status_t append_sample(maker_t *m, const json_t *json, const line_data_t *line) {
    packed_counts_t *c = m->counts;
    int answer = line->response_text ? line->response.count + 1 : 0; // with the end of the turn
    int32_t prompt = line->prompt.count;
    static const uint8_t none = SEGMENT_NONE;
    int64_t think = 0;
    TRY(append(&m->tokens, line->prompt.id, (size_t)prompt, sizeof(int32_t)));
    for (int i = 0; i < prompt; i++) TRY(append(&m->segments, &none, 1, 1));
    if (answer) {
        TRY(append(&m->tokens, line->response.id, (size_t)line->response.count, sizeof(int32_t)));
        TRY(append(&m->tokens, &m->end_of_turn, 1, sizeof(int32_t)));
        TRY(append(&m->segments, line->segments, (size_t)answer, 1));
    }
    for (int i = 0; i < answer; i++) think += line->segments[i] == SEGMENT_THINK;
    int64_t end = (int64_t)m->tokens.count, uses;
    TRY(append(&m->sample_start, &end, 1, sizeof(end)));
    TRY(append(&m->prompt_length, &prompt, 1, sizeof(prompt)));
    TRY(append(&m->image_use, line->image, (size_t)line->images, sizeof(int32_t)));
    uses = (int64_t)m->image_use.count;
    TRY(append(&m->image_use_start, &uses, 1, sizeof(uses)));
    TRY(append_texts(m, json));
    c->samples++;
    c->tokens += prompt + answer;
    c->think_tokens += think;
    c->answer_tokens += answer - think;
    c->empty_think += answer && !think;
    return STATUS_OK;
}

static status_t make_line(maker_t *m, const json_t *json, line_data_t *line, bool *too_long) {
    json_t *messages;
    if (!json_is_object(json)) FAIL(STATUS_INVALID, "the line is no JSON object");
    TRY(check_fields(json));
    TRY(packed_messages(json, &messages, &line->response_text));
    status_t status = STATUS_OK;
    if (m->options->require_response && !line->response_text)
        status = STATUS_NEW(STATUS_INVALID,
                            "the sample has no assistant's turn to learn from (--prompts packs prompts alone)");
    // Prompts are packed alone even where the line has a turn: that turn is the reference, not the sample.
    if (!m->options->require_response) {
        free(line->response_text);
        line->response_text = NULL;
    }
    if (!status) status = read_prompt(m, messages, line);
    json_decref(messages);
    if (!status) status = read_response(m, line);
    TRY(status);
    int length = line->prompt.count + (line->response_text ? line->response.count + 1 : 0);
    *too_long = length > m->options->max_length;
    return *too_long ? STATUS_OK : append_sample(m, json, line);
}

static void line_free(line_data_t *line) {
    token_list_free(&line->prompt);
    token_list_free(&line->response);
    free(line->segments);
    free(line->response_text);
}

// Reads the lines. A bad one is reported and counted; running out of memory or disk ends it all.
static status_t make_lines(maker_t *m, FILE *input) {
    char *text = NULL;
    size_t capacity = 0;
    status_t status = STATUS_OK;
    int64_t number = 0;
    for (ssize_t length; !status && (length = getline(&text, &capacity, input)) >= 0;) {
        number++;
        if (strspn(text, " \t\r\n") == (size_t)length) continue;
        json_error_t error;
        line_data_t line = {0};
        bool too_long = false;
        json_t *json = json_loadb(text, (size_t)length, 0, &error);
        status_t bad =
            json ? make_line(m, json, &line, &too_long) : STATUS_NEW(STATUS_INVALID, "not valid JSON: %s", error.text);
        json_decref(json);
        line_free(&line);
        m->counts->dropped_long += too_long;
        if (!bad) continue;
        if (status_kind(bad) == STATUS_MEMORY) {
            status = bad;
            break;
        }
        m->counts->dropped_bad++;
        fprintf(m->report, "%s:%lld: %s\n", m->options->input, (long long)number, status_message(bad));
        status_free(bad);
    }
    free(text);
    int64_t all = m->counts->samples + m->counts->dropped_long + m->counts->dropped_bad;
    if (!status && m->counts->dropped_bad * 100 > all)
        status =
            STATUS_NEW(STATUS_INVALID,
                       "%lld of %lld lines of %s are bad, more than 1 %%; mend or remove them (they are listed above)",
                       (long long)m->counts->dropped_bad, (long long)all, m->options->input);
    if (!status && !m->counts->samples)
        status = STATUS_NEW(STATUS_INVALID, "%s has no usable sample", m->options->input);
    return status;
}

// ---- writing ----

static status_t write_images(maker_t *m, store_t *store, int64_t bytes) {
    if (fflush(m->spool)) FAIL(STATUS_IO, "cannot write a temporary file: %s", strerror(errno));
    void *data = bytes ? mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, fileno(m->spool), 0) : NULL;
    if (data == MAP_FAILED) FAIL(STATUS_IO, "cannot map a temporary file: %s", strerror(errno));
    status_t status = store_write(store, "image_data", DTYPE_U8, data ? data : "", bytes, false);
    if (data) munmap(data, (size_t)bytes);
    return status;
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
    char content[33], model[17];
    packed_content_hash(&a, content);
    TRY(packed_model_hash(m->options->model, &m->model->config.image, model));
    TRY(store_write_number(store, "schema", PACKED_SCHEMA));
    TRY(store_write(store, "tokens", DTYPE_I32, a.tokens, a.token_count, true));
    TRY(store_write(store, "segments", DTYPE_U8, a.segments, a.token_count, true));
    TRY(store_write(store, "sample_start", DTYPE_I64, a.sample_start, a.samples + 1, true));
    TRY(store_write(store, "prompt_length", DTYPE_I32, a.prompt_length, a.samples, true));
    TRY(store_write(store, "image_use", DTYPE_I32, a.image_use, a.image_uses, true));
    TRY(store_write(store, "image_use_start", DTYPE_I64, a.image_use_start, a.samples + 1, true));
    TRY(store_write(store, "option_start", DTYPE_I64, a.option_start, a.samples + 1, true));
    TRY(store_write(store, "string_start", DTYPE_I64, a.string_start, a.strings + 1, true));
    TRY(store_write(store, "string_data", DTYPE_U8, a.string_data, a.string_bytes, true));
    TRY(store_write(store, "image_start", DTYPE_I64, a.image_start, a.images + 1, true));
    TRY(store_write(store, "image_hash", DTYPE_I64, a.image_hash, a.images, false));
    TRY(write_images(m, store, a.image_start[a.images]));
    TRY(store_write_string(store, "model_hash", model));
    return store_write_string(store, "content_hash", content);
}

static status_t maker_open(maker_t *m) {
    static const int64_t zero = 0;
    char *copy;
    TRY(model_open(m->options->model, NULL, &m->model));
    TRY(tokenizer_open(m->options->model, &m->tokenizer));
    m->end_of_turn = tokenizer_find(m->tokenizer, "<|im_end|>");
    if (m->end_of_turn < 0 && m->model->config.eos_token_count) m->end_of_turn = m->model->config.eos_tokens[0];
    if (m->end_of_turn < 0)
        FAIL(STATUS_INVALID, "%s names no token that ends a turn (eos_token_id)", m->options->model);
    TRY(memory_copy_string(m->options->input, &copy));
    status_t status = memory_copy_string(dirname(copy), &m->folder);
    free(copy);
    TRY(status);
    m->spool = tmpfile();
    if (!m->spool) FAIL(STATUS_IO, "cannot make a temporary file: %s", strerror(errno));
    growing_t *starts[] = {&m->sample_start, &m->image_use_start, &m->option_start, &m->string_start, &m->image_start};
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) TRY(append(starts[i], &zero, 1, sizeof(zero)));
    growing_t *bytes[] = {&m->tokens,      &m->segments,   &m->prompt_length, &m->image_use,
                          &m->string_data, &m->image_hash, &m->image_rows};
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++)
        TRY(memory_grow(&bytes[i]->data, &bytes[i]->capacity, 1, sizeof(int64_t)));
    return STATUS_OK;
}

static void maker_close(maker_t *m) {
    growing_t *lists[] = {&m->tokens,      &m->segments,        &m->sample_start, &m->prompt_length,
                          &m->image_use,   &m->image_use_start, &m->option_start, &m->string_start,
                          &m->string_data, &m->image_start,     &m->image_hash,   &m->image_rows};
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) free(lists[i]->data);
    free(m->table);
    free(m->folder);
    if (m->spool) fclose(m->spool);
    tokenizer_close(m->tokenizer);
    model_close(m->model);
}

status_t packed_make(const packed_options_t *options, FILE *report, packed_counts_t *counts) {
    maker_t m = {.options = options, .report = report, .counts = counts};
    store_t *store = NULL;
    *counts = (packed_counts_t){0};
    FILE *input = fopen(options->input, "rb");
    if (!input) FAIL(STATUS_INVALID, "cannot open %s: %s", options->input, strerror(errno));
    status_t status = maker_open(&m);
    if (!status) status = make_lines(&m, input);
    if (!status) status = store_create(options->output, &store);
    if (!status) status = write_arrays(&m, store);
    if (!status) {
        status = store_commit(store);
        store = NULL;
    }
    if (!status) counts->images = (int64_t)m.image_hash.count;
    store_close(store);
    maker_close(&m);
    fclose(input);
    return status;
}
