// Normalizers: read from tokenizer.json, and run one after the other. Unicode's forms and properties come from
// utf8proc.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

// utf8proc sorts combining marks in time quadratic in the length of a run of them.
enum { COMBINING_RUN_LIMIT = 4096 };

// ---- properties of characters ----

bool tokenizer_is_space(uint32_t code) {
    return (code >= 9 && code <= 13) || code == 32 || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
}

bool tokenizer_word_code(uint32_t code) {
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default: // joiners, and the circled and squared letters
        return code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9) ||
               (code >= 0x1f130 && code <= 0x1f149) || (code >= 0x1f150 && code <= 0x1f169) ||
               (code >= 0x1f170 && code <= 0x1f189);
    }
}

static bool is_mark(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
}

static uint32_t code_at(const char *text, size_t length, size_t at, size_t *next) {
    uint32_t code = 0;
    *next = at + utf8_next(text + at, length - at, &code, NULL, NULL);
    return code;
}

// ---- normal forms ----

// Whether every character is below the first one that any form could change or reorder.
static bool form_is_plain(normal_kind_t form, const char *text, size_t length) {
    uint32_t first = form == NORMAL_NFC ? 0x300 : form == NORMAL_NFD ? 0xc0 : 0xa0;
    for (size_t at = 0; at < length;)
        if (code_at(text, length, at, &at) >= first) return false;
    return true;
}

static status_t form_check_runs(const char *text, size_t length) {
    int run = 0;
    for (size_t at = 0; at < length;) {
        uint32_t code = code_at(text, length, at, &at);
        run = utf8proc_get_property((utf8proc_int32_t)code)->combining_class ? run + 1 : 0;
        if (run > COMBINING_RUN_LIMIT)
            FAIL(STATUS_INVALID, "the text has more than %d combining marks in a row before byte %zu",
                 COMBINING_RUN_LIMIT, at);
    }
    return STATUS_OK;
}

