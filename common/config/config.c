#include "common/config/config.h"

#include "common/config/config_schema.h"
#include "common/text/utf8.h"
#include <errno.h>
#include <libfyaml.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

// Where a value comes from, for messages: "grpo.yaml:12" or "--set".
typedef struct origin {
    const char *file; // NULL: --set
    int line;
} origin_t;

typedef struct string_pool {
    char **text;
    size_t count, capacity;
} string_pool_t;

static void origin_text(origin_t origin, char *out, size_t bytes) {
    if (origin.file)
        snprintf(out, bytes, "%s:%d", origin.file, origin.line);
    else
        snprintf(out, bytes, "--set");
}

static status_t config_keep_string(config_t *config, const char *text, size_t length, char **out) {
    string_pool_t *pool = config->owned;
    TRY(memory_grow((void **)&pool->text, &pool->capacity, pool->count + 1, sizeof(char *)));
    TRY(memory_copy_bytes(text, length, out));
    pool->text[pool->count++] = *out;
    return STATUS_OK;
}

// ---- nearest name ----

enum { LONGEST_NAME = 96 };

static int edit_distance(const char *a, const char *b) {
    int row[LONGEST_NAME + 1];
    int n = (int)strlen(b);
    if (strlen(a) > LONGEST_NAME || n > LONGEST_NAME) return LONGEST_NAME;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

// The section whose name is nearest, into `out`; for a path that has keys below it.
static const char *config_nearest_section(const char *path, char out[LONGEST_NAME]) {
    int least = LONGEST_NAME + 1;
    for (int i = 0; i < config_schema_count; i++) {
        const char *dot = strchr(config_schema[i].path, '.');
        char section[LONGEST_NAME];
        if (!dot) continue;
        snprintf(section, sizeof(section), "%.*s", (int)(dot - config_schema[i].path), config_schema[i].path);
        int distance = edit_distance(path, section);
        if (distance >= least) continue;
        least = distance;
        memcpy(out, section, sizeof(section));
    }
    return out;
}

static const char *config_nearest(const char *path) {
    const char *nearest = config_schema[0].path;
    int least = LONGEST_NAME + 1;
    for (int i = 0; i < config_schema_count; i++) {
        const char *last = strrchr(config_schema[i].path, '.');
        const char *mine = strrchr(path, '.');
        int distance = edit_distance(path, config_schema[i].path);
        // A right last part under a wrong section is nearer than its letters say.
        if (last && !strcmp(last + 1, mine ? mine + 1 : path)) distance = distance < 2 ? distance : 2;
        if (distance < least) {
            least = distance;
            nearest = config_schema[i].path;
        }
    }
    return nearest;
}

static const config_key_t *config_find(const char *path) {
    for (int i = 0; i < config_schema_count; i++)
        if (!strcmp(config_schema[i].path, path)) return &config_schema[i];
    return NULL;
}

// ---- values ----

// Index of `text` among "a|b|c", or -1.
static int choice_index(const char *choices, const char *text) {
    size_t length = strlen(text);
    int index = 0;
    for (const char *at = choices; at; index++) {
        const char *end = strchr(at, '|');
        size_t span = end ? (size_t)(end - at) : strlen(at);
        if (span == length && !memcmp(at, text, span)) return index;
        at = end ? end + 1 : NULL;
    }
    return -1;
}

static void choice_name(const char *choices, int index, char *out, size_t bytes) {
    const char *at = choices;
    while (index-- > 0) at = strchr(at, '|') + 1;
    snprintf(out, bytes, "%.*s", (int)strcspn(at, "|"), at);
}

static status_t config_set_number(char *field, const config_key_t *key, const char *text, const char *where) {
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    bool whole = key->kind != KIND_REAL;
    if (end == text || *end || errno || !isfinite(value) || (whole && value != floor(value)))
        FAIL(STATUS_INVALID, "%s: %s must be a %s, not '%s'", where, key->path, whole ? "whole number" : "number",
             text);
    if (value < key->least || value > key->most)
        FAIL(STATUS_INVALID, "%s: %s must lie between %.12g and %.12g, not %s", where, key->path, key->least, key->most,
             text);
    if (key->kind == KIND_INT)
        *(int *)(void *)field = (int)value;
    else if (key->kind == KIND_INT64)
        *(int64_t *)(void *)field = (int64_t)value;
    else
        *(double *)(void *)field = value;
    return STATUS_OK;
}

// Sets a scalar key from its text.
static status_t config_set_text(config_t *config, const config_key_t *key, const char *text, const char *where) {
    char *field = (char *)config + key->offset;
    if (key->kind == KIND_LIST)
        FAIL(STATUS_INVALID, "%s: %s must be a list such as [q_proj, v_proj], not '%s'", where, key->path, text);
    if (key->choices) {
        int index = choice_index(key->choices, text);
        if (index < 0) FAIL(STATUS_INVALID, "%s: %s must be one of %s, not '%s'", where, key->path, key->choices, text);
        if (key->kind == KIND_BOOL) *(bool *)(void *)field = index == 1;
        // Every enum of config_t is an unsigned int to the compiler, as all its values are small and not negative.
        if (key->kind == KIND_ENUM) *(config_objective_t *)(void *)field = (config_objective_t)index;
    }
    if (key->kind == KIND_STRING) return config_keep_string(config, text, strlen(text), (char **)(void *)field);
    if (key->kind == KIND_INT || key->kind == KIND_INT64 || key->kind == KIND_REAL)
        return config_set_number(field, key, text, where);
    return STATUS_OK;
}

static status_t config_set_node(config_t *config, const char *path, struct fy_node *node, origin_t origin);

static status_t config_set_list(config_t *config, const config_key_t *key, struct fy_node *node, const char *where) {
    config_list_t *list = (config_list_t *)(void *)((char *)config + key->offset);
    list->count = 0;
    void *position = NULL;
    for (struct fy_node *item; (item = fy_node_sequence_iterate(node, &position));) {
        size_t length = 0;
        const char *text = fy_node_get_scalar(item, &length);
        if (!text) FAIL(STATUS_INVALID, "%s: the items of %s must be plain text", where, key->path);
        if (list->count == CONFIG_MAX_LIST)
            FAIL(STATUS_INVALID, "%s: %s may have at most %d items", where, key->path, CONFIG_MAX_LIST);
        TRY(config_keep_string(config, text, length, &list->item[list->count]));
        list->count++;
    }
    return STATUS_OK;
}

static status_t config_set_mapping(config_t *config, const char *path, struct fy_node *node, origin_t origin) {
    void *position = NULL;
    for (struct fy_node_pair *pair; (pair = fy_node_mapping_iterate(node, &position));) {
        size_t length = 0;
        const char *name = fy_node_get_scalar(fy_node_pair_key(pair), &length);
        char child[2 * LONGEST_NAME];
        const struct fy_mark *mark = fy_token_start_mark(fy_node_get_scalar_token(fy_node_pair_key(pair)));
        if (mark) origin.line = mark->line + 1;
        if (!name || length > LONGEST_NAME)
            FAIL(STATUS_INVALID, "%s:%d: a key must be plain text", origin.file, origin.line);
        snprintf(child, sizeof(child), "%.*s%s%.*s", LONGEST_NAME - 1, path, *path ? "." : "", (int)length, name);
        TRY(config_set_node(config, child, fy_node_pair_value(pair), origin));
    }
    return STATUS_OK;
}

static bool config_is_section(const char *path) {
    size_t length = strlen(path);
    for (int i = 0; i < config_schema_count; i++)
        if (!strncmp(config_schema[i].path, path, length) && config_schema[i].path[length] == '.') return true;
    return false;
}

static status_t config_set_node(config_t *config, const char *path, struct fy_node *node, origin_t origin) {
    char where[512];
    origin_text(origin, where, sizeof(where));
    const config_key_t *key = config_find(path);
    if (!key && config_is_section(path)) {
        if (node && fy_node_is_mapping(node)) return config_set_mapping(config, path, node, origin);
        FAIL(STATUS_INVALID, "%s: '%s' is a section; give its keys, one a line, indented below it", where, path);
    }
    if (!key && node && fy_node_is_mapping(node) && !strchr(path, '.')) {
        char section[LONGEST_NAME];
        FAIL(STATUS_INVALID, "%s: unknown key '%s'; the nearest known one is '%s'", where, path,
             config_nearest_section(path, section));
    }
    if (!key)
        FAIL(STATUS_INVALID, "%s: unknown key '%s'; the nearest known one is '%s'", where, path, config_nearest(path));
    if (node && fy_node_is_sequence(node) && key->kind == KIND_LIST) return config_set_list(config, key, node, where);
    if (!node || !fy_node_is_scalar(node)) FAIL(STATUS_INVALID, "%s: %s must be a single value", where, path);
    size_t length = 0;
    const char *text = fy_node_get_scalar(node, &length);
    char copy[4096];
    if (!text || length >= sizeof(copy) || memchr(text, 0, length))
        FAIL(STATUS_INVALID, "%s: the value of %s is longer than %zu bytes or holds a zero byte", where, path,
             sizeof(copy) - 1);
    memcpy(copy, text, length);
    copy[length] = 0;
    return config_set_text(config, key, copy, where);
}

// The first complaint of libfyaml's parser, for the user.
static status_t yaml_error(struct fy_diag *diag, const char *name) {
    void *position = NULL;
    struct fy_diag_error *error = diag ? fy_diag_errors_iterate(diag, &position) : NULL;
    status_t status =
        error ? STATUS_NEW(STATUS_INVALID, "%s:%d:%d: not valid YAML: %s", name, error->line, error->column, error->msg)
              : STATUS_NEW(STATUS_INVALID, "%s: not valid YAML", name);
    fy_diag_destroy(diag);
    return status;
}

// The YAML library never returns from a line that begins with '%' and is no UTF-8. Configurations need neither
// directives nor control characters, so the library sees none.
static status_t config_check_text(const char *name, const char *text, size_t length) {
    int line = 1;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if ((byte < 0x20 && !strchr("\t\n\r", byte)) || !byte || byte == 0x7f)
            FAIL(STATUS_INVALID, "%s:%d: it holds the control character 0x%02x", name, line, byte);
        if (byte == '%' && (!i || strchr("\n\r", text[i - 1])))
            FAIL(STATUS_INVALID, "%s:%d: YAML directives (lines that begin with '%%') are not taken", name, line);
        line += byte == '\n';
    }
    if (utf8_valid(text, length) != length) FAIL(STATUS_INVALID, "%s is no UTF-8 text", name);
    return STATUS_OK;
}

