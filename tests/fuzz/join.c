// A join.json, as a rollout pool reads it.
#include "common/comm/join_file.h"
#include "common/text/utf8.h"
#include "tests/fuzz/fuzz.h"

static void check_printable(const char *text, size_t bytes) {
    size_t length = strnlen(text, bytes);
    FUZZ_CHECK(length < bytes);
    FUZZ_CHECK(utf8_valid(text, length) == length);
    for (size_t i = 0; i < length; i++) FUZZ_CHECK((unsigned char)text[i] >= ' ' && text[i] != 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    join_file_t file;
    bool good = join_file_parse((const char *)data, size, &file);
    check_printable(file.endpoint, sizeof(file.endpoint));
    check_printable(file.host, sizeof(file.host));
    check_printable(file.public_key, sizeof(file.public_key));
    check_printable(file.secret_key, sizeof(file.secret_key));
    FUZZ_CHECK(good == (file.endpoint[0] != 0));
    FUZZ_CHECK(file.pid >= 0);
    FUZZ_CHECK(strlen(file.public_key) == strlen(file.secret_key));
    FUZZ_CHECK(!file.public_key[0] || strlen(file.public_key) == sizeof(file.public_key) - 1);
    return 0;
}
