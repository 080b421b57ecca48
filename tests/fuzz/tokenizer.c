// Any bytes as text for the quickstart's tokenizer, or (first byte odd) as a tokenizer.json.
#include "common/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static void use(const tokenizer_t *tokenizer, const char *text, size_t length) {
    for (int special = 0; special < 2; special++) {
        token_list_t list = {0};
        char *decoded = NULL;
        status_t status = tokenizer_encode(tokenizer, text, length, special, &list);
        if (!status) status = tokenizer_decode(tokenizer, list.id, list.count, special, &decoded);
        for (int i = 0; i < list.count; i++) {
            FUZZ_CHECK(list.id[i] >= 0 && list.id[i] < tokenizer_size(tokenizer));
            FUZZ_CHECK(list.offset[2 * i] <= list.offset[2 * i + 1]);
            FUZZ_CHECK(!i || list.offset[2 * i] >= list.offset[2 * i - 1]);
        }
        status_free(status);
        free(decoded);
        token_list_free(&list);
    }
}

// Tokens as a model may make them: any numbers.
static void decode(const tokenizer_t *tokenizer, const uint8_t *data, size_t size) {
    fuzz_bytes_t bytes = {.at = data, .end = data + size};
    tokenizer_stream_t stream = {0};
    while (bytes.at < bytes.end) {
        int32_t id = (int32_t)fuzz_take(&bytes, 2);
        char *whole = NULL;
        const char *text;
        size_t length;
        status_free(tokenizer_stream_push(tokenizer, &stream, id, true, &text, &length));
        status_free(tokenizer_decode(tokenizer, &id, 1, false, &whole));
        free(whole);
    }
    tokenizer_stream_free(&stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tokenizer_t *quickstart;
    tokenizer_t *tokenizer = NULL;
    fuzz_allow(0, 0, 0);
    if (!quickstart) {
        status_t status = tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &quickstart);
        FUZZ_CHECK(!status);
    }
    if (!size) return 0;
    fuzz_allow(4 << 20, 256, size);
    if (data[0] & 1) {
        fuzz_file("tokenizer.json", data + 1, size - 1);
        status_t status = tokenizer_open(fuzz_folder(), &tokenizer);
        if (!status) use(tokenizer, "<s> the cat's 12 \xc3\xa9\n", 20);
        status_free(status);
        tokenizer_close(tokenizer);
    } else {
        use(quickstart, (const char *)data + 1, size - 1);
        decode(quickstart, data + 1, size - 1);
    }
    return 0;
}
