// trajectory FILE...: the completions of trajectory logs as text, one a line:
//   GROUP INDEX FLAGS REWARD ADVANTAGE
// with the reward and the advantage as they were, in all their digits.
#include "common/store/store.h"

#include <stdlib.h>
#include <string.h>

static status_t print_file(const char *path) {
    store_t *store;
    int64_t *serial = NULL, *start = NULL, *reward = NULL, *advantage = NULL, groups = 0, starts = 0, count = 0, others;
    int32_t *index = NULL, *flags = NULL;
    TRY(store_open(path, &store));
    status_t status = store_read_all(store, "groups/serial", DTYPE_I64, (void **)&serial, &groups);
    if (!status) status = store_read_all(store, "groups/completion_start", DTYPE_I64, (void **)&start, &starts);
    if (!status) status = store_read_all(store, "completions/index", DTYPE_I32, (void **)&index, &count);
    if (!status) status = store_read_all(store, "completions/flags", DTYPE_I32, (void **)&flags, &others);
    if (!status) status = store_read_all(store, "exact/reward", DTYPE_I64, (void **)&reward, &others);
    if (!status) status = store_read_all(store, "exact/advantage", DTYPE_I64, (void **)&advantage, &others);
    for (int64_t g = 0; !status && g < groups; g++)
        for (int64_t c = start[g]; c < start[g + 1] && c < count; c++) {
            double r, a;
            memcpy(&r, &reward[c], sizeof(r));
            memcpy(&a, &advantage[c], sizeof(a));
            printf("%lld %d %d %.17g %.17g\n", (long long)serial[g], index[c], flags[c], r, a);
        }
    void *owned[] = {serial, start, index, flags, reward, advantage};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) free(owned[i]);
    store_close(store);
    return status;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        status_t status = print_file(argv[i]);
        if (!status) continue;
        status_print(status, stderr, -1, false);
        return status_exit_code(status);
    }
    return 0;
}
