// Runs a fuzz target over files and folders of files: the committed corpus, in every build, without libFuzzer.
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <sys/stat.h>

static size_t runs;

static void run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    FUZZ_CHECK(file);
    char *data = NULL;
    size_t size = 0;
    FILE *copy = open_memstream(&data, &size);
    for (int c; (c = getc(file)) != EOF;) putc(c, copy);
    fclose(file);
    fclose(copy);
    fprintf(stderr, "%s\n", path); // the last one named is the one that failed
    // As large as the input and no larger, so that a sanitizer sees reads beyond it.
    uint8_t *exact = malloc(size ? size : 1);
    if (size) memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    free(data);
    runs++;
}

static void run_path(const char *path) {
    struct stat about;
    if (stat(path, &about)) return; // a target without crashes has no such folder
    if (!S_ISDIR(about.st_mode)) {
        run_file(path);
        return;
    }
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char child[4096];
        snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.') run_path(child);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv) {
    const uint8_t nothing[1] = {0};
    LLVMFuzzerTestOneInput(nothing, 0);
    for (int i = 1; i < argc; i++) run_path(argv[i]);
    fprintf(stderr, "%zu inputs\n", runs);
    return runs ? 0 : 1;
}
