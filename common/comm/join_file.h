// The join file: what a rollout pool outside the job needs to find a running one. OUTPUT/join.json is written by the
// reward rank when its hub is open (mode 0600: it holds the job's keys, if it has any) and removed when it closes.
#ifndef COMMON_COMM_JOIN_FILE_H
#define COMMON_COMM_JOIN_FILE_H

#include "common/comm/job.h"

typedef struct join_file {
    char endpoint[512];
    char public_key[41], secret_key[41]; // "": the job stays on one node and has none
    char host[256];                      // of the reward rank
    int64_t pid;
} join_file_t;

// Whole or absent. The endpoint is the one of the job's hub.
status_t join_file_write(const job_t *job, const char *endpoint, const char *path) STATUS_CHECKED;
// The file's text. False: it is none. Keys have their 40 characters of Z85, both or neither; the other texts can be
// printed.
bool join_file_parse(const char *text, size_t size, join_file_t *out);
// STATUS_INVALID: it is not there, or is none.
status_t join_file_read(const char *path, join_file_t *out) STATUS_CHECKED;

#endif
