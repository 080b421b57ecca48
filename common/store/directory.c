#include "common/store/directory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUPERBLOCK_BYTES = 96,
    NODE_BYTES = 24, // head of a node of a tree
    ENTRY_BYTES = 40,
    HEAP_BYTES = 32,
    HEAP_LIMIT = 64 << 20, // names of one group
    PART_LIMIT = 255,      // bytes of one name
    PATH_LIMIT = 1023,
    DEPTH_LIMIT = 8, // groups in groups, and levels of a tree
};

// Where a walk is.
typedef struct group {
    char path[PATH_LIMIT + 1];
    int depth;
    char *names;
    uint64_t name_bytes;
} group_t;

status_t directory_damaged(const directory_file_t *file, const char *what) {
    FAIL(STATUS_INVALID, "the HDF5 file '%s' is torn or damaged, or not written by Poise: %s", file->path, what);
}

status_t directory_read(const directory_file_t *file, uint64_t address, void *out, size_t size) {
    if (address > file->bytes || size > file->bytes - address)
        return directory_damaged(file, "it points beyond its end");
    char *to = out;
    while (size) {
        ssize_t got = pread(file->fd, to, size < (1 << 30) ? size : (size_t)1 << 30, (off_t)address);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) FAIL(STATUS_IO, "cannot read '%s': %s", file->path, strerror(errno));
        if (!got) return directory_damaged(file, "it has become shorter");
        to += got;
        address += (uint64_t)got;
        size -= (size_t)got;
    }
    return STATUS_OK;
}

static status_t spend(directory_file_t *file, uint64_t bytes) {
    if (bytes > file->budget) return directory_damaged(file, "it describes more than it can hold");
    file->budget -= bytes;
    return STATUS_OK;
}

status_t directory_read_metadata(directory_file_t *file, uint64_t address, void *out, size_t size) {
    TRY(spend(file, size));
    return directory_read(file, address, out, size);
}

static status_t add_entry(directory_file_t *file, directory_t *directory, const char *path, uint64_t address,
                          bool dataset) {
    TRY(spend(file, strlen(path) + sizeof(directory_entry_t)));
    TRY(memory_grow((void **)&directory->entry, &directory->capacity, directory->count + 1, sizeof(directory_entry_t)));
    directory_entry_t *entry = &directory->entry[directory->count];
    *entry = (directory_entry_t){.address = address, .dataset = dataset};
    TRY(memory_copy_string(path, &entry->name));
    directory->count++;
    return STATUS_OK;
}

static status_t walk_group(directory_file_t *file, directory_t *directory, const char *path, int depth,
                           const directory_object_t *object);

// One link of a group: its name, and what it leads to.
static status_t take_link(directory_file_t *file, directory_t *directory, const group_t *group, const uint8_t *link) {
    enum { SOFT_LINK = 2 };
    uint64_t name = directory_number(link, 8), address = directory_number(link + 8, 8);
    if (directory_number(link + 16, 4) == SOFT_LINK || address == DIRECTORY_NOWHERE) return STATUS_OK;
    if (name >= group->name_bytes) return directory_damaged(file, "a name lies outside of its group");
    size_t most = (size_t)(group->name_bytes - name), length = strnlen(group->names + name, most);
    if (!length || length == most || length > PART_LIMIT || memchr(group->names + name, '/', length))
        return directory_damaged(file, "a name is none");
    char path[PATH_LIMIT + 1];
    int used = snprintf(path, sizeof(path), "%s%s%s", group->path, group->depth ? "/" : "", group->names + name);
    if (used > PATH_LIMIT) return directory_damaged(file, "a name is too long");
    directory_object_t object;
    TRY(directory_describe(file, address, &object));
    if (object.kind == OBJECT_OTHER) return STATUS_OK;
    TRY(add_entry(file, directory, path, address, object.kind == OBJECT_DATASET));
    if (object.kind == OBJECT_GROUP) return walk_group(file, directory, path, group->depth + 1, &object);
    return STATUS_OK;
}

// A leaf of a group's tree.
static status_t walk_links(directory_file_t *file, directory_t *directory, const group_t *group, uint64_t address) {
    uint8_t head[8], link[ENTRY_BYTES];
    TRY(directory_read_metadata(file, address, head, sizeof(head)));
    if (memcmp(head, "SNOD", 4) != 0 || head[4] != 1) return directory_damaged(file, "a list of names is none");
    uint64_t count = directory_number(head + 6, 2);
    for (uint64_t i = 0; i < count; i++) {
        TRY(directory_read_metadata(file, address + sizeof(head) + i * ENTRY_BYTES, link, sizeof(link)));
        TRY(take_link(file, directory, group, link));
    }
    return STATUS_OK;
}