static bool config_says_nothing(const char *text, size_t length) {
    bool comment = false;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '#') comment = true;
        if (text[i] == '\n' || text[i] == '\r') comment = false;
        if (!comment && !strchr(" \t\r\n", text[i])) return false;
    }
    return true;
}

static status_t config_apply_yaml(config_t *config, const char *name, const char *text, size_t length, origin_t origin,
                                  const char *path) {
    TRY(config_check_text(name, text, length));
    if (config_says_nothing(text, length))
        FAIL(STATUS_INVALID, "%s: there is nothing but white space and comments", name);
    struct fy_diag_cfg diag_options;
    fy_diag_cfg_default(&diag_options);
    diag_options.fp = NULL;
    struct fy_diag *diag = fy_diag_create(&diag_options);
    if (diag) fy_diag_set_collect_errors(diag, true);
    struct fy_parse_cfg options = {.flags = FYPCF_DEFAULT_DOC, .diag = diag};
    struct fy_document *document = fy_document_build_from_string(&options, text, length);
    if (!document) return yaml_error(diag, name);
    struct fy_node *root = fy_document_root(document);
    status_t status = STATUS_OK;
    if (*path)
        status = config_set_node(config, path, root, origin);
    else if (root && fy_node_is_mapping(root))
        status = config_set_mapping(config, "", root, origin);
    else
        status = STATUS_NEW(STATUS_INVALID, "%s: the file must be a mapping of keys to values", name);
    fy_document_destroy(document);
    fy_diag_destroy(diag);
    return status;
}

