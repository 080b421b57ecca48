// Pre-tokenizers: steps that cut normalised text into the pieces that the model sees, and partly rewrite it.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

// The pattern of ByteLevel with use_regex, as GPT-2 has it.
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// GPT-2's printable stand-in for a byte: itself when printable Latin-1, else U+0100 and up in order.
uint32_t byte_level_code(int byte) {
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174) return (uint32_t)byte;
    int place = byte <= 32 ? byte : byte <= 160 ? byte - 127 + 33 : 67;
    return 256 + (uint32_t)place;
}

int byte_level_byte(uint32_t code) {
    if (code >= 256 && code < 256 + 68) {
        int place = (int)code - 256;
        return place < 33 ? place : place < 67 ? place - 33 + 127 : 173;
    }
    return code < 256 && byte_level_code((int)code) == code ? (int)code : -1;
}

// ---- which characters count ----

static bool is_number(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

static bool is_punctuation(uint32_t code) {
    if (code < 128)
        return (code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) ||
               (code >= 123 && code <= 126);
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

// \w+|[^\w\s]+ in characters: 0 blank, 1 word, 2 other.
static int word_class(uint32_t code) {
    return tokenizer_is_space(code) ? 0 : tokenizer_word_code(code) ? 1 : 2;
}

// ---- finding matches and making pieces of them ----

static status_t add_split(splits_t *list, size_t start, size_t end, bool match) {
    TRY(memory_grow((void **)&list->at, &list->capacity, list->count + 1, sizeof(*list->at)));
    list->at[list->count++] = (split_t){start, end, match};
    return STATUS_OK;
}

static status_t find_characters(const cut_step_t *step, const char *text, size_t length, splits_t *list) {
    size_t done = 0;
    for (size_t at = 0, next; at < length; at = next) {
        uint32_t code = 0;
        next = at + utf8_next(text + at, length - at, &code, NULL, NULL);
        if (!step->counts(code)) continue;
        if (done < at) TRY(add_split(list, done, at, false));
        TRY(add_split(list, at, next, true));
        done = next;
    }
    return done < length ? add_split(list, done, length, false) : STATUS_OK;
}

static status_t find_words(const char *text, size_t length, splits_t *list) {
    size_t start = 0;
    int last = -1;
    for (size_t at = 0, next; at < length; at = next) {
        uint32_t code = 0;
        next = at + utf8_next(text + at, length - at, &code, NULL, NULL);
        int now = word_class(code);
        if (now != last && at) TRY(add_split(list, start, at, last != 0));
        if (now != last) start = at;
        last = now;
    }
    return add_split(list, start, length, last != 0);
}

static status_t find_pattern(encoder_t *encoder, const pattern_t *pattern, const char *text, size_t length,
                             splits_t *list) {
    pattern_search_t search = {.pattern = pattern,
                               .limits = encoder->tokenizer->limits,
                               .match = encoder->match,
                               .text = text,
                               .length = length};
    size_t done = 0;
    for (;;) {
        bool found;
        size_t start, end;
        TRY(pattern_next(&search, &found, &start, &end));
        if (!found) break;
        if (done != start) TRY(add_split(list, done, start, false));
        TRY(add_split(list, start, end, true));
        done = end;
    }
    return done < length ? add_split(list, done, length, false) : STATUS_OK;
}

// Joins neighbours as the behaviour says; afterwards `match` marks what is to be dropped.
static void join_splits(cut_behaviour_t behaviour, splits_t *list) {
    size_t kept = 0;
    bool before = false;
    if (behaviour == CUT_MERGED_WITH_NEXT) {
        // From the end: a match takes in what stands behind it, unless that is a match too.
        size_t to = list->count;
        for (size_t i = list->count; i-- > 0;) {
            split_t s = list->at[i];
            if (s.match && !before && to < list->count)
                list->at[to].start = s.start;
            else
                list->at[--to] = (split_t){s.start, s.end, false};
            before = s.match;
        }
        memmove(list->at, list->at + to, (list->count - to) * sizeof(*list->at));
        list->count -= to;
        return;
    }
    for (size_t i = 0; i < list->count && behaviour != CUT_REMOVED; i++) {
        split_t s = list->at[i];
        bool join = behaviour == CUT_CONTIGUOUS             ? s.match == before
                    : behaviour == CUT_MERGED_WITH_PREVIOUS ? s.match && !before
                                                            : false;
        if (join && kept)
            list->at[kept - 1].end = s.end;
        else
            list->at[kept++] = (split_t){s.start, s.end, false};
        before = s.match;
    }
    if (behaviour != CUT_REMOVED) list->count = kept;
}

static status_t give_piece(encoder_t *encoder, const char *text, size_t length) {
    size_t at = encoder->at;
    TRY(encoder->tokenizer->kind == MODEL_BPE ? encoder_bpe(encoder, text, length)
                                              : encoder_unigram(encoder, text, length));
    encoder->at = at + length;
    return STATUS_OK;
}

static status_t cut_splits(encoder_t *encoder, int step, const char *text, const splits_t *list, bool front) {
    // Deeper steps have lists of their own, so this one stays as it is.
    for (size_t i = 0; i < list->count; i++) {
        split_t s = list->at[i];
        if (s.match) {
            encoder->at += s.end - s.start;
            continue;
        }
        TRY(encoder_cut(encoder, step + 1, text + s.start, s.end - s.start, front && !s.start));
    }
    return STATUS_OK;
}

// Blanks become the mark, and a mark is put in front.
static status_t rewrite_metaspace(const cut_step_t *step, const char *text, size_t length, bool front, buffer_t *out) {
    size_t mark = strlen(step->mark);
    bool marked = length && (text[0] == ' ' || (length >= mark && memcmp(text, step->mark, mark) == 0));
    out->length = 0;
    if (!marked && (step->prepend == CUT_ALWAYS || (step->prepend == CUT_FIRST && front)))
        TRY(buffer_append(out, step->mark, mark));
    for (size_t at = 0; at < length;) {
        const char *blank = memchr(text + at, ' ', length - at);
        size_t end = blank ? (size_t)(blank - text) : length;
        TRY(buffer_append(out, text + at, end - at));
        if (blank) TRY(buffer_append(out, step->mark, mark));
        at = end + 1;
    }
    return STATUS_OK;
}

static status_t find_marks(const cut_step_t *step, const buffer_t *text, splits_t *list) {
    size_t mark = strlen(step->mark), done = 0;
    for (size_t at = 0; at + mark <= text->length;) {
        if (memcmp(text->data + at, step->mark, mark) != 0) {
            at++;
            continue;
        }
        if (done < at) TRY(add_split(list, done, at, false));
        TRY(add_split(list, at, at + mark, true));
        done = at += mark;
    }
    return done < text->length ? add_split(list, done, text->length, false) : STATUS_OK;
}

status_t encoder_cut(encoder_t *encoder, int step, const char *text, size_t length, bool front) {
    if (!length) return STATUS_OK;
    if (step == encoder->tokenizer->cuts) return give_piece(encoder, text, length);
    const cut_step_t *rule = &encoder->tokenizer->cut[step];
    splits_t *list = &encoder->splits[step];
    buffer_t *own = &encoder->rewritten[step];
    list->count = 0;
    if (rule->kind == CUT_METASPACE) {
        TRY(rewrite_metaspace(rule, text, length, front, own));
        if (!rule->split) return encoder_cut(encoder, step + 1, own->data, own->length, front);
        TRY(find_marks(rule, own, list));
        join_splits(CUT_MERGED_WITH_NEXT, list);
        return cut_splits(encoder, step, own->data, list, front);
    }
    if (rule->kind == CUT_BYTE_LEVEL && rule->prefix_space && *text != ' ') {
        own->length = 0;
        TRY(buffer_append(own, " ", 1));
        TRY(buffer_append(own, text, length));
        text = own->data;
        length = own->length;
    }
    if (rule->kind == CUT_CHARACTERS)
        TRY(rule->counts ? find_characters(rule, text, length, list) : find_words(text, length, list));
    else if (rule->pattern.regex || rule->pattern.literal)
        TRY(find_pattern(encoder, &rule->pattern, text, length, list));
    else
        TRY(add_split(list, 0, length, false));
    for (size_t i = 0; i < list->count && rule->invert; i++) list->at[i].match = !list->at[i].match;
    join_splits(rule->behaviour, list);
    return cut_splits(encoder, step, text, list, front);
}

// ---- reading ----

static status_t read_behaviour(const json_t *value, cut_behaviour_t *out) {
    static const char *const name[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *text = json_text(value, "behavior");
    if (!json_object_get(value, "behavior")) text = "Isolated";
    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++)
        if (strcmp(text, name[i]) == 0) {
            *out = (cut_behaviour_t)i;
            return STATUS_OK;
        }
    FAIL(STATUS_INVALID, "the pre_tokenizer's split behavior '%s' is not known", text);
}

static status_t add_cut(tokenizer_t *tokenizer, cut_step_t **out, cut_step_t step) {
    if (tokenizer->byte_level)
        FAIL(STATUS_INVALID, "the pre_tokenizer has a step after ByteLevel, which is not supported");
    if (tokenizer->cuts == TOKENIZER_STEPS)
        FAIL(STATUS_INVALID, "the pre_tokenizer has more than %d steps", TOKENIZER_STEPS);
    *out = &tokenizer->cut[tokenizer->cuts++];
    **out = step;
    return STATUS_OK;
}

static status_t read_metaspace(tokenizer_t *tokenizer, const json_t *value) {
    const char *mark = json_text(value, "replacement"), *scheme = json_text(value, "prepend_scheme");
    const json_t *split = json_object_get(value, "split"), *space = json_object_get(value, "add_prefix_space");
    size_t length = strlen(mark);
    cut_step_t *step;
    if (!length || utf8_next(mark, length, NULL, NULL, NULL) != length)
        FAIL(STATUS_INVALID, "the 'replacement' of Metaspace is no single character");
    TRY(add_cut(tokenizer, &step, (cut_step_t){.kind = CUT_METASPACE}));
    memcpy(step->mark, mark, length + 1);
    step->split = !json_is_false(split);
    if (strcmp(scheme, "first") == 0)
        step->prepend = CUT_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step->prepend = CUT_NEVER;
    else if (!*scheme || strcmp(scheme, "always") == 0)
        step->prepend = json_is_false(space) && !*scheme ? CUT_NEVER : CUT_ALWAYS;
    else
        FAIL(STATUS_INVALID, "the 'prepend_scheme' '%s' of Metaspace is not known", scheme);
    if (json_is_false(space) && *scheme && step->prepend != CUT_NEVER)
        FAIL(STATUS_INVALID, "'add_prefix_space' of Metaspace contradicts its 'prepend_scheme'");
    return STATUS_OK;
}

static status_t read_byte_level(tokenizer_t *tokenizer, const json_t *value) {
    cut_step_t *step;
    TRY(add_cut(tokenizer, &step, (cut_step_t){.kind = CUT_BYTE_LEVEL, .behaviour = CUT_ISOLATED}));
    step->prefix_space = !json_is_false(json_object_get(value, "add_prefix_space"));
    tokenizer->byte_level = true;
    if (json_is_false(json_object_get(value, "use_regex"))) return STATUS_OK;
    return pattern_compile(gpt2_pattern, strlen(gpt2_pattern), &step->pattern);
}

static status_t read_split(tokenizer_t *tokenizer, const json_t *value) {
    cut_step_t *step;
    TRY(add_cut(tokenizer, &step, (cut_step_t){.kind = CUT_PATTERN, .invert = json_flag(value, "invert")}));
    TRY(read_behaviour(value, &step->behaviour));
    return pattern_read(json_object_get(value, "pattern"), &step->pattern);
}

static status_t read_delimiter(tokenizer_t *tokenizer, const json_t *value) {
    cut_step_t *step;
    TRY(add_cut(tokenizer, &step, (cut_step_t){.kind = CUT_PATTERN, .behaviour = CUT_REMOVED}));
    return pattern_read(json_object_get(value, "delimiter"), &step->pattern);
}

static status_t read_characters(tokenizer_t *tokenizer, const json_t *value, const char *type, bool *known) {
    cut_step_t step = {.kind = CUT_CHARACTERS, .behaviour = CUT_REMOVED, .counts = tokenizer_is_space}, *out;
    *known = true;
    if (strcmp(type, "Digits") == 0) {
        step.counts = is_number;
        step.behaviour = json_flag(value, "individual_digits") ? CUT_ISOLATED : CUT_CONTIGUOUS;
    } else if (strcmp(type, "Punctuation") == 0) {
        step.counts = is_punctuation;
        TRY(read_behaviour(value, &step.behaviour));
    } else if (strcmp(type, "Whitespace") == 0) {
        step.counts = NULL; // words and runs of other characters; what is between them goes
        step.invert = true;
    } else if (strcmp(type, "BertPreTokenizer") == 0) {
        TRY(add_cut(tokenizer, &out, step));
        step.counts = is_punctuation;
        step.behaviour = CUT_ISOLATED;
    } else if (strcmp(type, "WhitespaceSplit") != 0) {
        *known = false;
        return STATUS_OK;
    }
    return add_cut(tokenizer, &out, step);
}

status_t tokenizer_read_cuts(tokenizer_t *tokenizer, const json_t *value, int depth) {
    if (!json_is_set(value)) return STATUS_OK;
    const char *type = json_text(value, "type");
    bool known;
    if (depth > TOKENIZER_DEPTH) FAIL(STATUS_INVALID, "the pre_tokenizer is nested too deeply");
    if (strcmp(type, "Sequence") == 0) {
        size_t i;
        json_t *item;
        if (!json_is_array(json_object_get(value, "pretokenizers")))
            FAIL(STATUS_INVALID, "a Sequence of the pre_tokenizer has no 'pretokenizers'");
        json_array_foreach(json_object_get(value, "pretokenizers"), i, item)
            TRY(tokenizer_read_cuts(tokenizer, item, depth + 1));
        return STATUS_OK;
    }
    if (strcmp(type, "Split") == 0) return read_split(tokenizer, value);
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(tokenizer, value);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(tokenizer, value);
    if (strcmp(type, "CharDelimiterSplit") == 0) return read_delimiter(tokenizer, value);
    TRY(read_characters(tokenizer, value, type, &known));
    if (known) return STATUS_OK;
    FAIL(STATUS_INVALID,
         "the pre_tokenizer '%s' is not supported (ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, "
         "WhitespaceSplit, BertPreTokenizer, CharDelimiterSplit and Sequence are)",
         type);
}
