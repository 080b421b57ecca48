// Status: how every function of Poise that can fail reports it.
//
// A status_t is NULL for success, else an error object that owns one sentence for the user and a trace of the places
// it passed through (file, line, function). The rank is added where the error is printed, so that kernels/ need not
// know about MPI. Errors are values: nothing here aborts, and whoever ends up with a status frees or returns it.
#ifndef KERNELS_BASE_STATUS_H
#define KERNELS_BASE_STATUS_H

#include <stdbool.h>
#include <stdio.h>

typedef enum status_kind {
    STATUS_FAILED = 1,  // the run failed (exit code 1)
    STATUS_INVALID,     // wrong use: arguments, configuration, input (exit code 2)
    STATUS_MEMORY,      // an allocation failed (1)
    STATUS_IO,          // a file or disk failed (1)
    STATUS_TIMEOUT,     // a deadline passed (1)
    STATUS_PEER,        // a peer died, or sent what it must not (1)
    STATUS_CANCELLED,   // a signal asked us to stop; not a failure (0)
    STATUS_UNAVAILABLE, // what was asked for is not on this machine (1)
} status_kind_t;

typedef struct status *status_t;

#define STATUS_OK      ((status_t)0)
#define STATUS_CHECKED __attribute__((warn_unused_result))

// Makes an error. The message is one sentence that says what happened and what to do, without a trailing newline; it is
// cut at 2,000 bytes. Never returns NULL: when memory is short it returns a constant STATUS_MEMORY object.
status_t status_make(status_kind_t kind, const char *file, int line, const char *function, const char *format, ...)
    __attribute__((format(printf, 5, 6))) STATUS_CHECKED;
// Adds one place to the trace and returns the same status. Places beyond 32 are counted, not kept.
status_t status_trace(status_t status, const char *file, int line, const char *function) STATUS_CHECKED;
// Puts "context: " before the message (which file, which sample, which key) and returns the same status.
status_t status_context(status_t status, const char *format, ...) __attribute__((format(printf, 2, 3))) STATUS_CHECKED;

status_kind_t status_kind(status_t status);
// The sentence for the user; valid until status_free.
const char *status_message(status_t status);
// The exit code of the command (docs/manual.md): 0 for NULL and STATUS_CANCELLED, 2 for STATUS_INVALID, 1 for the rest.
int status_exit_code(status_t status);
// Prints "poise: [rank R] message" and, when with_trace, a line a place. rank < 0 leaves the rank out.
void status_print(status_t status, FILE *stream, int rank, bool with_trace);
// Frees; NULL is allowed.
void status_free(status_t status);
// Keeps the first of two errors and frees the other; either may be NULL. For cleaning up after a failure.
status_t status_first(status_t first, status_t second) STATUS_CHECKED;

// An error is never NULL. The compiler need not know; static analysis (the lint target) finds paths that do not exist
// unless it is told.
#ifdef POISE_STATIC_ANALYSIS
// (An expression: functions are not followed at every depth.)
#define status_not_null(status)                                                                                        \
    ({                                                                                                                 \
        status_t not_null_ = (status);                                                                                 \
        not_null_ ? not_null_ : (status_t)1;                                                                           \
    })
#else
#define status_not_null(status) (status)
#endif
#define STATUS_NEW(kind, ...) status_not_null(status_make((kind), __FILE__, __LINE__, __func__, __VA_ARGS__))
#define FAIL(kind, ...)       return STATUS_NEW(kind, __VA_ARGS__)
// Returns from the calling function when the expression is an error.
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        status_t try_status_ = (expression);                                                                           \
        if (try_status_) return status_not_null(status_trace(try_status_, __FILE__, __LINE__, __func__));              \
    } while (0)
// Returns an error that is at hand (not NULL), after cleaning up.
#define PASS_ON(status) return status_not_null(status_trace((status), __FILE__, __LINE__, __func__))
// The same with cleaning up: stores the error in `variable` (a status_t of the caller) and jumps to `label`.
#define TRY_GOTO(variable, label, expression)                                                                          \
    do {                                                                                                               \
        status_t try_status_ = (expression);                                                                           \
        if (try_status_) {                                                                                             \
            (variable) = status_not_null(status_trace(try_status_, __FILE__, __LINE__, __func__));                     \
            goto label;                                                                                                \
        }                                                                                                              \
    } while (0)
#define FAIL_GOTO(variable, label, kind, ...)                                                                          \
    do {                                                                                                               \
        (variable) = STATUS_NEW(kind, __VA_ARGS__);                                                                    \
        goto label;                                                                                                    \
    } while (0)

// Allocation on the heap, for everything that is not a tensor (those live in arenas). `*out` is zeroed memory for
// `count` items of `size` bytes; the product is checked. A count of 0 gives a non-NULL pointer.
status_t memory_allocate(size_t count, size_t size, void **out) STATUS_CHECKED;
// Grows `*pointer` to hold at least `needed` items, doubling `*capacity`; new bytes are not zeroed.
status_t memory_grow(void **pointer, size_t *capacity, size_t needed, size_t size) STATUS_CHECKED;
// A copy of a string, or of its first `length` bytes with a 0 after them.
status_t memory_copy_string(const char *text, char **out) STATUS_CHECKED;
status_t memory_copy_bytes(const void *bytes, size_t length, char **out) STATUS_CHECKED;
#define ALLOCATE(pointer, count) memory_allocate((size_t)(count), sizeof(**(pointer)), (void **)(pointer))

#endif