static status_t config_apply_file(config_t *config, const char *path) {
    enum { LARGEST = 1 << 20 };
    FILE *file = fopen(path, "rb");
    if (!file) FAIL(STATUS_INVALID, "cannot open the configuration %s: %s", path, strerror(errno));
    char *text = NULL;
    status_t status = memory_allocate(LARGEST + 1, 1, (void **)&text);
    size_t length = status ? 0 : fread(text, 1, LARGEST + 1, file);
    fclose(file);
    if (!status && length > LARGEST)
        status = STATUS_NEW(STATUS_INVALID, "%s is larger than 1 MiB: is it a configuration?", path);
    if (!status) status = config_apply_yaml(config, path, text, length, (origin_t){.file = path, .line = 1}, "");
    free(text);
    return status;
}

static status_t config_apply_setting(config_t *config, const char *setting) {
    const char *equals = strchr(setting, '=');
    char path[LONGEST_NAME];
    if (!equals || equals == setting || equals - setting >= LONGEST_NAME)
        FAIL(STATUS_INVALID, "--set wants KEY=VALUE, such as --set optimizer.steps=100, not '%s'", setting);
    snprintf(path, sizeof(path), "%.*s", (int)(equals - setting), setting);
    const config_key_t *key = config_find(path);
    if (key && key->kind != KIND_LIST) return config_set_text(config, key, equals + 1, "--set");
    return config_apply_yaml(config, "--set", equals + 1, strlen(equals + 1), (origin_t){0}, path);
}

