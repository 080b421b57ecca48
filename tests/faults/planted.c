#include "tests/faults/planted.h"

#include "kernels/base/status.h"
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEAK_BYTES = 123, SOME_BYTES = 40 };

static __attribute__((noinline)) void plant_leak(void) {
    void *volatile block;
    status_t status = memory_allocate(LEAK_BYTES, 1, (void **)&block);
    if (!status) memset(block, 1, LEAK_BYTES);
    status_free(status);
    block = NULL;
}

static void *increment(void *number) {
    ++*(int *)number;
    return NULL;
}

static void plant_race(void) {
    pthread_t thread;
    int number = 0;
    if (pthread_create(&thread, NULL, increment, &number)) return;
    increment(&number);
    pthread_join(thread, NULL);
}

static void plant_uninitialised(void) {
    volatile char *volatile bytes = malloc(SOME_BYTES);
    if (!bytes) return;
    if (bytes[SOME_BYTES / 2] > 3) (void)!write(STDERR_FILENO, "", 0);
    free((void *)bytes);
}

static void plant_overflow(void) {
    volatile int past = SOME_BYTES;
    volatile char *volatile bytes = malloc(SOME_BYTES);
    if (!bytes) return;
    bytes[past] = 1;
    free((void *)bytes);
}

static void plant_undefined(void) {
    volatile int number = INT_MAX;
    number = number + 1;
}

void planted_commit(const char *rank) {
    static bool done;
    static const struct {
        const char *name;
        void (*commit)(void);
    } kinds[] = {{"leak", plant_leak},
                 {"race", plant_race},
                 {"uninitialised", plant_uninitialised},
                 {"overflow", plant_overflow},
                 {"undefined", plant_undefined}};
    const char *text = getenv("POISE_PLANT"), *at = text ? strchr(text, '@') : NULL;
    if (done || !at || strcmp(at + 1, rank) != 0) return;
    done = true;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const char *found = strstr(text, kinds[i].name);
        if (found && found < at) kinds[i].commit();
    }
}
