#include "common/comm/join_file.h"

#include "common/store/store.h"
#include "common/text/utf8.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { JOIN_SCHEMA = 1, LARGEST = 65536 };

status_t join_file_write(const job_t *job, const char *endpoint, const char *path) {
    char host[256] = "localhost";
    gethostname(host, sizeof(host) - 1);
    json_t *root = json_pack("{s:i, s:s, s:s, s:s, s:s, s:I}", "schema", JOIN_SCHEMA, "endpoint", endpoint,
                             "public_key", job->public_key ? job->public_key : "", "secret_key",
                             job->secret_key ? job->secret_key : "", "host", host, "pid", (json_int_t)getpid());
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing '%s'", path);
    // Nobody else may read the keys, not even for the moment before a chmod.
    mode_t before = umask(0077);
    status_t status = file_write_whole(path, text, strlen(text));
    umask(before);
    explicit_bzero(text, strlen(text));
    free(text);
    return status;
}

static bool take_text(const json_t *root, const char *key, char *out, size_t bytes) {
    const char *text = json_string_value(json_object_get(root, key));
    if (!text || strlen(text) >= bytes) return false;
    utf8_printable(text, strlen(text), out, bytes);
    return strcmp(text, out) == 0;
}

static bool take_key(const json_t *root, const char *key, char *out, size_t bytes) {
    static const char z85[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    if (!take_text(root, key, out, bytes)) return false;
    size_t length = strlen(out);
    return strspn(out, z85) == length && (length == 0 || length == bytes - 1);
}

bool join_file_parse(const char *text, size_t size, join_file_t *out) {
    *out = (join_file_t){0};
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    const json_t *pid = json_object_get(root, "pid");
    bool good = json_integer_value(json_object_get(root, "schema")) == JOIN_SCHEMA &&
                take_text(root, "endpoint", out->endpoint, sizeof(out->endpoint)) && out->endpoint[0] &&
                take_key(root, "public_key", out->public_key, sizeof(out->public_key)) &&
                take_key(root, "secret_key", out->secret_key, sizeof(out->secret_key)) &&
                !out->public_key[0] == !out->secret_key[0] && take_text(root, "host", out->host, sizeof(out->host)) &&
                (!pid || json_integer_value(pid) > 0);
    if (good)
        out->pid = json_integer_value(pid);
    else
        explicit_bzero(out, sizeof(*out));
    json_decref(root);
    return good;
}

status_t join_file_read(const char *path, join_file_t *out) {
    char *text;
    size_t size;
    *out = (join_file_t){0};
    TRY(file_read_whole(path, LARGEST, &text, &size));
    bool good = join_file_parse(text, size, out);
    explicit_bzero(text, size);
    free(text);
    if (good) return STATUS_OK;
    FAIL(STATUS_INVALID,
         "'%s' is no join file; give the join.json that a running poise grpo writes to its output folder", path);
}
