// Decoding: tokens go one by one through the decoder's steps, and what a step cannot tell yet waits in it. Whole texts
// and streams take the same way, so their results are the same.
//
// Until a step joins them (Fuse, ByteLevel) tokens are texts of their own; afterwards all is one text that comes in
// parts.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>

// Text with the place of the token that each byte is of.
typedef struct owned {
    buffer_t text;
    int32_t *owner;
    size_t owner_capacity;
} owned_t;

typedef struct stage {
    const decode_step_t *step; // NULL: the end, or the joining of tokens where there is no decoder
    bool joined;               // its input is one text
    owned_t held, made;
    bool started; // a token went by (metaspace), or what stands in front is taken off (strip)
    int64_t stripped;
} stage_t;

struct tokenizer_stream_state {
    const tokenizer_t *tokenizer;
    bool skip_special;
    stage_t stage[TOKENIZER_STEPS + 1];
    int stages;
    owned_t out;
    int32_t count; // tokens so far
    bool shown;    // a token was shown
    pcre2_match_data *match;
};
typedef struct tokenizer_stream_state state_t;

static status_t owned_append(owned_t *list, const char *text, const int32_t *owner, size_t length) {
    size_t at = list->text.length;
    TRY(memory_grow((void **)&list->owner, &list->owner_capacity, at + length + 1, sizeof(*list->owner)));
    TRY(buffer_append(&list->text, text, length));
    if (length) memcpy(list->owner + at, owner, length * sizeof(*owner));
    return STATUS_OK;
}

static status_t owned_append_for(owned_t *list, const char *text, size_t length, int32_t owner) {
    size_t at = list->text.length;
    TRY(memory_grow((void **)&list->owner, &list->owner_capacity, at + length + 1, sizeof(*list->owner)));
    TRY(buffer_append(&list->text, text, length));
    for (size_t i = 0; i < length; i++) list->owner[at + i] = owner;
    return STATUS_OK;
}

static void owned_drop(owned_t *list, size_t length) {
    if (!length) return;
    list->text.length -= length;
    memmove(list->text.data, list->text.data + length, list->text.length);
    memmove(list->owner, list->owner + length, list->text.length * sizeof(*list->owner));
}

static void owned_free(owned_t *list) {
    free(list->text.data);
    free(list->owner);
}

// ---- one token (or the whole text) through one step ----

// Copies with matches replaced; a replacement is of the token that its match begins in.
static status_t make_replaced(state_t *state, const decode_step_t *step, const owned_t *in, owned_t *out) {
    pattern_search_t search = {.pattern = &step->pattern,
                               .limits = state->tokenizer->limits,
                               .match = state->match,
                               .text = in->text.data,
                               .length = in->text.length};
    size_t done = 0;
    while (in->text.length) {
        bool found;
        size_t start, end;
        TRY(pattern_next(&search, &found, &start, &end));
        if (!found) break;
        int32_t owner = in->owner[start < in->text.length ? start : start - 1];
        TRY(owned_append(out, in->text.data + done, in->owner + done, start - done));
        TRY(owned_append_for(out, step->content, step->content_length, owner));
        done = end;
    }
    return owned_append(out, in->text.data + done, in->owner + done, in->text.length - done);
}

static status_t make_unmarked(stage_t *stage, const owned_t *in, owned_t *out) {
    const char *mark = stage->step->mark;
    size_t length = strlen(mark);
    for (size_t at = 0; at < in->text.length;) {
        bool here = in->text.length - at >= length && memcmp(in->text.data + at, mark, length) == 0;
        if (!here) TRY(owned_append(out, in->text.data + at, in->owner + at, 1));
        if (here && (stage->started || !stage->step->drop_first)) TRY(owned_append_for(out, " ", 1, in->owner[at]));
        at += here ? length : 1;
    }
    return STATUS_OK;
}

