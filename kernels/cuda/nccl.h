// What Poise uses of NCCL, declared by ourselves: the library is found at run time (common/comm/nccl_load.h), so that
// one program runs on machines with and without it. tests/nccl/declarations.c checks these against nccl.h where a
// toolkit is found.
#ifndef KERNELS_CUDA_NCCL_H
#define KERNELS_CUDA_NCCL_H

#include <stddef.h>

enum { NCCL_ID_BYTES = 128, NCCL_OLDEST = 21403 }; // 2.14.3: communicators that do not block
enum {
    NCCL_SUCCESS = 0,
    NCCL_UNHANDLED_CUDA_ERROR = 1,
    NCCL_SYSTEM_ERROR = 2,
    NCCL_INTERNAL_ERROR = 3,
    NCCL_INVALID_ARGUMENT = 4,
    NCCL_INVALID_USAGE = 5,
    NCCL_REMOTE_ERROR = 6,
    NCCL_IN_PROGRESS = 7
};
enum { NCCL_UINT8 = 1, NCCL_INT64 = 4, NCCL_FLOAT64 = 8 };
enum { NCCL_SUM = 0, NCCL_MAX = 2, NCCL_MIN = 3 };
enum { NCCL_CONFIG_MAGIC = 0xcafebeef, NCCL_CONFIG_VERSION = 21400 };

typedef struct nccl_id {
    char bytes[NCCL_ID_BYTES];
} nccl_id_t;
// ncclConfig_t as 2.14 had it; later libraries take the fields that follow by their defaults.
typedef struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking;
} nccl_config_t;

typedef struct nccl_library {
    int (*get_version)(int *version);
    int (*get_unique_id)(nccl_id_t *id);
    int (*comm_init_rank_config)(void **comm, int ranks, nccl_id_t id, int rank, nccl_config_t *config);
    int (*comm_finalize)(void *comm);
    int (*comm_destroy)(void *comm);
    int (*comm_abort)(void *comm);
    int (*comm_get_async_error)(void *comm, int *error);
    const char *(*get_error_string)(int result);
    const char *(*get_last_error)(void *comm);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*all_reduce)(const void *from, void *to, size_t count, int type, int operation, void *comm, void *stream);
    int (*reduce)(const void *from, void *to, size_t count, int type, int operation, int root, void *comm,
                  void *stream);
    int (*broadcast)(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream);
    int (*reduce_scatter)(const void *from, void *to, size_t count, int type, int operation, void *comm, void *stream);
    int (*all_gather)(const void *from, void *to, size_t count, int type, void *comm, void *stream);
} nccl_library_t;

#endif
