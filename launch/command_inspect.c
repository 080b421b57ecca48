// poise inspect: finds out what a path is and tells what it holds.
#include "common/store/store.h"
#include "common/text/utf8.h"
#include "launch/commands.h"
#include "launch/inspect_parts.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MODEL = 1, SAMPLE };

void inspect_line(const char *key, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("  %-22s ", key);
    vprintf(format, arguments);
    putchar('\n');
    va_end(arguments);
}

void inspect_quoted(const char *bytes, size_t length) {
    bool text = utf8_valid(bytes, length) == length;
    putchar('"');
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '\n')
            fputs("\\n", stdout);
        else if (c == '\t')
            fputs("\\t", stdout);
        else if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 32 || c == 127 || (c > 127 && !text))
            printf("\\x%02x", c);
        else
            putchar(c);
    }
    putchar('"');
}

status_t inspect_join(const char *directory, const char *name, char out[INSPECT_PATH_BYTES]) {
    if (snprintf(out, INSPECT_PATH_BYTES, "%s/%s", directory, name) >= INSPECT_PATH_BYTES)
        FAIL(STATUS_INVALID, "the path %.80s... is too long", directory);
    return STATUS_OK;
}

bool inspect_has(const char *directory, const char *name) {
    char path[INSPECT_PATH_BYTES];
    struct stat about;
    status_t status = inspect_join(directory, name, path);
    bool found = !status && !stat(path, &about);
    status_free(status);
    return found;
}

status_t inspect_json(const char *directory, const char *name, json_t **out) {
    char path[INSPECT_PATH_BYTES], *text;
    size_t size;
    json_error_t error;
    *out = NULL;
    TRY(inspect_join(directory, name, path));
    TRY(file_read_whole(path, 64 << 20, &text, &size));
    *out = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!*out) FAIL(STATUS_INVALID, "%s:%d: this is no JSON: %s", path, error.line, error.text);
    if (json_is_object(*out)) return STATUS_OK;
    json_decref(*out);
    *out = NULL;
    FAIL(STATUS_INVALID, "%s holds no JSON object", path);
}

static status_t inspect_folder(const char *path) {
    // A run's folder may hold an evaluation's or a model's folder inside, so the order matters little; adapters come
    // before models because PEFT folders may carry a config.json too.
    if (inspect_has(path, "adapter_config.json")) return inspect_adapter(path);
    if (inspect_has(path, "config.json")) return inspect_model(path);
    if (inspect_has(path, "samples.jsonl") || inspect_has(path, "samples.rank-0.jsonl") ||
        inspect_has(path, "eval.json"))
        return inspect_evaluation(path);
    if (inspect_has(path, "metrics.jsonl") || inspect_has(path, "checkpoints") || inspect_has(path, "result.json"))
        return inspect_run(path);
    FAIL(STATUS_INVALID,
         "%s is none of what Poise reads or writes: a model (config.json), an adapter (adapter_config.json), an "
         "evaluation (samples.jsonl) or a run (metrics.jsonl, checkpoints/)",
         path);
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static status_t inspect_file(const char *path, const char *model, int64_t sample) {
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char start[8] = {0};
    FILE *file = fopen(path, "rb");
    if (!file) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    size_t length = fread(start, 1, sizeof(start), file);
    fclose(file);
    if (length == sizeof(start) && !memcmp(start, signature, sizeof(start))) return inspect_store(path, model, sample);
    if (ends_with(path, ".safetensors")) return inspect_safetensors(path);
    FAIL(STATUS_INVALID, "%s is no HDF5 file (packed data, checkpoint, trajectories) and no .safetensors file", path);
}

status_t command_inspect(int argc, char **argv) {
    static const struct option names[] = {
        {"model", required_argument, NULL, MODEL}, {"sample", required_argument, NULL, SAMPLE}, {NULL, 0, NULL, 0}};
    const char *model = NULL;
    int64_t sample = -1;
    opterr = 0;
    optind = 0;
    for (int letter; (letter = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        if (letter == MODEL)
            model = optarg;
        else if (letter == SAMPLE)
            TRY(argument_whole("sample", optarg, 0, INT64_MAX, &sample));
        else
            FAIL(STATUS_INVALID, "poise inspect does not take '%s'; 'poise --help' shows what it takes",
                 argv[optind - 1]);
    }
    if (optind != argc - 1) FAIL(STATUS_INVALID, "poise inspect wants one PATH");
    const char *path = argv[optind];
    struct stat about;
    if (stat(path, &about)) FAIL(STATUS_INVALID, "cannot look at %s: %s", path, strerror(errno));
    if (S_ISDIR(about.st_mode)) {
        if (sample >= 0) FAIL(STATUS_INVALID, "--sample is for packed data files; %s is a folder", path);
        return inspect_folder(path);
    }
    if (!S_ISREG(about.st_mode)) FAIL(STATUS_INVALID, "%s is neither a file nor a folder", path);
    return inspect_file(path, model, sample);
}
