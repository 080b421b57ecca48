// Helpers of the cmocka tests: statuses as checks, and a folder of their own.
#ifndef TESTS_LIB_CHECK_H
#define TESTS_LIB_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka needs the four above first.
#include <cmocka.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/status.h"

// The expression must be OK; its message is shown otherwise.
#define CHECK_OK(expression)                                                                                           \
    do {                                                                                                               \
        status_t check_ = (expression);                                                                                \
        if (check_) {                                                                                                  \
            status_print(check_, stderr, -1, true);                                                                    \
            status_free(check_);                                                                                       \
            fail_msg("%s failed", #expression);                                                                        \
        }                                                                                                              \
    } while (0)

// The expression must fail, and its message must hold `part`.
#define CHECK_FAILS(expression, part)                                                                                  \
    do {                                                                                                               \
        status_t check_ = (expression);                                                                                \
        if (!check_) fail_msg("%s did not fail", #expression);                                                         \
        bool held_ = strstr(status_message(check_), (part)) != NULL;                                                   \
        if (!held_) print_error("message: %s\n", status_message(check_));                                              \
        status_free(check_);                                                                                           \
        if (!held_) fail_msg("the message of %s lacks '%s'", #expression, (part));                                     \
    } while (0)

static inline int check_remove_entry(const char *path, const struct stat *about, int kind, struct FTW *where) {
    (void)about, (void)kind, (void)where;
    return remove(path);
}
// Makes a folder under TMPDIR and writes its name to `path` (bytes long); remove it by check_remove_folder.
static inline void check_make_folder(char *path, size_t bytes) {
    const char *base = getenv("TMPDIR");
    snprintf(path, bytes, "%s/poise-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(path)) fail_msg("cannot make a folder like %s", path);
}
static inline void check_remove_folder(const char *path) {
    nftw(path, check_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
