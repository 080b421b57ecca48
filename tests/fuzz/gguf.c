// A GGUF file: every tensor read, then the whole converted to a folder.
#include "common/model/gguf_convert.h"
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <unistd.h>

static void use(const gguf_t *file) {
    for (int i = 0; i < gguf_count(file); i++) {
        const gguf_tensor_t *tensor = gguf_at(file, i);
        FUZZ_CHECK(gguf_find(file, tensor->name) == tensor);
        float *values;
        // Four bits a value at least.
        status_t status = memory_allocate((size_t)tensor->elements, sizeof(float), (void **)&values);
        if (!status) status = gguf_dequantise(tensor, 0, tensor->elements, values);
        FUZZ_CHECK(!status);
        free(values);
    }
}

static void remove_output(void) {
    char path[512];
    DIR *listing = opendir(fuzz_path("out"));
    if (!listing) return;
    for (struct dirent *entry; (entry = readdir(listing));) {
        snprintf(path, sizeof(path), "%s/%.200s", fuzz_path("out"), entry->d_name);
        if (entry->d_name[0] != '.') unlink(path);
    }
    closedir(listing);
    rmdir(fuzz_path("out"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gguf_t *file;
    // The list of a thousand layers that the metadata asks for is there before the tensors are found missing.
    fuzz_allow(64 << 20, 64, size);
    fuzz_file("model.gguf", data, size);
    status_t status = gguf_open(fuzz_path("model.gguf"), &file);
    if (!status) {
        use(file);
        gguf_close(file);
        char *from = strdup(fuzz_path("model.gguf")), *to = strdup(fuzz_path("out"));
        status = from && to ? gguf_convert(from, to) : STATUS_OK;
        free(from);
        free(to);
        remove_output();
    }
    status_free(status);
    return 0;
}
