// Store: HDF5 files that are whole or absent. Checkpoints, trajectory logs and packed data go through here.
//
// Writing goes to NAME.tmp.HOST.PID; store_commit closes, flushes to the disk, renames and flushes the directory. A
// reader checks sizes against the file before allocating, and follows no link out of the file. Equal contents give
// equal bytes (no timestamps). Not collective: one rank writes a file. Not thread-safe.
#ifndef COMMON_STORE_STORE_H
#define COMMON_STORE_STORE_H

#include "kernels/device.h"

#include <stdio.h>

typedef struct store store_t;

status_t store_create(const char *path, store_t **out) STATUS_CHECKED;
// Finishes a created file: after OK it is whole under its name; after an error it is absent (what had that name before
// stays). An earlier failed store_write makes it fail. The store still has to be given to store_close.
status_t store_commit(store_t *store) STATUS_CHECKED;
// Opens for reading. Errors say whether the file is missing, no HDF5, or torn. The file may come from a stranger: it is
// read by our own reader of what Poise writes (directory.h), never by the HDF5 library, and whatever it claims, an
// error is the worst it can do.
status_t store_open(const char *path, store_t **out) STATUS_CHECKED;
// Closes a reader, or drops a file that was not committed (its temporary file is removed). NULL is allowed.
void store_close(store_t *store);
// Removes NAME.tmp.HOST.PID files, and folders with nothing but files in them, from a folder: of this host, when the
// process no longer runs; of other hosts, when untouched for a day. What cannot be removed stays.
void store_sweep(const char *directory);
// Sweeps the folder that `path` lies in.
void store_sweep_beside(const char *path);

// Datasets, one-dimensional; names may have '/' (groups are made). compress: deflate 1, for repetitive data.
status_t store_write(store_t *store, const char *name, dtype_t dtype, const void *data, int64_t count,
                     bool compress) STATUS_CHECKED;
// The same piece by piece: elements first .. first + count - 1 of a dataset of `total` elements, made by the first
// call. All of it has to be written; not compressed.
status_t store_write_part(store_t *store, const char *name, dtype_t dtype, int64_t total, int64_t first, int64_t count,
                          const void *data) STATUS_CHECKED;
status_t store_count(store_t *store, const char *name, int64_t *count) STATUS_CHECKED; // elements
bool store_has(store_t *store, const char *name); // a dataset, or a group of them; of a store that is read
// All names in the file, sorted: store_name of 0 .. store_names - 1, NULL for one that is a group.
size_t store_names(const store_t *store);
const char *store_name(const store_t *store, size_t index);
// Reads exactly `count` elements starting at `first`; a dataset of another dtype or size is an error that names it.
status_t store_read(store_t *store, const char *name, dtype_t dtype, int64_t first, int64_t count,
                    void *out) STATUS_CHECKED;
// Reads a whole dataset into memory it allocates.
status_t store_read_all(store_t *store, const char *name, dtype_t dtype, void **out, int64_t *count) STATUS_CHECKED;
status_t store_write_string(store_t *store, const char *name, const char *text) STATUS_CHECKED;
status_t store_read_string(store_t *store, const char *name, char **out) STATUS_CHECKED; // malloc'd
status_t store_write_number(store_t *store, const char *name, int64_t value) STATUS_CHECKED;
status_t store_read_number(store_t *store, const char *name, int64_t *out) STATUS_CHECKED;
status_t store_write_real(store_t *store, const char *name, double value) STATUS_CHECKED;
status_t store_read_real(store_t *store, const char *name, double *out) STATUS_CHECKED;

// Text files with the same promise: writes NAME.tmp.HOST.PID, flushes, renames.
status_t file_write_whole(const char *path, const void *bytes, size_t size) STATUS_CHECKED;
// The same for a text that is written bit by bit: to `stream`, then finish. Every writer that was opened is closed;
// closing one that was not finished removes what it wrote. Temporary files of dead processes in that folder are swept.
typedef struct file_writer {
    FILE *stream;
    char *path, *temporary;
} file_writer_t;
status_t file_writer_open(const char *path, file_writer_t *out) STATUS_CHECKED;
status_t file_writer_finish(file_writer_t *writer) STATUS_CHECKED; // fails, too, if an earlier write did
void file_writer_close(file_writer_t *writer);
// PATH.tmp.HOST.PID, malloc'd: a name that store_sweep knows, for a file or a folder.
status_t file_temporary_name(const char *path, char **out) STATUS_CHECKED;
// Reads a whole file (malloc'd, 0-terminated); refuses more than `limit` bytes, folders and devices. A pipe is read to
// its end; one that nobody writes into is empty.
status_t file_read_whole(const char *path, size_t limit, char **out, size_t *size) STATUS_CHECKED;
// mkdir -p.
status_t file_make_directory(const char *path) STATUS_CHECKED;

#endif
