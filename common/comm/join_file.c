#include "common/comm/join_file.h"

#include "common/store/store.h"
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
    memcpy(out, text, strlen(text) + 1);
    return true;
}

status_t join_file_read(const char *path, join_file_t *out) {
    char *text;
    *out = (join_file_t){0};
    TRY(file_read_whole(path, LARGEST, &text, NULL));
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    explicit_bzero(text, strlen(text));
    free(text);
    bool good = json_integer_value(json_object_get(root, "schema")) == JOIN_SCHEMA &&
                take_text(root, "endpoint", out->endpoint, sizeof(out->endpoint)) &&
                take_text(root, "public_key", out->public_key, sizeof(out->public_key)) &&
                take_text(root, "secret_key", out->secret_key, sizeof(out->secret_key)) &&
                take_text(root, "host", out->host, sizeof(out->host));
    out->pid = good ? json_integer_value(json_object_get(root, "pid")) : 0;
    json_decref(root);
    if (good && out->endpoint[0]) return STATUS_OK;
    FAIL(STATUS_INVALID,
         "'%s' is no join file; give the join.json that a running poise grpo writes to its output folder", path);
}
