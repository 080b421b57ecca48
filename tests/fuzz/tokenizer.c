// Any bytes as text for a tokenizer, or as a tokenizer's files. The first byte says which:
//   odd                 a tokenizer.json
//   4 k + 2             a tokenizer.model; bit 4: with a class that builds anew
//   else                text, and then ids, for the quickstart's tokenizer or (bit 3) for a SentencePiece-style one
#include "common/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

// Spans must follow one another, and a stream must give what decoding gives.
static void check_decoded(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip) {
    char *text = NULL;
    size_t length = 0, at = 0;
    int32_t *span = calloc(2 * (size_t)count + 2, sizeof(*span));
    tokenizer_stream_t stream = {0};
    FUZZ_CHECK(span);
    status_t status = tokenizer_decode_offsets(tokenizer, ids, count, skip, &text, &length, span);
    for (int i = 0; i <= count && !status; i++) {
        const char *piece;
        size_t bytes;
        if (i < count) FUZZ_CHECK(span[2 * i] == (i ? span[2 * i - 1] : 0) && span[2 * i + 1] >= span[2 * i]);
        status = tokenizer_stream_push(tokenizer, &stream, i < count ? ids[i] : -1, skip, &piece, &bytes);
        if (status) break;
        FUZZ_CHECK(at + bytes <= length && memcmp(piece, text + at, bytes) == 0);
        at += bytes;
    }
    FUZZ_CHECK(status || at == length);
    tokenizer_stream_free(&stream);
    status_free(status);
    free(span);
    free(text);
}

static void use(const tokenizer_t *tokenizer, const char *text, size_t length) {
    for (int special = 0; special < 2; special++) {
        token_list_t list = {0};
        status_t status = special ? tokenizer_encode_whole(tokenizer, text, NULL, length, &list)
                                  : tokenizer_encode(tokenizer, text, length, false, &list);
        for (int i = 0; i < list.count; i++) {
            FUZZ_CHECK(list.id[i] >= 0);
            FUZZ_CHECK(list.offset[2 * i] <= list.offset[2 * i + 1]);
            FUZZ_CHECK(!i || list.offset[2 * i] >= list.offset[2 * i - 2]);
        }
        if (!status) check_decoded(tokenizer, list.id, list.count, special);
        status_free(status);
        token_list_free(&list);
    }
}

// Tokens as a model may make them: any numbers.
static void decode(const tokenizer_t *tokenizer, const uint8_t *data, size_t size) {
    fuzz_bytes_t bytes = {.at = data, .end = data + size};
    int32_t ids[256];
    int count = 0;
    while (bytes.at < bytes.end && count < 256) ids[count++] = (int32_t)fuzz_take(&bytes, 2);
    check_decoded(tokenizer, ids, count, false);
    check_decoded(tokenizer, ids, count, true);
}

static void open_folder(const char *name, const uint8_t *data, size_t size, const char *config) {
    tokenizer_t *tokenizer = NULL;
    static const char text[] = "<s> the cat's 12 \xc3\xa9\xe2\x96\x81\xf0\x9f\x99\x82\n a\xcc\x81 <0x41>";
    fuzz_file(name, data, size);
    fuzz_file("config.json", config, strlen(config));
    status_t status = tokenizer_open(fuzz_folder(), &tokenizer);
    if (!status) use(tokenizer, text, sizeof(text) - 1);
    if (!status) decode(tokenizer, data, size < 64 ? size : 64);
    status_free(status);
    tokenizer_close(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tokenizer_t *known[2];
    static const char *const folders[] = {"/configs/quickstart", "/tests/goldens/tokenizers/spm_legacy"};
    fuzz_allow(0, 0, 0);
    for (int i = 0; i < 2 && !known[i]; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s%s", POISE_SOURCE_DIR, folders[i]);
        status_t status = tokenizer_open(path, &known[i]);
        FUZZ_CHECK(!status);
    }
    if (!size) return 0;
    fuzz_allow(4 << 20, 512, size);
    if (data[0] & 1) {
        open_folder("tokenizer.json", data + 1, size - 1, data[0] & 16 ? "{\"model_type\":\"gemma3\"}" : "{}");
    } else if (data[0] & 2) {
        fuzz_file("tokenizer.json", NULL, 0);
        open_folder("tokenizer.model", data + 1, size - 1, data[0] & 16 ? "{\"model_type\":\"gemma3\"}" : "{}");
    } else {
        const tokenizer_t *tokenizer = known[data[0] >> 3 & 1];
        use(tokenizer, (const char *)data + 1, size - 1);
        decode(tokenizer, data + 1, size - 1);
    }
    return 0;
}
