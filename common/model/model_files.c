#include "common/model/model_files.h"

#include "common/store/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static status_t join(char *out, const char *directory, const char *name) {
    if (snprintf(out, MODEL_PATH_BYTES, "%s/%s", directory, name) >= MODEL_PATH_BYTES)
        FAIL(STATUS_INVALID, "the path %s/%s is too long", directory, name);
    return STATUS_OK;
}

// The temporary folder beside `directory`, of a name that the next start sweeps.
static status_t beside(const char *directory, char *out) {
    char *plain, *temporary;
    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/') length--;
    TRY(memory_copy_bytes(directory, length, &plain));
    status_t status = file_temporary_name(plain, &temporary);
    free(plain);
    TRY(status);
    bool fits = snprintf(out, MODEL_PATH_BYTES, "%s", temporary) < MODEL_PATH_BYTES;
    free(temporary);
    if (!fits) FAIL(STATUS_INVALID, "the path %s is too long", directory);
    return STATUS_OK;
}

static bool is_gguf(const char *name) {
    size_t length = strlen(name), end = strlen(".gguf");
    return length > end && !strcmp(name + length - end, ".gguf");
}

status_t folder_refuse_gguf(const char *directory) {
    char path[MODEL_PATH_BYTES];
    struct stat info;
    bool there = !stat(directory, &info);
    if (is_gguf(directory) && there && S_ISREG(info.st_mode))
        FAIL(STATUS_INVALID, "%s is a GGUF file; 'poise convert %s DIR' writes it as a folder that can be used here",
             directory, directory);
    if (!there || !S_ISDIR(info.st_mode)) return STATUS_OK;
    TRY(join(path, directory, "config.json"));
    if (!access(path, F_OK)) return STATUS_OK;
    DIR *listing = opendir(directory);
    status_t status = STATUS_OK;
    for (struct dirent *entry; !status && listing && (entry = readdir(listing));)
        if (is_gguf(entry->d_name))
            status =
                STATUS_NEW(STATUS_INVALID,
                           "%s holds no config.json but the GGUF file %s; 'poise convert %s/%s DIR' writes it as a "
                           "folder that can be used here",
                           directory, entry->d_name, directory, entry->d_name);
    if (listing) closedir(listing);
    return status;
}

static status_t previous_name(const char *directory, char *out) {
    if (snprintf(out, MODEL_PATH_BYTES, "%s.previous", directory) >= MODEL_PATH_BYTES)
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    return STATUS_OK;
}

// Where folders cannot change places in one step, a process killed in between leaves the earlier one under its other
// name.
static status_t restore_previous(const char *directory) {
    char previous[MODEL_PATH_BYTES];
    TRY(previous_name(directory, previous));
    if (access(previous, F_OK)) return STATUS_OK;
    if (!access(directory, F_OK))
        folder_discard(previous);
    else if (rename(previous, directory))
        FAIL(STATUS_IO, "cannot rename %s back to %s: %s", previous, directory, strerror(errno));
    return STATUS_OK;
}

status_t folder_begin(const char *directory, char *out) {
    TRY(restore_previous(directory));
    TRY(beside(directory, out));
    store_sweep_beside(out);
    folder_discard(out);
    if (mkdir(out, 0777)) FAIL(STATUS_IO, "cannot make the folder %s: %s", out, strerror(errno));
    return STATUS_OK;
}

void folder_discard(const char *temporary) {
    DIR *listing = opendir(temporary);
    if (!listing) return;
    for (struct dirent *entry; (entry = readdir(listing));) unlinkat(dirfd(listing), entry->d_name, 0);
    closedir(listing);
    rmdir(temporary);
}

static status_t flush_folder(const char *path) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || fsync(folder)) {
        int problem = errno;
        if (folder >= 0) close(folder);
        FAIL(STATUS_IO, "cannot flush the folder %s: %s", path, strerror(problem));
    }
    close(folder);
    return STATUS_OK;
}