static status_t apply_form(normal_kind_t form, const char *text, size_t length, buffer_t *out) {
    static const int option[] = {
        [NORMAL_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [NORMAL_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [NORMAL_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NORMAL_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    if (form_is_plain(form, text, length)) return buffer_append(out, text, length);
    TRY(form_check_runs(text, length));
    utf8proc_uint8_t *normal = NULL;
    utf8proc_ssize_t bytes = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &normal,
                                          (utf8proc_option_t)option[form]);
    if (bytes < 0) FAIL(STATUS_INVALID, "the text cannot be normalised: %s", utf8proc_errmsg(bytes));
    status_t status = buffer_append(out, (const char *)normal, (size_t)bytes);
    free(normal);
    return status;
}

// ---- the other steps ----

static status_t apply_lowercase(const char *text, size_t length, buffer_t *out) {
    for (size_t at = 0; at < length;) {
        uint32_t code = code_at(text, length, at, &at);
        TRY(buffer_append_code(out, code == 0x130 ? 'i' : (uint32_t)utf8proc_tolower((utf8proc_int32_t)code)));
        if (code == 0x130) TRY(buffer_append_code(out, 0x307)); // the one letter that becomes two
    }
    return STATUS_OK;
}

static status_t apply_strip(const normal_step_t *step, const char *text, size_t length, buffer_t *out, bool *moved) {
    size_t start = 0, end = length, next;
    while (step->left && start < end && tokenizer_is_space(code_at(text, length, start, &next))) start = next;
    while (step->right && end > start) {
        size_t before = end - 1;
        while (before > start && ((uint8_t)text[before] & 0xc0) == 0x80) before--;
        if (!tokenizer_is_space(code_at(text, length, before, &next))) break;
        end = before;
    }
    *moved |= start > 0;
    return buffer_append(out, text + start, end - start);
}

static status_t apply_strip_accents(const char *text, size_t length, buffer_t *out, bool *moved) {
    for (size_t at = 0, next; at < length; at = next) {
        bool mark = is_mark(code_at(text, length, at, &next));
        *moved |= mark && !at;
        if (!mark) TRY(buffer_append(out, text + at, next - at));
    }
    return STATUS_OK;
}

static bool nmt_drops(uint32_t code) {
    return (code >= 1 && code <= 8) || code == 0xb || (code >= 0xe && code <= 0x1f) || code == 0x7f || code == 0x8f ||
           code == 0x9f;
}

static bool nmt_blanks(uint32_t code) {
    return code == 9 || code == 10 || code == 12 || code == 13 || code == 0x1680 ||
           (code >= 0x200b && code <= 0x200f) || code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xfeff ||
           code == 0xfffd;
}

static status_t apply_nmt(const char *text, size_t length, buffer_t *out, bool *moved) {
    for (size_t at = 0, next; at < length; at = next) {
        uint32_t code = code_at(text, length, at, &next);
        *moved |= nmt_drops(code) && !at;
        if (nmt_drops(code)) continue;
        TRY(buffer_append_code(out, nmt_blanks(code) ? ' ' : code));
    }
    return STATUS_OK;
}

static status_t apply_replace(const tokenizer_t *tokenizer, pcre2_match_data *match, const normal_step_t *step,
                              const char *text, size_t length, buffer_t *out) {
    pattern_search_t search = {
        .pattern = &step->pattern, .limits = tokenizer->limits, .match = match, .text = text, .length = length};
    return pattern_replace(&search, step->content, step->content_length, out);
}

static status_t apply_step(const tokenizer_t *tokenizer, pcre2_match_data *match, const normal_step_t *step,
                           const char *text, size_t length, buffer_t *out, bool *moved) {
    switch (step->kind) {
    case NORMAL_NFC:
    case NORMAL_NFD:
    case NORMAL_NFKC:
    case NORMAL_NFKD:
        return apply_form(step->kind, text, length, out);
    case NORMAL_LOWERCASE:
        return apply_lowercase(text, length, out);
    case NORMAL_STRIP:
        return apply_strip(step, text, length, out, moved);
    case NORMAL_STRIP_ACCENTS:
        return apply_strip_accents(text, length, out, moved);
    case NORMAL_NMT:
        return apply_nmt(text, length, out, moved);
    case NORMAL_REPLACE:
        return apply_replace(tokenizer, match, step, text, length, out);
    case NORMAL_CHARSMAP:
        return charsmap_apply(&step->charsmap, text, length, out);
    case NORMAL_PREPEND:
        if (length) TRY(buffer_append(out, step->content, step->content_length));
    }
    return buffer_append(out, text, length);
}

status_t tokenizer_normalise(const tokenizer_t *tokenizer, pcre2_match_data *match, const char *text, size_t length,
                             buffer_t *out, bool *moved) {
    buffer_t other = {0};
    *moved = false;
    out->length = 0;
    status_t status = buffer_append(out, text, length);
    for (int i = 0; i < tokenizer->normals && !status; i++) {
        other.length = 0;
        status = buffer_append(&other, "", 0);
        if (!status)
            status = apply_step(tokenizer, match, &tokenizer->normal[i], out->data, out->length, &other, moved);
        if (!status && other.length > TOKENIZER_TEXT_LIMIT)
            status = STATUS_NEW(STATUS_INVALID, "the normalised text is longer than %d bytes", TOKENIZER_TEXT_LIMIT);
        buffer_t swap = *out;
        *out = other;
        other = swap;
    }
    free(other.data);
    return status;
}

// ---- reading ----

static status_t read_content(const json_t *value, const char *key, normal_step_t *step) {
    const json_t *content = json_object_get(value, key);
    if (!json_is_string(content)) FAIL(STATUS_INVALID, "a normalizer has no '%s'", key);
    step->content_length = json_string_length(content);
    if (step->content_length > TOKENIZER_REPLACEMENT_LIMIT)
        FAIL(STATUS_INVALID, "the '%s' of a normalizer is longer than %d bytes", key, TOKENIZER_REPLACEMENT_LIMIT);
    return memory_copy_bytes(json_string_value(content), step->content_length, &step->content);
}

static status_t read_sequence(tokenizer_t *tokenizer, const json_t *value, int depth) {
    const json_t *list = json_object_get(value, "normalizers"), *item;
    size_t i;
    if (!json_is_array(list)) FAIL(STATUS_INVALID, "a Sequence of the normalizer has no 'normalizers'");
    json_array_foreach(list, i, item) TRY(tokenizer_read_normalizer(tokenizer, item, depth + 1));
    return STATUS_OK;
}

status_t tokenizer_read_normalizer(tokenizer_t *tokenizer, const json_t *value, int depth) {
    static const char *const name[] = {
        [NORMAL_NFC] = "NFC",
        [NORMAL_NFD] = "NFD",
        [NORMAL_NFKC] = "NFKC",
        [NORMAL_NFKD] = "NFKD",
        [NORMAL_LOWERCASE] = "Lowercase",
        [NORMAL_STRIP] = "Strip",
        [NORMAL_STRIP_ACCENTS] = "StripAccents",
        [NORMAL_NMT] = "Nmt",
        [NORMAL_REPLACE] = "Replace",
        [NORMAL_PREPEND] = "Prepend",
        [NORMAL_CHARSMAP] = "Precompiled",
    };
    if (!json_is_set(value)) return STATUS_OK;
    const char *type = json_text(value, "type");
    if (depth > TOKENIZER_DEPTH) FAIL(STATUS_INVALID, "the normalizer is nested too deeply");
    if (strcmp(type, "Sequence") == 0) return read_sequence(tokenizer, value, depth);
    size_t kind = 0, kinds = sizeof(name) / sizeof(name[0]);
    while (kind < kinds && strcmp(name[kind], type) != 0) kind++;
    if (kind == kinds)
        FAIL(
            STATUS_INVALID,
            "the normalizer '%s' is not supported (NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Nmt, Replace, "
            "Prepend, Precompiled and Sequence are)",
            type);
    if (tokenizer->normals == TOKENIZER_STEPS)
        FAIL(STATUS_INVALID, "the normalizer has more than %d steps", TOKENIZER_STEPS);
    normal_step_t *step = &tokenizer->normal[tokenizer->normals++];
    *step = (normal_step_t){.kind = (normal_kind_t)kind};
    if (step->kind == NORMAL_STRIP) {
        step->left = json_flag(value, "strip_left");
        step->right = json_flag(value, "strip_right");
    }
    if (step->kind == NORMAL_PREPEND) return read_content(value, "prepend", step);
    if (step->kind == NORMAL_REPLACE) {
        TRY(pattern_read(json_object_get(value, "pattern"), &step->pattern));
        return read_content(value, "content", step);
    }
    if (step->kind == NORMAL_CHARSMAP) {
        const json_t *map = json_object_get(value, "precompiled_charsmap");
        if (!json_is_string(map)) FAIL(STATUS_INVALID, "the normalizer Precompiled has no 'precompiled_charsmap'");
        return charsmap_read(json_string_value(map), json_string_length(map), &step->charsmap);
    }
    return STATUS_OK;
}

void normal_step_free(normal_step_t *step) {
    pattern_free(&step->pattern);
    free(step->content);
    free(step->charsmap.unit);
    free(step->charsmap.text);
}