// level: that the node must have; -1: any, for a root.
static status_t walk_tree(directory_file_t *file, directory_t *directory, const group_t *group, uint64_t address,
                          int level) {
    uint8_t node[NODE_BYTES], child[8];
    TRY(directory_read_metadata(file, address, node, sizeof(node)));
    if (memcmp(node, "TREE", 4) != 0 || node[4] != 0 || node[5] > DEPTH_LIMIT || (level >= 0 && node[5] != level))
        return directory_damaged(file, "a tree of names is none");
    level = node[5];
    uint64_t count = directory_number(node + 6, 2);
    for (uint64_t i = 0; i < count; i++) { // a key before each child
        TRY(directory_read_metadata(file, address + NODE_BYTES + 16 * i + 8, child, sizeof(child)));
        uint64_t below = directory_number(child, 8);
        if (level)
            TRY(walk_tree(file, directory, group, below, level - 1));
        else
            TRY(walk_links(file, directory, group, below));
    }
    return STATUS_OK;
}

static status_t read_names(directory_file_t *file, uint64_t address, group_t *group) {
    uint8_t head[HEAP_BYTES];
    TRY(directory_read_metadata(file, address, head, sizeof(head)));
    if (memcmp(head, "HEAP", 4) != 0 || head[4] != 0)
        return directory_damaged(file, "the names of a group are missing");
    group->name_bytes = directory_number(head + 8, 8);
    uint64_t start = directory_number(head + 24, 8);
    if (group->name_bytes > HEAP_LIMIT || start > file->bytes || group->name_bytes > file->bytes - start)
        return directory_damaged(file, "the names of a group lie outside of it");
    TRY(memory_allocate(group->name_bytes, 1, (void **)&group->names));
    return directory_read_metadata(file, start, group->names, group->name_bytes);
}

static status_t walk_group(directory_file_t *file, directory_t *directory, const char *path, int depth,
                           const directory_object_t *object) {
    if (depth > DEPTH_LIMIT) return directory_damaged(file, "groups nest too deeply");
    group_t *group; // on the heap: names make it large
    TRY(ALLOCATE(&group, 1));
    group->depth = depth;
    snprintf(group->path, sizeof(group->path), "%s", path);
    status_t status = read_names(file, object->heap, group);
    if (!status) status = walk_tree(file, directory, group, object->links, -1);
    free(group->names);
    free(group);
    return status;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const directory_entry_t *)a)->name, ((const directory_entry_t *)b)->name);
}

static status_t read_root(directory_file_t *file, directory_t *out) {
    // Versions of superblock, free space, root group and shared messages, and the sizes of offsets and lengths.
    static const uint8_t versions[8] = {0, 0, 0, 0, 0, 8, 8, 0};
    uint8_t block[SUPERBLOCK_BYTES];
    TRY(directory_read_metadata(file, 0, block, sizeof(block)));
    if (memcmp(block + 8, versions, sizeof(versions)) != 0 || directory_number(block + 24, 8) != 0)
        return directory_damaged(file, "its head is of another version of the format");
    if (directory_number(block + 40, 8) > file->bytes) return directory_damaged(file, "its end is missing");
    directory_object_t root;
    TRY(directory_describe(file, directory_number(block + 64, 8), &root));
    if (root.kind != OBJECT_GROUP) return directory_damaged(file, "it has no root group");
    return walk_group(file, out, "", 0, &root);
}

status_t directory_list(directory_file_t *file, directory_t *out) {
    *out = (directory_t){0};
    file->budget = 4 * file->bytes + (1 << 16);
    status_t status = read_root(file, out);
    if (!status && out->count > 1) qsort(out->entry, out->count, sizeof(*out->entry), by_name);
    for (size_t i = 1; i < out->count && !status; i++)
        if (strcmp(out->entry[i - 1].name, out->entry[i].name) == 0)
            status = directory_damaged(file, "a name occurs twice");
    if (status) directory_free(out);
    return status;
}

void directory_free(directory_t *directory) {
    for (size_t i = 0; i < directory->count; i++) free(directory->entry[i].name);
    free(directory->entry);
    *directory = (directory_t){0};
}

const directory_entry_t *directory_find(const directory_t *directory, const char *name) {
    const directory_entry_t key = {.name = (char *)(uintptr_t)name};
    if (!directory->count) return NULL;
    return bsearch(&key, directory->entry, directory->count, sizeof(key), by_name);
}
