// Plain files: whole or absent, read within limits.
#include "common/store/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HOST_BYTES = 64, FOREIGN_AGE_SECONDS = 24 * 3600 };

// The host's name, without characters that separate the parts of a temporary name.
static void file_host(char host[HOST_BYTES]) {
    if (gethostname(host, HOST_BYTES) != 0) snprintf(host, HOST_BYTES, "localhost");
    host[HOST_BYTES - 1] = 0;
    for (char *c = host; *c; c++)
        if (*c == '.' || *c == '/') *c = '_';
}

status_t file_temporary_name(const char *path, char **out) {
    char host[HOST_BYTES];
    *out = NULL;
    file_host(host);
    size_t bytes = strlen(path) + HOST_BYTES + 32;
    TRY(memory_allocate(bytes, 1, (void **)out));
    snprintf(*out, bytes, "%s.tmp.%s.%ld", path, host, (long)getpid());
    return STATUS_OK;
}

// Flushes a file or a directory to the disk.
static status_t file_flush(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) FAIL(STATUS_IO, "cannot open '%s' to flush it: %s", path, strerror(errno));
    int failed = fsync(fd) != 0 ? errno : 0;
    close(fd);
    // Some file systems cannot flush a directory and say EINVAL; the rename is then as safe as they make it.
    if (failed && !(failed == EINVAL && (flags & O_DIRECTORY)))
        FAIL(STATUS_IO, "cannot flush '%s' to the disk: %s", path, strerror(failed));
    return STATUS_OK;
}

status_t file_publish(const char *temporary, const char *path) {
    TRY(file_flush(temporary, O_RDONLY));
    if (rename(temporary, path) != 0)
        FAIL(STATUS_IO, "cannot rename '%s' to '%s': %s", temporary, path, strerror(errno));
    char *folder;
    TRY(memory_copy_string(path, &folder));
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder ? 1 : 0] = 0;
    status_t status = file_flush(slash ? folder : ".", O_RDONLY | O_DIRECTORY);
    free(folder);
    return status;
}

static status_t file_write_all(int fd, const char *bytes, size_t size, const char *path) {
    while (size) {
        ssize_t written = write(fd, bytes, size);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) FAIL(STATUS_IO, "cannot write '%s': %s", path, strerror(errno));
        bytes += written;
        size -= (size_t)written;
    }
    return STATUS_OK;
}

status_t file_write_whole(const char *path, const void *bytes, size_t size) {
    char *temporary;
    TRY(file_temporary_name(path, &temporary));
    status_t status = STATUS_OK;
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) FAIL_GOTO(status, done, STATUS_IO, "cannot create '%s': %s", temporary, strerror(errno));
    status = file_write_all(fd, bytes, size, temporary);
    if (close(fd) != 0)
        status = status_first(status, STATUS_NEW(STATUS_IO, "cannot write '%s': %s", temporary, strerror(errno)));
    if (!status) status = file_publish(temporary, path);
    if (status) unlink(temporary);
done:
    free(temporary);
    return status;
}

void store_sweep_beside(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder;
    status_t status = memory_copy_bytes(slash ? path : ".", slash ? (size_t)(slash - path) + 1 : 1, &folder);
    if (!status) store_sweep(folder);
    if (!status) free(folder);
    status_free(status);
}

status_t file_writer_open(const char *path, file_writer_t *out) {
    *out = (file_writer_t){0};
    store_sweep_beside(path);
    TRY(memory_copy_string(path, &out->path));
    status_t status = file_temporary_name(path, &out->temporary);
    if (!status && !(out->stream = fopen(out->temporary, "we"))) {
        status = STATUS_NEW(STATUS_IO, "cannot create '%s': %s", out->temporary, strerror(errno));
        free(out->temporary); // there is nothing to remove
        out->temporary = NULL;
    }
    if (status) file_writer_close(out);
    return status;
}

status_t file_writer_finish(file_writer_t *writer) {
    bool failed = fflush(writer->stream) != 0 || ferror(writer->stream);
    int why = errno;
    if (fclose(writer->stream) != 0 && !failed) failed = true, why = errno;
    writer->stream = NULL;
    if (failed) FAIL(STATUS_IO, "cannot write '%s': %s", writer->path, strerror(why ? why : EIO));
    TRY(file_publish(writer->temporary, writer->path));
    free(writer->temporary);
    writer->temporary = NULL;
    return STATUS_OK;
}

void file_writer_close(file_writer_t *writer) {
    if (writer->stream) fclose(writer->stream);
    if (writer->temporary) unlink(writer->temporary);
    free(writer->temporary);
    free(writer->path);
    *writer = (file_writer_t){0};
}

// Reads until the end or until more than `limit` bytes came.
static status_t file_read_all(int fd, size_t expected, size_t limit, const char *path, char **out, size_t *size) {
    char *buffer = NULL;
    size_t capacity = 0, used = 0;
    status_t status = memory_grow((void **)&buffer, &capacity, expected + 1, 1);
    while (!status) {
        if (used + 1 >= capacity) status = memory_grow((void **)&buffer, &capacity, used + 4096, 1);
        if (status) break;
        ssize_t got = read(fd, buffer + used, capacity - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) { // a pipe whose writer is slow
            (void)poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, -1);
            continue;
        }
        if (got < 0) status = STATUS_NEW(STATUS_IO, "cannot read '%s': %s", path, strerror(errno));
        if (got <= 0) break;
        used += (size_t)got;
        if (used > limit)
            status = STATUS_NEW(STATUS_INVALID, "'%s' is larger than the %zu bytes allowed here", path, limit);
    }
    if (status) {
        free(buffer);
        return status;
    }
    buffer[used] = 0;
    *out = buffer;
    if (size) *size = used;
    return STATUS_OK;
}

