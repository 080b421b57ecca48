// Any bytes as text for the quickstart's tokenizer, or (first byte odd) as a tokenizer.json.
#include "common/text/tokenizer.h"
#include "common/store/store.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const tokenizer_t *tokenizer, const char *text, size_t length) {
    for (int special = 0; special < 2; special++) {
        token_list_t list = {0};
        char *decoded = NULL;
        status_t status = tokenizer_encode(tokenizer, text, length, special, &list);
        if (!status) status = tokenizer_decode(tokenizer, list.id, list.count, special, &decoded);
        for (int i = 0; i < list.count; i++) {
            if (list.offset[2 * i] > list.offset[2 * i + 1]) abort();
            if (i && list.offset[2 * i] < list.offset[2 * i - 1]) abort();
        }
        status_free(status);
        free(decoded);
        token_list_free(&list);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tokenizer_t *tokenizer = NULL;
    if (!size) return 0;
    if (data[0] & 1) {
        char folder[] = "/tmp/poise-fuzz-XXXXXX", path[64];
        if (!mkdtemp(folder)) return 0;
        snprintf(path, sizeof(path), "%s/tokenizer.json", folder);
        status_t status = file_write_whole(path, data + 1, size - 1);
        if (!status) status = tokenizer_open(folder, &tokenizer);
        if (!status) use(tokenizer, "<s> the cat's 12 \xc3\xa9\n", 20);
        status_free(status);
        unlink(path);
        rmdir(folder);
    } else {
        status_t status = tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &tokenizer);
        if (!status) use(tokenizer, (const char *)data + 1, size - 1);
        status_free(status);
    }
    tokenizer_close(tokenizer);
    return 0;
}
