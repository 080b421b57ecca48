// What kernels/cuda/nccl.h declares is what nccl.h of a toolkit declares: compiled where there is one, never run.
#include "kernels/cuda/nccl.h"

#include <nccl.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)
SAME(NCCL_SUCCESS, ncclSuccess);
SAME(NCCL_INTERNAL_ERROR, ncclInternalError);
SAME(NCCL_INVALID_ARGUMENT, ncclInvalidArgument);
SAME(NCCL_INVALID_USAGE, ncclInvalidUsage);
SAME(NCCL_REMOTE_ERROR, ncclRemoteError);
SAME(NCCL_IN_PROGRESS, ncclInProgress);
SAME(NCCL_UINT8, ncclUint8);
SAME(NCCL_INT64, ncclInt64);
SAME(NCCL_FLOAT64, ncclFloat64);
SAME(NCCL_SUM, ncclSum);
SAME(NCCL_MAX, ncclMax);
SAME(NCCL_MIN, ncclMin);
SAME(NCCL_ID_BYTES, sizeof(ncclUniqueId));
SAME(sizeof(int), sizeof(ncclResult_t));
SAME(sizeof(int), sizeof(ncclDataType_t));
SAME(sizeof(int), sizeof(ncclRedOp_t));
SAME(sizeof(void *), sizeof(ncclComm_t));
SAME(sizeof(void *), sizeof(cudaStream_t));
SAME(offsetof(nccl_config_t, size), offsetof(ncclConfig_t, size));
SAME(offsetof(nccl_config_t, magic), offsetof(ncclConfig_t, magic));
SAME(offsetof(nccl_config_t, version), offsetof(ncclConfig_t, version));
SAME(offsetof(nccl_config_t, blocking), offsetof(ncclConfig_t, blocking));
static const ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;
const unsigned *declarations_magic(void);
const unsigned *declarations_magic(void) {
    return &initial.magic;
}

// Functions: the types of NCCL's own, written out. Where ours has int or void *, theirs has an enum or a pointer.
#define TAKES(function, ...)                                                                                           \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&function), ncclResult_t (*)(__VA_ARGS__)), #function)
TAKES(ncclGetVersion, int *);
TAKES(ncclGetUniqueId, ncclUniqueId *);
TAKES(ncclCommInitRankConfig, ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
TAKES(ncclCommFinalize, ncclComm_t);
TAKES(ncclCommDestroy, ncclComm_t);
TAKES(ncclCommAbort, ncclComm_t);
TAKES(ncclCommGetAsyncError, ncclComm_t, ncclResult_t *);
TAKES(ncclGroupStart, void);
TAKES(ncclGroupEnd, void);
TAKES(ncclAllReduce, const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t);
TAKES(ncclReduce, const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t, cudaStream_t);
TAKES(ncclBroadcast, const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
TAKES(ncclReduceScatter, const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t);
TAKES(ncclAllGather, const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t);
_Static_assert(__builtin_types_compatible_p(__typeof__(&ncclGetErrorString), const char *(*)(ncclResult_t)), "string");
_Static_assert(__builtin_types_compatible_p(__typeof__(&ncclGetLastError), const char *(*)(ncclComm_t)), "string");
