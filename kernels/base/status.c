#include "kernels/base/status.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_BYTES = 2048, TRACE_PLACES = 32 };

typedef struct place {
    const char *file;
    const char *function;
    int line;
} place_t;

struct status {
    status_kind_t kind;
    int places;  // kept in `trace`
    int dropped; // beyond TRACE_PLACES
    place_t trace[TRACE_PLACES];
    char message[MESSAGE_BYTES];
};

// What status_make returns when it cannot allocate: shared, constant, never freed or written.
static const struct status out_of_memory = {
    .kind = STATUS_MEMORY,
    .message = "out of memory (and none was left to say where); run on a machine with more, or with a smaller batch",
};

static bool status_is_constant(status_t status) {
    return status == (status_t)(uintptr_t)&out_of_memory;
}

status_t status_make(status_kind_t kind, const char *file, int line, const char *function, const char *format, ...) {
    status_t status = calloc(1, sizeof(*status));
    if (!status) return (status_t)(uintptr_t)&out_of_memory;
    status->kind = kind;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(status->message, sizeof(status->message), format, arguments);
    va_end(arguments);
    return status_trace(status, file, line, function);
}

status_t status_trace(status_t status, const char *file, int line, const char *function) {
    if (!status || status_is_constant(status)) return status;
    if (status->places == TRACE_PLACES) {
        status->dropped++;
        return status;
    }
    status->trace[status->places++] = (place_t){.file = file, .function = function, .line = line};
    return status;
}

status_t status_context(status_t status, const char *format, ...) {
    if (!status || status_is_constant(status)) return status;
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (used < 0 || used > MESSAGE_BYTES / 2) return status;
    snprintf(text + used, sizeof(text) - (size_t)used, ": %.*s", MESSAGE_BYTES - used - 3, status->message);
    memcpy(status->message, text, sizeof(text));
    return status;
}

status_kind_t status_kind(status_t status) {
    return status->kind;
}

const char *status_message(status_t status) {
    return status ? status->message : "ok";
}

int status_exit_code(status_t status) {
    if (!status || status->kind == STATUS_CANCELLED) return 0;
    return status->kind == STATUS_INVALID ? 2 : 1;
}

void status_print(status_t status, FILE *stream, int rank, bool with_trace) {
    if (!status) return;
    if (rank >= 0)
        fprintf(stream, "poise: [rank %d] %s\n", rank, status->message);
    else
        fprintf(stream, "poise: %s\n", status->message);
    for (int i = 0; with_trace && i < status->places; i++)
        fprintf(stream, "  at %s:%d in %s\n", status->trace[i].file, status->trace[i].line, status->trace[i].function);
    if (with_trace && status->dropped) fprintf(stream, "  and %d places more\n", status->dropped);
    fflush(stream);
}

void status_free(status_t status) {
    if (status && !status_is_constant(status)) free(status);
}

status_t status_first(status_t first, status_t second) {
    if (!first) return second;
    status_free(second);
    return first;
}

status_t memory_allocate(size_t count, size_t size, void **out) {
    *out = NULL;
    if (size && count > PTRDIFF_MAX / size)
        FAIL(STATUS_MEMORY, "cannot allocate %zu items of %zu bytes: the size overflows", count, size);
    size_t bytes = count * size;
    *out = calloc(1, bytes ? bytes : 1);
    if (!*out)
        FAIL(STATUS_MEMORY,
             "out of memory while allocating %zu bytes; use a machine with more memory, or a smaller batch", bytes);
    return STATUS_OK;
}

status_t memory_grow(void **pointer, size_t *capacity, size_t needed, size_t size) {
    if (needed <= *capacity) return STATUS_OK;
    size_t wanted = *capacity ? *capacity : 16;
    if (!size) size = 1;
    while (wanted < needed) {
        if (wanted > PTRDIFF_MAX / 2) FAIL(STATUS_MEMORY, "cannot grow a buffer to %zu items", needed);
        wanted *= 2;
    }
    if (wanted > PTRDIFF_MAX / size) FAIL(STATUS_MEMORY, "cannot grow a buffer to %zu items", needed);
    void *grown = realloc(*pointer, wanted * size);
    if (!grown) FAIL(STATUS_MEMORY, "out of memory while growing a buffer to %zu bytes", wanted * size);
    *pointer = grown;
    *capacity = wanted;
    return STATUS_OK;
}

status_t memory_copy_bytes(const void *bytes, size_t length, char **out) {
    TRY(memory_allocate(length + 1, 1, (void **)out));
    if (length) memcpy(*out, bytes, length);
    return STATUS_OK;
}

status_t memory_copy_string(const char *text, char **out) {
    return memory_copy_bytes(text, strlen(text), out);
}
