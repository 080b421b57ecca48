#include "common/comm/nccl_load.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

status_t nccl_load(nccl_library_t *out, void **handle) {
    const char *named = getenv("POISE_NCCL"), *file = named && *named ? named : "libnccl.so.2";
    const struct {
        const char *name;
        size_t at;
    } symbol[] = {
        {"ncclGetVersion", offsetof(nccl_library_t, get_version)},
        {"ncclGetUniqueId", offsetof(nccl_library_t, get_unique_id)},
        {"ncclCommInitRankConfig", offsetof(nccl_library_t, comm_init_rank_config)},
        {"ncclCommFinalize", offsetof(nccl_library_t, comm_finalize)},
        {"ncclCommDestroy", offsetof(nccl_library_t, comm_destroy)},
        {"ncclCommAbort", offsetof(nccl_library_t, comm_abort)},
        {"ncclCommGetAsyncError", offsetof(nccl_library_t, comm_get_async_error)},
        {"ncclGetErrorString", offsetof(nccl_library_t, get_error_string)},
        {"ncclGetLastError", offsetof(nccl_library_t, get_last_error)},
        {"ncclGroupStart", offsetof(nccl_library_t, group_start)},
        {"ncclGroupEnd", offsetof(nccl_library_t, group_end)},
        {"ncclAllReduce", offsetof(nccl_library_t, all_reduce)},
        {"ncclReduce", offsetof(nccl_library_t, reduce)},
        {"ncclBroadcast", offsetof(nccl_library_t, broadcast)},
        {"ncclReduceScatter", offsetof(nccl_library_t, reduce_scatter)},
        {"ncclAllGather", offsetof(nccl_library_t, all_gather)},
    };
    *handle = NULL;
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library)
        FAIL(STATUS_UNAVAILABLE,
             "NCCL cannot be loaded (%s); install NCCL 2 (the package libnccl2, or the module that your cluster has it "
             "in), name the file in POISE_NCCL, or set collectives: mpi",
             dlerror());
    for (size_t i = 0; i < sizeof(symbol) / sizeof(symbol[0]); i++) {
        void *found = dlsym(library, symbol[i].name);
        memcpy((char *)out + symbol[i].at, &found, sizeof(found));
        if (found) continue;
        nccl_unload(library);
        FAIL(STATUS_UNAVAILABLE, "%s has no %s; install NCCL 2.14.3 or newer, or set collectives: mpi", file,
             symbol[i].name);
    }
    int version = 0;
    if (out->get_version(&version) != NCCL_SUCCESS || version < NCCL_OLDEST) {
        nccl_unload(library);
        FAIL(STATUS_UNAVAILABLE, "%s is NCCL %d; install 2.14.3 or newer, or set collectives: mpi", file, version);
    }
    *handle = library;
    return STATUS_OK;
}

void nccl_unload(void *handle) {
    if (handle) dlclose(handle);
}