// The folder that a path lies in.
static status_t flush_parent(const char *path) {
    char parent[MODEL_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    snprintf(parent, sizeof(parent), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    return flush_folder(parent);
}

// Both folders hold files, and a folder with files cannot be renamed over: they change places, in one step where the
// file system can, so that there is always a whole one.
static status_t exchange(const char *temporary, const char *directory) {
    char old[MODEL_PATH_BYTES];
    if (!renameat2(AT_FDCWD, temporary, AT_FDCWD, directory, RENAME_EXCHANGE)) {
        folder_discard(temporary);
        return STATUS_OK;
    }
    if (errno != EINVAL && errno != ENOSYS) FAIL(STATUS_IO, "cannot replace %s: %s", directory, strerror(errno));
    TRY(previous_name(directory, old));
    if (rename(directory, old)) FAIL(STATUS_IO, "cannot replace %s: %s", directory, strerror(errno));
    if (rename(temporary, directory)) {
        int why = errno;
        if (rename(old, directory)) FAIL(STATUS_IO, "cannot rename %s back to %s: %s", old, directory, strerror(errno));
        FAIL(STATUS_IO, "cannot replace %s: %s", directory, strerror(why));
    }
    folder_discard(old);
    return STATUS_OK;
}

status_t folder_finish(const char *temporary, const char *directory) {
    TRY(flush_folder(temporary));
    if (rename(temporary, directory)) {
        if (errno != ENOTEMPTY && errno != EEXIST)
            FAIL(STATUS_IO, "cannot rename %s to %s: %s", temporary, directory, strerror(errno));
        TRY(exchange(temporary, directory));
    }
    return flush_parent(temporary);
}

static bool is_weights(const char *name) {
    static const char *const endings[] = {
        ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        size_t end = strlen(endings[i]);
        if (length >= end && !strcmp(name + length - end, endings[i])) return true;
    }
    return false;
}

static status_t copy_file(const char *from, const char *to) {
    char buffer[1 << 14];
    FILE *source = fopen(from, "rb");
    if (!source) FAIL(STATUS_IO, "cannot read %s: %s", from, strerror(errno));
    FILE *target = fopen(to, "wb");
    bool failed = !target;
    for (size_t got; !failed && (got = fread(buffer, 1, sizeof(buffer), source)) > 0;)
        failed = fwrite(buffer, 1, got, target) != got;
    failed |= ferror(source) != 0;
    if (target) {
        failed |= fflush(target) || fsync(fileno(target));
        failed |= fclose(target) != 0;
    }
    fclose(source);
    if (failed) FAIL(STATUS_IO, "cannot copy %s to %s: %s", from, to, strerror(errno));
    return STATUS_OK;
}

status_t folder_copy_settings(const char *from, const char *to) {
    char source[MODEL_PATH_BYTES], target[MODEL_PATH_BYTES];
    DIR *listing = opendir(from);
    if (!listing) FAIL(STATUS_IO, "cannot list the folder %s: %s", from, strerror(errno));
    status_t status = STATUS_OK;
    for (struct dirent *entry; !status && (entry = readdir(listing));) {
        struct stat info;
        if (entry->d_name[0] == '.' || is_weights(entry->d_name)) continue;
        status = join(source, from, entry->d_name);
        if (!status) status = join(target, to, entry->d_name);
        if (!status && !stat(source, &info) && S_ISREG(info.st_mode)) status = copy_file(source, target);
    }
    closedir(listing);
    return status;
}

status_t folder_write_text(const char *directory, const char *name, const char *text) {
    char path[MODEL_PATH_BYTES];
    TRY(join(path, directory, name));
    FILE *file = fopen(path, "wb");
    if (!file) FAIL(STATUS_IO, "cannot create %s: %s", path, strerror(errno));
    bool failed = fputs(text, file) < 0 || fflush(file) || fsync(fileno(file));
    failed |= fclose(file) != 0;
    if (failed) FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}