static status_t make_stripped(const decode_step_t *step, const owned_t *in, owned_t *out) {
    size_t length = strlen(step->mark), start = 0, end = in->text.length;
    for (int64_t i = 0; i < step->left && end - start >= length; i++) {
        if (memcmp(in->text.data + start, step->mark, length) != 0) break;
        start += length;
    }
    for (int64_t i = 0; i < step->right && end - start >= length; i++) {
        if (memcmp(in->text.data + end - length, step->mark, length) != 0) break;
        end -= length;
    }
    return owned_append(out, in->text.data + start, in->owner + start, end - start);
}

// The bytes that a byte-level token stands for; one with a character outside the alphabet stands for its own spelling.
static status_t make_bytes(const owned_t *in, owned_t *out) {
    size_t from = out->text.length;
    for (size_t at = 0; at < in->text.length;) {
        uint32_t code = 0;
        size_t step = utf8_next(in->text.data + at, in->text.length - at, &code, NULL, NULL);
        int byte = step ? byte_level_byte(code) : -1;
        if (byte < 0) {
            out->text.length = from;
            return owned_append(out, in->text.data, in->owner, in->text.length);
        }
        char c = (char)byte;
        TRY(owned_append_for(out, &c, 1, in->owner[at]));
        at += step;
    }
    return STATUS_OK;
}

// Moves what is whole UTF-8 from `held` to `out`, with U+FFFD for what is none; what could still become a character
// stays, unless this is the end.
static status_t move_valid(owned_t *held, bool end, owned_t *out) {
    size_t at = 0;
    while (at < held->text.length) {
        size_t bad;
        bool cut;
        size_t step = utf8_next(held->text.data + at, held->text.length - at, NULL, &bad, &cut);
        if (!step && cut && !end) break;
        if (step)
            TRY(owned_append(out, held->text.data + at, held->owner + at, step));
        else
            TRY(owned_append_for(out, "\xef\xbf\xbd", 3, held->owner[at]));
        at += step ? step : bad;
    }
    owned_drop(held, at);
    return STATUS_OK;
}