status_t file_read_whole(const char *path, size_t limit, char **out, size_t *size) {
    *out = NULL;
    if (size) *size = 0;
    // A pipe in a stranger's folder has no writer, and would be waited for; opened like this it ends at once.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        int why = errno;
        FAIL(why == ENOENT || why == ENOTDIR || why == EACCES ? STATUS_INVALID : STATUS_IO, "cannot open '%s': %s",
             path, strerror(why));
    }
    struct stat about;
    status_t status = STATUS_OK;
    if (fstat(fd, &about) != 0) FAIL_GOTO(status, done, STATUS_IO, "cannot look at '%s': %s", path, strerror(errno));
    if (S_ISDIR(about.st_mode)) FAIL_GOTO(status, done, STATUS_INVALID, "'%s' is a folder, not a file", path);
    if (!S_ISREG(about.st_mode) && !S_ISFIFO(about.st_mode))
        FAIL_GOTO(status, done, STATUS_INVALID, "'%s' is a device, not a file", path);
    size_t expected = S_ISREG(about.st_mode) && about.st_size > 0 ? (size_t)about.st_size : 0;
    if (expected > limit)
        FAIL_GOTO(status, done, STATUS_INVALID, "'%s' has %zu bytes, more than the %zu allowed here", path, expected,
                  limit);
    status = file_read_all(fd, expected, limit, path, out, size);
done:
    close(fd);
    return status;
}

status_t file_make_directory(const char *path) {
    char *part;
    if (!*path) FAIL(STATUS_INVALID, "cannot make a folder with an empty name");
    TRY(memory_copy_string(path, &part));
    status_t status = STATUS_OK;
    for (char *c = part + 1; !status; c++) {
        if (*c && *c != '/') continue;
        char kept = *c;
        *c = 0;
        struct stat about;
        if (mkdir(part, 0777) != 0 && (stat(part, &about) != 0 || !S_ISDIR(about.st_mode)))
            status = STATUS_NEW(STATUS_IO, "cannot make the folder '%s': %s", part,
                                errno == EEXIST ? "a file of that name is in the way" : strerror(errno));
        *c = kept;
        if (!kept) break;
    }
    free(part);
    return status;
}

// Splits "NAME.tmp.HOST.PID"; false when the name is none of ours.
static bool file_is_temporary(const char *name, const char **host, size_t *host_length, long *pid) {
    const char *last = strrchr(name, '.');
    if (!last || last == name || !last[1]) return false;
    char *end;
    errno = 0;
    *pid = strtol(last + 1, &end, 10);
    if (*end || errno || *pid <= 0 || last[1] < '1' || last[1] > '9') return false;
    const char *start = last;
    while (start > name && start[-1] != '.') start--;
    *host = start;
    *host_length = (size_t)(last - start);
    return *host_length > 0 && start - name > 5 && strncmp(start - 5, ".tmp.", 5) == 0;
}

// A zombie has ended, too: its parent, in a container often process 1, may reap it late or never.
static bool process_has_ended(long pid) {
    if (kill((pid_t)pid, 0) != 0) return errno == ESRCH;
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file) return false;
    text[fread(text, 1, sizeof(text) - 1, file)] = 0;
    fclose(file);
    const char *end = strrchr(text, ')'); // of the name, which may hold anything
    return end && end[1] == ' ' && (end[2] == 'Z' || end[2] == 'X');
}

// A folder is removed if it holds nothing but files.
static void sweep_one(int folder, const char *name, bool is_folder) {
    int inside = is_folder ? openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    DIR *listing = inside >= 0 ? fdopendir(inside) : NULL;
    if (inside >= 0 && !listing) close(inside);
    for (struct dirent *entry; listing && (entry = readdir(listing));) unlinkat(inside, entry->d_name, 0);
    if (listing) closedir(listing);
    unlinkat(folder, name, is_folder ? AT_REMOVEDIR : 0);
}

void store_sweep(const char *directory) {
    DIR *folder = opendir(directory);
    if (!folder) return;
    char own[HOST_BYTES];
    file_host(own);
    for (struct dirent *entry; (entry = readdir(folder));) {
        const char *host;
        size_t length;
        long pid;
        struct stat about;
        if (!file_is_temporary(entry->d_name, &host, &length, &pid)) continue;
        if (fstatat(dirfd(folder), entry->d_name, &about, AT_SYMLINK_NOFOLLOW) != 0) continue;
        if (!S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode)) continue;
        bool here = length == strlen(own) && memcmp(host, own, length) == 0;
        bool dead = here ? process_has_ended(pid) : time(NULL) - about.st_mtime > FOREIGN_AGE_SECONDS;
        if (dead) sweep_one(dirfd(folder), entry->d_name, S_ISDIR(about.st_mode));
    }
    closedir(folder);
}
