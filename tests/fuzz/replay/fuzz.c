#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t allowed; // bytes of one allocation; 0: any

void fuzz_allow(size_t base, size_t factor, size_t size) {
    allowed = base + factor * size;
}

static void guard(size_t count, size_t size) {
    if (!allowed || !size || count <= allowed / size) return;
    fprintf(stderr, "%zu items of %zu bytes are allocated for an input that justifies %zu bytes\n", count, size,
            allowed);
    abort();
}

status_t __real_memory_allocate(size_t count, size_t size, void **out) STATUS_CHECKED;
status_t __wrap_memory_allocate(size_t count, size_t size, void **out) STATUS_CHECKED;
status_t __real_memory_grow(void **pointer, size_t *capacity, size_t needed, size_t size) STATUS_CHECKED;
status_t __wrap_memory_grow(void **pointer, size_t *capacity, size_t needed, size_t size) STATUS_CHECKED;
status_t __real_memory_copy_bytes(const void *bytes, size_t length, char **out) STATUS_CHECKED;
status_t __wrap_memory_copy_bytes(const void *bytes, size_t length, char **out) STATUS_CHECKED;

status_t __wrap_memory_allocate(size_t count, size_t size, void **out) {
    guard(count, size);
    return __real_memory_allocate(count, size, out);
}

status_t __wrap_memory_grow(void **pointer, size_t *capacity, size_t needed, size_t size) {
    guard(needed, size);
    return __real_memory_grow(pointer, capacity, needed, size);
}

status_t __wrap_memory_copy_bytes(const void *bytes, size_t length, char **out) {
    guard(length, 1);
    return __real_memory_copy_bytes(bytes, length, out);
}

static char folder[64];

static void remove_folder(void) {
    DIR *listing = opendir(folder);
    if (!listing) return;
    for (struct dirent *entry; (entry = readdir(listing));) unlinkat(dirfd(listing), entry->d_name, 0);
    closedir(listing);
    rmdir(folder);
}

const char *fuzz_folder(void) {
    if (folder[0]) return folder;
    snprintf(folder, sizeof(folder), "%s/poise-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    FUZZ_CHECK(mkdtemp(folder));
    atexit(remove_folder);
    return folder;
}

const char *fuzz_path(const char *name) {
    static char path[256];
    snprintf(path, sizeof(path), "%s/%s", fuzz_folder(), name);
    return path;
}

void fuzz_file(const char *name, const void *data, size_t size) {
    const char *path = fuzz_path(name);
    if (!data) {
        unlink(path);
        return;
    }
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(file >= 0);
    FUZZ_CHECK(write(file, data, size) == (ssize_t)size);
    close(file);
}

bool fuzz_next(fuzz_parts_t *parts, const uint8_t **data, size_t *size) {
    if (parts->over) return false;
    const uint8_t *mark = parts->at == parts->end ? NULL : memchr(parts->at, 0x1e, (size_t)(parts->end - parts->at));
    parts->over = !mark;
    *data = parts->at;
    *size = (size_t)((mark ? mark : parts->end) - parts->at);
    parts->at = mark ? mark + 1 : parts->end;
    return true;
}

uint64_t fuzz_take(fuzz_bytes_t *bytes, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count && bytes->at < bytes->end; i++) value |= (uint64_t)*bytes->at++ << (8 * i);
    return value;
}
