// Any bytes as a configuration file, and, behind a separator, as --set arguments. What is accepted prints to a file
// that is accepted again and prints to the same.
#include "common/config/config.h"
#include "tests/fuzz/fuzz.h"

enum { SETTINGS = 8 };

static char *print(const config_t *config, size_t *size) {
    char *text = NULL;
    FILE *stream = open_memstream(&text, size);
    status_t status = config_print(config, stream);
    fclose(stream);
    FUZZ_CHECK(!status);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *setting[SETTINGS];
    int settings = 0;
    const uint8_t *part;
    size_t length;
    config_t config, again;
    fuzz_parts_t parts = fuzz_parts(data, size);
    fuzz_allow(4 << 20, 64, size); // a file of at most 1 MiB is read at once
    if (!fuzz_next(&parts, &part, &length)) return 0;
    fuzz_file("run.yaml", part, length);
    while (settings < SETTINGS && fuzz_next(&parts, &part, &length))
        setting[settings++] = strndup((const char *)part, length);
    status_t status = config_read(fuzz_path("run.yaml"), (const char *const *)setting, settings, &config);
    if (!status) {
        size_t first_size, second_size;
        char *first = print(&config, &first_size);
        fuzz_file("again.yaml", first, first_size);
        status = config_read(fuzz_path("again.yaml"), NULL, 0, &again);
        FUZZ_CHECK(!status);
        uint64_t hash, hash_again;
        FUZZ_CHECK(!config_training_hash(&config, &hash) && !config_training_hash(&again, &hash_again));
        FUZZ_CHECK(hash == hash_again);
        char *second = print(&again, &second_size);
        FUZZ_CHECK(first_size == second_size && memcmp(first, second, first_size) == 0);
        free(first);
        free(second);
        config_free(&again);
        config_free(&config);
    }
    status_free(status);
    while (settings) free(setting[--settings]);
    return 0;
}