static int byte_of(const buffer_t *text) {
    if (text->length != 6 || memcmp(text->data, "<0x", 3) != 0 || text->data[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = text->data[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        // "+a" is a number to the reference too
        if (digit < 0 && !(i == 3 && c == '+')) return -1;
        value = 16 * value + (digit < 0 ? 0 : digit);
    }
    return value;
}

// ---- stages ----

static status_t push(state_t *state, int place, const owned_t *in);

static status_t pass_on(state_t *state, int place) {
    stage_t *stage = &state->stage[place];
    status_t status = push(state, place + 1, &stage->made);
    stage->made.text.length = 0;
    return status;
}

// The end of a run of byte tokens: a text of its own when it is UTF-8, else one U+FFFD a byte.
static status_t flush_bytes(state_t *state, int place) {
    stage_t *stage = &state->stage[place];
    owned_t *held = &stage->held;
    size_t length = held->text.length;
    if (!length) return STATUS_OK;
    stage->made.text.length = 0;
    if (utf8_valid(held->text.data, length) == length) {
        TRY(owned_append(&stage->made, held->text.data, held->owner, length));
        held->text.length = 0;
        return pass_on(state, place);
    }
    for (size_t i = 0; i < length; i++) {
        TRY(owned_append_for(&stage->made, "\xef\xbf\xbd", 3, held->owner[i]));
        TRY(pass_on(state, place));
    }
    held->text.length = 0;
    return STATUS_OK;
}

static status_t push_fallback(state_t *state, int place, const owned_t *in) {
    stage_t *stage = &state->stage[place];
    int byte = byte_of(&in->text);
    if (byte >= 0) {
        char c = (char)byte;
        return owned_append_for(&stage->held, &c, 1, in->owner[0]);
    }
    TRY(flush_bytes(state, place));
    return push(state, place + 1, in);
}

// A step whose input is one text: strip in front goes by parts, all else waits for the end.
static status_t push_joined(state_t *state, int place, const owned_t *in) {
    stage_t *stage = &state->stage[place];
    const decode_step_t *step = stage->step;
    if (step->kind == DECODE_FUSE) return push(state, place + 1, in);
    TRY(owned_append(&stage->held, in->text.data, in->owner, in->text.length));
    if (step->kind != DECODE_STRIP || step->right > 0) return STATUS_OK;
    size_t length = strlen(step->mark), at = 0;
    while (!stage->started) {
        size_t left = stage->held.text.length - at;
        size_t compared = left < length ? left : length;
        if (stage->stripped == step->left || memcmp(stage->held.text.data + at, step->mark, compared) != 0) {
            stage->started = true;
        } else if (compared < length) {
            break; // half a mark, or nothing
        } else {
            at += length;
            stage->stripped++;
        }
    }
    owned_drop(&stage->held, at);
    if (!stage->started) return STATUS_OK;
    TRY(owned_append(&stage->made, stage->held.text.data, stage->held.owner, stage->held.text.length));
    stage->held.text.length = 0;
    return pass_on(state, place);
}

static status_t push_byte_level(state_t *state, int place, const owned_t *in) {
    stage_t *stage = &state->stage[place];
    TRY(make_bytes(in, &stage->held));
    TRY(move_valid(&stage->held, false, &stage->made));
    return stage->made.text.length ? pass_on(state, place) : STATUS_OK;
}

static status_t push(state_t *state, int place, const owned_t *in) {
    stage_t *stage = &state->stage[place];
    if (place == state->stages) return owned_append(&state->out, in->text.data, in->owner, in->text.length);
    if (stage->joined) return push_joined(state, place, in);
    stage->made.text.length = 0;
    switch (stage->step->kind) {
    case DECODE_FUSE:
        return push(state, place + 1, in);
    case DECODE_BYTE_FALLBACK:
        return push_fallback(state, place, in);
    case DECODE_BYTE_LEVEL:
        return push_byte_level(state, place, in);
    case DECODE_REPLACE:
        TRY(make_replaced(state, stage->step, in, &stage->made));
        break;
    case DECODE_METASPACE:
        TRY(make_unmarked(stage, in, &stage->made));
        break;
    case DECODE_STRIP:
        TRY(make_stripped(stage->step, in, &stage->made));
        break;
    }
    stage->started = true;
    return pass_on(state, place);
}

// What a joined stage held until the end.
static status_t finish_joined(state_t *state, stage_t *stage) {
    const decode_step_t *step = stage->step;
    const owned_t *held = &stage->held;
    int byte;
    char c;
    switch (step->kind) {
    case DECODE_REPLACE:
        return make_replaced(state, step, held, &stage->made);
    case DECODE_METASPACE:
        return make_unmarked(stage, held, &stage->made);
    case DECODE_STRIP:
        if (step->right > 0) return make_stripped(step, held, &stage->made);
        return owned_append(&stage->made, held->text.data, held->owner, held->text.length);
    case DECODE_BYTE_FALLBACK:
        byte = byte_of(&held->text);
        c = (char)byte;
        if (byte < 0) return owned_append(&stage->made, held->text.data, held->owner, held->text.length);
        return byte < 0x80 ? owned_append_for(&stage->made, &c, 1, held->owner[0])
                           : owned_append_for(&stage->made, "\xef\xbf\xbd", 3, held->owner[0]);
    case DECODE_BYTE_LEVEL: {
        owned_t bytes = {0};
        status_t status = make_bytes(held, &bytes);
        if (!status) status = move_valid(&bytes, true, &stage->made);
        owned_free(&bytes);
        return status;
    }
    case DECODE_FUSE:
        break;
    }
    return STATUS_OK;
}

static status_t finish(state_t *state) {
    for (int place = 0; place < state->stages; place++) {
        stage_t *stage = &state->stage[place];
        stage->made.text.length = 0;
        TRY(buffer_append(&stage->held.text, "", 0));
        if (stage->joined)
            TRY(finish_joined(state, stage));
        else if (stage->step->kind == DECODE_BYTE_FALLBACK)
            TRY(flush_bytes(state, place));
        else if (stage->step->kind == DECODE_BYTE_LEVEL)
            TRY(move_valid(&stage->held, true, &stage->made));
        stage->held.text.length = 0;
        if (stage->made.text.length) TRY(pass_on(state, place));
    }
    return STATUS_OK;
}

// ---- a state's life ----

static void state_free(state_t *state) {
    if (!state) return;
    for (int i = 0; i < state->stages; i++) {
        owned_free(&state->stage[i].held);
        owned_free(&state->stage[i].made);
    }
    owned_free(&state->out);
    pcre2_match_data_free(state->match);
    free(state);
}

static status_t state_new(const tokenizer_t *tokenizer, bool skip_special, state_t **out) {
    state_t *state;
    bool joined = false;
    TRY(ALLOCATE(&state, 1));
    state->tokenizer = tokenizer;
    state->skip_special = skip_special;
    state->stages = tokenizer->decodes;
    for (int i = 0; i < state->stages; i++) {
        const decode_step_t *step = &tokenizer->decode[i];
        state->stage[i].step = step;
        state->stage[i].joined = joined;
        joined |= step->kind == DECODE_FUSE || step->kind == DECODE_BYTE_LEVEL;
    }
    state->match = pcre2_match_data_create(1, NULL);
    status_t status = state->match ? STATUS_OK : STATUS_NEW(STATUS_MEMORY, "out of memory while decoding");
    for (int i = 0; i < state->stages && !status; i++) { // empty text is a place too
        status = owned_append_for(&state->stage[i].held, "", 0, 0);
        if (!status) status = owned_append_for(&state->stage[i].made, "", 0, 0);
    }
    if (status)
        state_free(state);
    else
        *out = state;
    return status;
}

static status_t state_push(state_t *state, int32_t id) {
    const tokenizer_t *tokenizer = state->tokenizer;
    int32_t owner = state->count++;
    const vocabulary_entry_t *entry = id >= 0 && id < tokenizer->size ? &tokenizer->entry[id] : NULL;
    if (!entry || !entry->text || (state->skip_special && entry->special)) return STATUS_OK;
    const char *text = entry->shown ? entry->shown : entry->text;
    size_t length = entry->shown ? entry->shown_length : entry->length;
    owned_t token = {0};
    // Without a decoder tokens are joined by blanks.
    status_t status = !tokenizer->has_decoder && state->shown ? owned_append_for(&token, " ", 1, owner) : STATUS_OK;
    if (!status) status = owned_append_for(&token, text, length, owner);
    if (!status) status = push(state, 0, &token);
    owned_free(&token);
    state->shown = true;
    return status;
}

// ---- what others call ----

static status_t decode(state_t *state, const int32_t *ids, int count) {
    for (int i = 0; i < count; i++) TRY(state_push(state, ids[i]));
    TRY(finish(state));
    return buffer_append(&state->out.text, "", 0);
}

// From the owner of each byte to the span of each token.
static void set_offsets(const owned_t *text, int count, int32_t *offsets) {
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        offsets[2 * i] = (int32_t)at;
        while (at < text->text.length && text->owner[at] <= i) at++;
        offsets[2 * i + 1] = (int32_t)at;
    }
}

status_t tokenizer_decode_offsets(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                                  char **out, size_t *length, int32_t *offsets) {
    state_t *state;
    *out = NULL;
    TRY(state_new(tokenizer, skip_special, &state));
    status_t status = decode(state, ids, count);
    if (!status && state->out.text.length > INT32_MAX)
        status = STATUS_NEW(STATUS_INVALID, "the decoded text is longer than 2 GiB");
    if (!status) {
        if (offsets) set_offsets(&state->out, count, offsets);
        if (length) *length = state->out.text.length;
        *out = state->out.text.data;
        state->out.text.data = NULL;
    }
    state_free(state);
    return status;
}

status_t tokenizer_decode_text(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                               char **out, size_t *length) {
    return tokenizer_decode_offsets(tokenizer, ids, count, skip_special, out, length, NULL);
}

status_t tokenizer_decode(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special, char **out) {
    return tokenizer_decode_offsets(tokenizer, ids, count, skip_special, out, NULL, NULL);
}

status_t tokenizer_stream_push(const tokenizer_t *tokenizer, tokenizer_stream_t *stream, int32_t id, bool skip_special,
                               const char **text, size_t *length) {
    if (!stream->state) TRY(state_new(tokenizer, skip_special, &stream->state));
    state_t *state = stream->state;
    state->skip_special = skip_special;
    state->out.text.length = 0;
    TRY(id == -1 ? finish(state) : state_push(state, id));
    TRY(buffer_append(&state->out.text, "", 0));
    *text = state->out.text.data;
    *length = state->out.text.length;
    return STATUS_OK;
}

void tokenizer_stream_free(tokenizer_stream_t *stream) {
    state_free(stream->state);
    stream->state = NULL;
}

// ---- reading ----

static status_t read_mark(const json_t *value, const char *key, char *out) {
    const char *mark = json_text(value, key);
    size_t length = strlen(mark);
    if (!length || utf8_next(mark, length, NULL, NULL, NULL) != length)
        FAIL(STATUS_INVALID, "the '%s' of a decoder is no single character", key);
    memcpy(out, mark, length + 1);
    return STATUS_OK;
}

static status_t read_step(const json_t *value, const char *type, decode_step_t *step) {
    const json_t *content = json_object_get(value, "content");
    const char *scheme = json_text(value, "prepend_scheme");
    switch (step->kind) {
    case DECODE_REPLACE:
        TRY(pattern_read(json_object_get(value, "pattern"), &step->pattern));
        if (!json_is_string(content)) FAIL(STATUS_INVALID, "the decoder Replace has no 'content'");
        step->content_length = json_string_length(content);
        if (step->content_length > TOKENIZER_REPLACEMENT_LIMIT)
            FAIL(STATUS_INVALID, "the 'content' of a decoder is longer than %d bytes", TOKENIZER_REPLACEMENT_LIMIT);
        return memory_copy_bytes(json_string_value(content), step->content_length, &step->content);
    case DECODE_METASPACE:
        step->drop_first =
            strcmp(scheme, "never") != 0 && !(json_is_false(json_object_get(value, "add_prefix_space")) && !*scheme);
        return read_mark(value, "replacement", step->mark);
    case DECODE_STRIP:
        step->left = json_integer_value(json_object_get(value, "start"));
        step->right = json_integer_value(json_object_get(value, "stop"));
        if (step->left < 0 || step->right < 0) FAIL(STATUS_INVALID, "the decoder %s has a negative count", type);
        return read_mark(value, "content", step->mark);
    case DECODE_BYTE_FALLBACK:
    case DECODE_FUSE:
    case DECODE_BYTE_LEVEL:
        break;
    }
    return STATUS_OK;
}

status_t tokenizer_read_decoder(tokenizer_t *tokenizer, const json_t *value, int depth) {
    static const char *const name[] = {
        [DECODE_REPLACE] = "Replace", [DECODE_BYTE_FALLBACK] = "ByteFallback",
        [DECODE_FUSE] = "Fuse",       [DECODE_METASPACE] = "Metaspace",
        [DECODE_STRIP] = "Strip",     [DECODE_BYTE_LEVEL] = "ByteLevel",
    };
    if (!json_is_set(value)) return STATUS_OK;
    const char *type = json_text(value, "type");
    tokenizer->has_decoder = true;
    if (depth > TOKENIZER_DEPTH) FAIL(STATUS_INVALID, "the decoder is nested too deeply");
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(value, "decoders"), *item;
        size_t i;
        if (!json_is_array(list)) FAIL(STATUS_INVALID, "a Sequence of the decoder has no 'decoders'");
        json_array_foreach(list, i, item) TRY(tokenizer_read_decoder(tokenizer, item, depth + 1));
        return STATUS_OK;
    }
    size_t kind = 0, kinds = sizeof(name) / sizeof(name[0]);
    while (kind < kinds && strcmp(name[kind], type) != 0) kind++;
    if (kind == kinds)
        FAIL(STATUS_INVALID,
             "the decoder '%s' is not supported (ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip and Sequence "
             "are)",
             type);
    if (tokenizer->decodes == TOKENIZER_STEPS)
        FAIL(STATUS_INVALID, "the decoder has more than %d steps", TOKENIZER_STEPS);
    decode_step_t *step = &tokenizer->decode[tokenizer->decodes++];
    *step = (decode_step_t){.kind = (decode_kind_t)kind};
    return read_step(value, type, step);
}