static status_t config_start(config_t *out) {
    *out = (config_t){0};
    string_pool_t *pool;
    TRY(ALLOCATE(&pool, 1));
    out->owned = pool;
    for (int i = 0; i < config_schema_count; i++) {
        const config_key_t *key = &config_schema[i];
        if (key->kind == KIND_LIST)
            TRY(config_apply_yaml(out, "default", key->initial, strlen(key->initial), (origin_t){0}, key->path));
        else
            TRY(config_set_text(out, key, key->initial, "default"));
    }
    return STATUS_OK;
}

static status_t config_finish(config_t *config, status_t status, const char *const *settings, int setting_count) {
    for (int i = 0; !status && i < setting_count; i++) status = config_apply_setting(config, settings[i]);
    if (status) config_free(config);
    return status;
}

status_t config_read(const char *path, const char *const *settings, int setting_count, config_t *out) {
    status_t status = config_start(out);
    if (!status && path) status = config_apply_file(out, path);
    return config_finish(out, status, settings, setting_count);
}

status_t config_read_text(const char *text, const char *name, const char *const *settings, int setting_count,
                          config_t *out) {
    status_t status = config_start(out);
    if (!status) status = config_apply_yaml(out, name, text, strlen(text), (origin_t){.file = name, .line = 1}, "");
    return config_finish(out, status, settings, setting_count);
}

void config_free(config_t *config) {
    string_pool_t *pool = config->owned;
    if (!pool) return;
    for (size_t i = 0; i < pool->count; i++) free(pool->text[i]);
    free(pool->text);
    free(pool);
    *config = (config_t){0};
}

// ---- printing ----

// Text in double quotes, so that whatever it holds reads back as the same text.
static void print_quoted(FILE *stream, const char *text) {
    fputc('"', stream);
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(stream, "\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            fprintf(stream, "\\x%02x", (unsigned char)*c);
        else
            fputc(*c, stream);
    }
    fputc('"', stream);
}

// The shortest spelling that reads back as the same double.
static void print_real(FILE *stream, double value) {
    char text[32];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    fputs(text, stream);
}

