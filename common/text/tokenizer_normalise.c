// Unicode normal forms by utf8proc.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <utf8proc.h>

// utf8proc sorts combining marks in time quadratic in the length of a run of them.
enum { COMBINING_RUN_LIMIT = 4096 };

// Whether every character is below the first one that any form could change or reorder.
static bool normalise_is_plain(normal_form_t form, const char *text, size_t length) {
    uint32_t first = form == NORMAL_NFC ? 0x300 : form == NORMAL_NFD ? 0xc0 : 0xa0;
    for (size_t at = 0; at < length;) {
        uint32_t code = 0;
        at += utf8_next(text + at, length - at, &code, NULL, NULL);
        if (code >= first) return false;
    }
    return true;
}

static status_t normalise_check_runs(const char *text, size_t length) {
    int run = 0;
    for (size_t at = 0; at < length;) {
        uint32_t code = 0;
        at += utf8_next(text + at, length - at, &code, NULL, NULL);
        run = utf8proc_get_property((utf8proc_int32_t)code)->combining_class ? run + 1 : 0;
        if (run > COMBINING_RUN_LIMIT)
            FAIL(STATUS_INVALID, "the text has more than %d combining marks in a row before byte %zu",
                 COMBINING_RUN_LIMIT, at);
    }
    return STATUS_OK;
}

status_t tokenizer_normalise(normal_form_t form, const char *text, size_t length, char **out, size_t *out_length) {
    static const int option[] = {
        [NORMAL_NONE] = 0,
        [NORMAL_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [NORMAL_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [NORMAL_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NORMAL_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    *out = NULL;
    *out_length = length;
    if (form == NORMAL_NONE || normalise_is_plain(form, text, length)) return STATUS_OK;
    TRY(normalise_check_runs(text, length));
    utf8proc_uint8_t *normal = NULL;
    utf8proc_ssize_t bytes = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &normal,
                                          (utf8proc_option_t)option[form]);
    if (bytes < 0) FAIL(STATUS_INVALID, "the text cannot be normalised: %s", utf8proc_errmsg(bytes));
    *out = (char *)normal;
    *out_length = (size_t)bytes;
    return STATUS_OK;
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
    default:
        return code == 0x200c || code == 0x200d;
    }
}
