// Where the functions of cuBLASLt come from: the library, or for the simulator its stand-in.
#include "kernels/cuda/cuda_library.h"

#include <stdlib.h>
#include <string.h>
#ifdef POISE_CUDA_HOST
#include <dlfcn.h>

enum { OLDEST = 110400 }; // 11.4: the first whose algorithms are described as kernels/cuda/cublas.h says

// The newest of the library's names that is there.
static status_t open_file(const char *named, void **out) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"};
    char why[256] = "";
    if (named && *named) {
        *out = dlopen(named, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (*out) return STATUS_OK;
        FAIL(STATUS_UNAVAILABLE, "cuBLASLt cannot be loaded (%s)", dlerror());
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        *out = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (*out) return STATUS_OK;
        if (!*why) snprintf(why, sizeof(why), "%s", dlerror());
    }
    FAIL(STATUS_UNAVAILABLE, "cuBLASLt cannot be loaded (%s)", why);
}

status_t CUDA_NAME(library_load)(cublas_library_t *out, void **file) {
#define SYMBOL(name, member)                                                                                           \
    { name, offsetof(cublas_library_t, member) }
    static const struct {
        const char *name;
        size_t at;
    } symbol[] = {
        SYMBOL("cublasLtGetVersion", get_version),
        SYMBOL("cublasLtGetStatusString", get_status_string),
        SYMBOL("cublasLtCreate", create),
        SYMBOL("cublasLtDestroy", destroy),
        SYMBOL("cublasLtMatmulDescCreate", description_create),
        SYMBOL("cublasLtMatmulDescDestroy", description_destroy),
        SYMBOL("cublasLtMatmulDescSetAttribute", description_set),
        SYMBOL("cublasLtMatrixLayoutCreate", layout_create),
        SYMBOL("cublasLtMatrixLayoutDestroy", layout_destroy),
        SYMBOL("cublasLtMatrixLayoutSetAttribute", layout_set),
        SYMBOL("cublasLtMatmulPreferenceCreate", preference_create),
        SYMBOL("cublasLtMatmulPreferenceDestroy", preference_destroy),
        SYMBOL("cublasLtMatmulPreferenceSetAttribute", preference_set),
        SYMBOL("cublasLtMatmulAlgoGetHeuristic", heuristic),
        SYMBOL("cublasLtMatmulAlgoCheck", check),
        SYMBOL("cublasLtMatmulAlgoConfigGetAttribute", config_get),
        SYMBOL("cublasLtMatmul", matmul),
    };
#undef SYMBOL
    const char *named = getenv("POISE_CUBLAS");
    void *opened = NULL;
    *file = NULL;
    if (named && !strcmp(named, "none")) FAIL(STATUS_UNAVAILABLE, "POISE_CUBLAS is 'none'");
    TRY(open_file(named, &opened));
    for (size_t i = 0; i < sizeof(symbol) / sizeof(symbol[0]); i++) {
        void *found = dlsym(opened, symbol[i].name);
        memcpy((char *)out + symbol[i].at, &found, sizeof(found));
        if (found) continue;
        dlclose(opened);
        FAIL(STATUS_UNAVAILABLE, "cuBLASLt has no %s; 11.4 or newer is needed", symbol[i].name);
    }
    if (out->get_version() < OLDEST) {
        dlclose(opened);
        FAIL(STATUS_UNAVAILABLE, "cuBLASLt is version %zu; 11.4 or newer is needed", out->get_version());
    }
    *file = opened;
    return STATUS_OK;
}

void CUDA_NAME(library_unload)(void *file) {
    if (file) dlclose(file);
}
#else
#include "kernels/sim/cublas.h"

status_t CUDA_NAME(library_load)(cublas_library_t *out, void **file) {
    *file = NULL;
    return sim_cublas_load(out);
}

void CUDA_NAME(library_unload)(void *file) {
    (void)file;
}
#endif