static void print_value(FILE *stream, const config_t *config, const config_key_t *key) {
    const char *field = (const char *)config + key->offset;
    char name[64];
    switch (key->kind) {
    case KIND_STRING:
        print_quoted(stream, *(char *const *)(const void *)field);
        break;
    case KIND_INT:
        fprintf(stream, "%d", *(const int *)(const void *)field);
        break;
    case KIND_INT64:
        fprintf(stream, "%lld", (long long)*(const int64_t *)(const void *)field);
        break;
    case KIND_REAL:
        print_real(stream, *(const double *)(const void *)field);
        break;
    case KIND_BOOL:
        fputs(*(const bool *)(const void *)field ? "true" : "false", stream);
        break;
    case KIND_ENUM:
        choice_name(key->choices, (int)*(const config_objective_t *)(const void *)field, name, sizeof(name));
        fputs(name, stream);
        break;
    case KIND_LIST: {
        const config_list_t *list = (const config_list_t *)(const void *)field;
        fputc('[', stream);
        for (int i = 0; i < list->count; i++) {
            if (i) fputs(", ", stream);
            print_quoted(stream, list->item[i]);
        }
        fputc(']', stream);
        break;
    }
    }
}

status_t config_print(const config_t *config, FILE *stream) {
    char section[LONGEST_NAME] = "";
    for (int i = 0; i < config_schema_count; i++) {
        const config_key_t *key = &config_schema[i];
        const char *dot = strchr(key->path, '.');
        int span = dot ? (int)(dot - key->path) : 0;
        if (dot && ((int)strlen(section) != span || strncmp(section, key->path, (size_t)span))) {
            snprintf(section, sizeof(section), "%.*s", span, key->path);
            fprintf(stream, "%s:\n", section);
        }
        fprintf(stream, "%s%s: ", dot ? "  " : "", dot ? dot + 1 : key->path);
        print_value(stream, config, key);
        fputc('\n', stream);
    }
    if (ferror(stream)) FAIL(STATUS_IO, "cannot write the configuration: %s", strerror(errno));
    return STATUS_OK;
}

status_t config_to_text(const config_t *config, char **out) {
    char *text = NULL;
    size_t size = 0;
    *out = NULL;
    FILE *stream = open_memstream(&text, &size);
    if (!stream) FAIL(STATUS_MEMORY, "no memory for the configuration's text");
    status_t status = config_print(config, stream);
    bool failed = ferror(stream) != 0;
    failed |= fclose(stream) != 0;
    if (failed && !status) status = STATUS_NEW(STATUS_MEMORY, "no memory for the configuration's text");
    if (status)
        free(text);
    else
        *out = text;
    return status;
}

void config_print_reference(FILE *stream) {
    fputs("| key | default | values | meaning |\n| --- | --- | --- | --- |\n", stream);
    for (int i = 0; i < config_schema_count; i++) {
        const config_key_t *key = &config_schema[i];
        fprintf(stream, "| `%s` | `%s` | ", key->path, key->initial);
        if (key->choices) {
            for (const char *c = key->choices; *c; c++) fputs(*c == '|' ? ", " : (char[2]){*c, 0}, stream);
        } else if (key->kind == KIND_STRING || key->kind == KIND_LIST) {
            fputs(key->kind == KIND_LIST ? "list of text" : "text", stream);
        } else {
            fprintf(stream, "%g to %g", key->least, key->most);
        }
        fprintf(stream, " | %s |\n", key->help);
    }
}

status_t config_training_hash(const config_t *config, uint64_t *out) {
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    *out = 0;
    if (!stream) FAIL(STATUS_MEMORY, "out of memory while hashing the configuration");
    for (int i = 0; i < config_schema_count; i++) {
        if (!config_schema[i].shapes_training) continue;
        fprintf(stream, "%s=", config_schema[i].path);
        print_value(stream, config, &config_schema[i]);
        fputc('\n', stream);
    }
    // A hash of half the text would be that of another configuration.
    bool failed = ferror(stream) != 0;
    failed |= fclose(stream) != 0;
    if (!failed) *out = XXH3_64bits(text, length);
    free(text);
    if (failed) FAIL(STATUS_MEMORY, "out of memory while hashing the configuration");
    return STATUS_OK;
}

status_t config_training_hash_text(const config_t *config, char out[CONFIG_HASH_BYTES]) {
    uint64_t hash;
    TRY(config_training_hash(config, &hash));
    snprintf(out, CONFIG_HASH_BYTES, "%016llx", (unsigned long long)hash);
    return STATUS_OK;
}
