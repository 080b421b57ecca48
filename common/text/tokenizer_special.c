// The tokens that tokenizer_config.json, special_tokens_map.json and added_tokens.json add to a tokenizer.json, as
// transformers reads them: which file counts where several name a token, which texts become special, and in which order
// they get their ids.
#include "common/text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

static const char *const named_tokens[NAMED_TOKENS] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                       "pad_token", "cls_token", "mask_token"};

// ---- one token ----

static const char *token_text(const json_t *token) {
    return json_is_string(token) ? json_string_value(token) : json_text(token, "content");
}

// A token as added_tokens has it. A plain text is special and not normalised. `special` makes one special that does not
// say so; `before` says whether that counts for whether it is normalised.
static json_t *make_token(const json_t *token, bool special, bool before) {
    bool plain = json_is_string(token), own = plain || json_flag(token, "special");
    const json_t *normalised = json_object_get(token, "normalized");
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b}", "content", token_text(token), "single_word",
                     json_flag(token, "single_word"), "lstrip", json_flag(token, "lstrip"), "rstrip",
                     json_flag(token, "rstrip"), "normalized",
                     plain        ? 0
                     : normalised ? json_is_true(normalised)
                                  : !(own || (special && before)),
                     "special", own || special);
}

static status_t put(json_t *object, const char *key, json_t *made) {
    if (!made || json_object_set_new_nocheck(object, key, made)) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

static bool is_named(const char *key) {
    for (int i = 0; i < NAMED_TOKENS; i++)
        if (strcmp(key, named_tokens[i]) == 0) return true;
    return false;
}

// A name of the folder's own: image_token, boi_token, ...
static bool is_own_name(const char *key) {
    size_t length = strlen(key), end = strlen("_token");
    return length >= end && strcmp(key + length - end, "_token") == 0 && !is_named(key);
}

static bool is_added_token(const json_t *token) {
    return json_is_object(token) && strcmp(json_text(token, "__type"), "AddedToken") == 0;
}

// ---- what the files say ----

// Lists of tokens without a name, as the two keys of the two files leave them. Borrowed, but `joined`.
typedef struct extras {
    const json_t *extra, *additional;
    bool has_extra;
    json_t *joined;
} extras_t;

static bool is_full(const json_t *value) {
    return json_array_size(value) || json_object_size(value);
}

static status_t join(const json_t *left, const json_t *right, json_t **out) {
    json_t *item;
    size_t i;
    *out = json_array();
    bool whole = *out && (!json_is_array(left) || json_array_extend(*out, (json_t *)(uintptr_t)left) == 0);
    json_array_foreach(right, i, item) {
        bool there = false;
        for (size_t at = 0; at < json_array_size(left) && !there; at++)
            there = json_equal(json_array_get(left, at), item);
        if (!there) whole = whole && json_array_append(*out, item) == 0;
    }
    if (!whole) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

static status_t read_extras(const json_t *config, const json_t *map, json_t *own, extras_t *out) {
    *out = (extras_t){.extra = json_object_get(config, "extra_special_tokens"),
                      .additional = json_object_get(config, "additional_special_tokens")};
    if (out->additional && !is_full(out->extra)) out->extra = out->additional, out->additional = NULL;
    const json_t *more = json_object_get(map, "extra_special_tokens");
    if (json_is_object(out->extra)) {
        if (json_object_update(own, (json_t *)(uintptr_t)out->extra))
            FAIL(STATUS_MEMORY, "out of memory for added tokens");
        out->extra = NULL;
    }
    if (json_is_array(more)) {
        TRY(join(out->extra, more, &out->joined));
        out->extra = out->joined;
    } else if (json_is_object(more)) {
        if (json_object_update(own, (json_t *)(uintptr_t)more)) FAIL(STATUS_MEMORY, "out of memory for added tokens");
        out->extra = NULL;
    }
    if (json_object_get(map, "additional_special_tokens"))
        out->additional = json_object_get(map, "additional_special_tokens");
    out->has_extra = out->extra != NULL;
    return STATUS_OK;
}

// The seven names and the folder's own, of both files. Those that a file sets to null stay, as null.
static status_t read_named(const json_t *config, const json_t *map, const json_t *own, json_t *named) {
    const char *key;
    json_t *token;
    for (int i = 0; i < NAMED_TOKENS; i++) {
        const json_t *here = json_object_get(config, named_tokens[i]), *later = json_object_get(map, named_tokens[i]);
        if (later)
            TRY(put(named, named_tokens[i],
                    json_is_object(later) ? make_token(later, true, true) : json_deep_copy(later)));
        else if (here)
            TRY(put(named, named_tokens[i], json_deep_copy(here)));
    }
    json_object_foreach((json_t *)(uintptr_t)config, key, token) {
        if (is_own_name(key) && is_added_token(token)) TRY(put(named, key, json_deep_copy(token)));
    }
    json_object_foreach((json_t *)(uintptr_t)map, key, token) {
        if (is_own_name(key) && (json_is_string(token) || json_is_object(token)))
            TRY(put(named, key, json_is_object(token) ? make_token(token, true, true) : json_deep_copy(token)));
    }
    json_object_foreach((json_t *)(uintptr_t)own, key, token) TRY(put(named, key, json_deep_copy(token)));
    return STATUS_OK;
}

// ---- tokens by id ----

static status_t put_decoder(special_tokens_t *special, const char *id, json_t *token) {
    if (!token) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    const char *text = token_text(token);
    int failed = *text ? json_object_set_nocheck(special->decoder, id, token) |
                             json_object_set_nocheck(special->by_text, text, token)
                       : 0;
    json_decref(token);
    if (failed) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

static bool is_one_of(const json_t *list, const char *text) {
    const json_t *item;
    size_t i;
    json_array_foreach(list, i,
                       item) if (json_is_string(item) && strcmp(json_string_value(item), text) == 0) return true;
    return false;
}

// Whether added_tokens.json's token is special: the configuration names it by its text, or the map in whichever way.
static bool is_special(const json_t *map, const json_t *named, const json_t *extra, const char *text) {
    for (int i = 0; i < NAMED_TOKENS; i++) {
        const json_t *token = json_object_get(named, named_tokens[i]);
        bool counts = json_is_string(token) || json_object_get(map, named_tokens[i]);
        if (counts && strcmp(token_text(token), text) == 0) return true;
    }
    return is_one_of(extra, text);
}

// added_tokens.json {"text": id}, which counts where tokenizer_config.json has no added_tokens_decoder; then those of
// tokenizer.json itself.
static status_t read_legacy(const tokenizer_config_t *files, const json_t *extra, const json_t *own,
                            special_tokens_t *out) {
    const char *text;
    json_t *id, *token;
    char key[32];
    size_t i;
    json_object_foreach(files->added, text, id) {
        double number = json_number_value(id);
        if (!json_is_number(id) || !(number >= 0 && number <= INT32_MAX) || number != (double)(int32_t)number)
            FAIL(STATUS_INVALID, "added_tokens.json: '%.64s' has no usable id", text);
        bool special = is_special(files->map, out->named, extra, text);
        snprintf(key, sizeof(key), "%d", (int)number);
        json_t *flags = json_pack("{s:s, s:b, s:b}", "content", text, "normalized", !special, "special", special);
        json_t *made = flags ? make_token(flags, false, false) : NULL;
        json_decref(flags);
        TRY(put_decoder(out, key, made));
    }
    json_array_foreach(own, i, token) {
        if (!json_is_string(json_object_get(token, "content")))
            FAIL(STATUS_INVALID, "entry %zu of 'added_tokens' has no 'content'", i);
        snprintf(key, sizeof(key), "%lld", (long long)json_integer_value(json_object_get(token, "id")));
        TRY(put_decoder(out, key, make_token(token, false, false)));
    }
    return STATUS_OK;
}

// ---- the whole ----

// What is known of a named token by id counts; and what neither file names has the class's name, or that of a
// tokenizer.model.
static status_t settle_token(const char *key, const char *standard, const json_t *root, special_tokens_t *out) {
    json_t *token = json_object_get(out->named, key), *own = json_object_get(root, key);
    json_t *known = token && *token_text(token) ? json_object_get(out->by_text, token_text(token)) : NULL;
    if (known) return put(out->named, key, json_deep_copy(known));
    if (token) return STATUS_OK;
    if (standard) return put(out->named, key, json_string(standard));
    return put(out->named, key, own ? json_deep_copy(own) : json_null());
}

// In the end the seven stand in front, and those that are none are gone.
static status_t settle_named(const char *const *defaults, const json_t *root, special_tokens_t *out) {
    for (int i = 0; i < NAMED_TOKENS; i++)
        TRY(settle_token(named_tokens[i], defaults ? defaults[i] : NULL, defaults ? NULL : root, out));
    json_t *settled = json_object(), *token;
    const char *key;
    bool whole = settled;
    for (int i = 0; i < NAMED_TOKENS && whole; i++) {
        token = json_object_get(out->named, named_tokens[i]);
        if (!json_is_null(token)) whole = json_object_set(settled, named_tokens[i], token) == 0;
    }
    json_object_foreach(out->named, key, token) {
        if (!is_named(key)) whole = whole && json_object_set_nocheck(settled, key, token) == 0;
    }
    json_decref(out->named);
    out->named = settled;
    if (!whole) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

static status_t read_all(const tokenizer_config_t *files, const char *const *defaults, const json_t *root,
                         bool converted, json_t *own, special_tokens_t *out) {
    const json_t *decoder = json_object_get(files->config, "added_tokens_decoder"), *map = decoder ? NULL : files->map;
    const char *key;
    json_t *token;
    extras_t extras;
    json_object_foreach((json_t *)(uintptr_t)files->config, key, token) {
        if (is_own_name(key) && json_is_string(token)) TRY(put(own, key, json_incref(token)));
    }
    status_t status = read_extras(files->config, map, own, &extras);
    if (!status) status = read_named(files->config, map, own, out->named);
    json_object_foreach((json_t *)(uintptr_t)decoder, key, token) {
        if (!status) status = put_decoder(out, key, make_token(token, false, false));
    }
    if (!status && !decoder)
        status = read_legacy(files, extras.extra, converted ? NULL : json_object_get(root, "added_tokens"), out);
    if (!status) status = settle_named(defaults, converted ? root : NULL, out);
    // What a tokenizer.model has goes the way of the older key.
    if (converted) extras.additional = json_object_get(root, "extra_special_tokens");
    const json_t *extra = extras.has_extra ? extras.extra : extras.additional;
    if (!status && json_is_array(extra) && json_array_extend(out->extra, (json_t *)(uintptr_t)extra))
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for added tokens");
    json_decref(extras.joined);
    return status;
}

status_t special_tokens_read(const tokenizer_config_t *files, const char *const *defaults, const json_t *root,
                             bool converted, special_tokens_t *out) {
    json_t *own = json_object();
    *out = (special_tokens_t){json_object(), json_array(), json_object(), json_object()};
    status_t status;
    if (own && out->named && out->extra && out->decoder && out->by_text)
        status = read_all(files, defaults, root, converted, own, out);
    else
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for added tokens");
    json_decref(own);
    return status;
}

void special_tokens_free(special_tokens_t *special) {
    json_decref(special->named);
    json_decref(special->extra);
    json_decref(special->decoder);
    json_decref(special->by_text);
}

// ---- added_tokens ----

static int compare_keys(const void *a, const void *b) {
    long left = strtol(*(const char *const *)a, NULL, 10), right = strtol(*(const char *const *)b, NULL, 10);
    return (left > right) - (left < right);
}

// Appends those of the decoder, by id, that `known` ({text: token}) does not have just so; then they are known, too.
static status_t add_decoder(const json_t *decoder, const json_t *names, json_t *known, json_t *list) {
    size_t count = json_object_size(decoder), i = 0, own = json_array_size(list);
    const char **keys, *key;
    json_t *token;
    status_t status = STATUS_OK;
    TRY(ALLOCATE(&keys, count + 1));
    json_object_foreach((json_t *)(uintptr_t)decoder, key, token) keys[i++] = key;
    if (count) qsort(keys, count, sizeof(*keys), compare_keys);
    for (i = 0; i < count && !status; i++) {
        token = json_object_get(decoder, keys[i]);
        if (json_equal(token, json_object_get(known, token_text(token)))) continue;
        json_t *made = make_token(token, json_object_get(names, token_text(token)) != NULL, false);
        if (!made || json_array_append_new(list, made)) status = STATUS_NEW(STATUS_MEMORY, "out of memory");
    }
    free((void *)keys);
    for (i = own; i < json_array_size(list) && !status; i++) {
        token = json_array_get(list, i);
        status = put(known, token_text(token), json_incref(token));
    }
    return status;
}

static status_t add_one(const json_t *token, const json_t *names, const json_t *known, json_t *list) {
    const char *text = token_text(token);
    if (!*text || json_object_get(known, text)) return STATUS_OK;
    json_t *made = make_token(token, json_object_get(names, text) != NULL, false);
    if (!made || json_array_append_new(list, made)) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

static status_t add_plain(const json_t *token, json_t *list) {
    json_t *text = *token_text(token) ? json_string(token_text(token)) : NULL, *made = NULL;
    if (text) made = make_token(text, true, true);
    json_decref(text);
    if (text && (!made || json_array_append_new(list, made))) FAIL(STATUS_MEMORY, "out of memory for added tokens");
    return STATUS_OK;
}

static status_t fill_list(const special_tokens_t *special, const json_t *own, bool plain, json_t *names, json_t *known,
                          json_t *list) {
    const char *key;
    json_t *token;
    size_t i;
    json_array_foreach(own, i, token) {
        if (!*token_text(token)) continue;
        json_t *made = make_token(token, false, false);
        if (!made || json_array_append(list, made)) FAIL(STATUS_MEMORY, "out of memory for added tokens");
        TRY(put(known, token_text(token), made));
    }
    json_object_foreach(special->named, key, token) TRY(put(names, token_text(token), json_true()));
    TRY(add_decoder(special->decoder, names, known, list));
    json_object_foreach(special->named, key, token) TRY(add_one(token, names, known, list));
    json_array_foreach(special->extra, i, token) TRY(add_one(token, names, known, list));
    if (!plain) return STATUS_OK;
    json_object_foreach(special->named, key, token) TRY(add_plain(token, list));
    json_array_foreach(special->extra, i, token) TRY(add_plain(token, list));
    return STATUS_OK;
}

status_t special_tokens_add(const special_tokens_t *special, bool anew, bool plain, json_t *root) {
    json_t *names = json_object(), *known = json_object(), *list = json_array();
    status_t status = STATUS_OK;
    if (names && known && list)
        status = fill_list(special, anew ? NULL : json_object_get(root, "added_tokens"), plain, names, known, list);
    else
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for added tokens");
    if (!status && json_object_set(root, "added_tokens", list))
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for added tokens");
    json_decref(names);
    json_decref(known);
    json_decref(list);
    return status;
}

// ---- the frame of a converted tokenizer ----

static status_t frame_token(const json_t *token, bool front, json_t *template) {
    const char *text = token ? token_text(token) : "";
    if (!*text) return STATUS_OK;
    json_t *item = json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", text, "type_id", 0);
    json_t *single = json_object_get(template, "single");
    if (!item || (front ? json_array_insert_new(single, 0, item) : json_array_append_new(single, item)))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

status_t special_tokens_frame(const special_tokens_t *special, const json_t *config, json_t *root) {
    json_t *template = json_pack("{s:s, s:[{s:{s:s, s:i}}]}", "type", "TemplateProcessing", "single", "Sequence", "id",
                                 "A", "type_id", 0);
    if (!template) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    status_t status = STATUS_OK;
    if (json_flag(config, "add_bos_token"))
        status = frame_token(json_object_get(special->named, "bos_token"), true, template);
    if (!status && json_flag(config, "add_eos_token"))
        status = frame_token(json_object_get(special->named, "eos_token"), false, template);
    if (!status && json_object_set(root, "post_processor", template))
        status = STATUS_NEW(STATUS_MEMORY, "out of memory for a tokenizer");
    json_decref(template);
    return status;
}
