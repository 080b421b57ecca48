// Parts: model.safetensors, then model.safetensors.index.json, then two shards. Opened as a folder and one by one,
// every tensor read.
#include "common/model/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void use(safetensors_t *file) {
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        FUZZ_CHECK(safetensors_find(file, tensor->name) == tensor);
        float *values;
        status_t status = memory_allocate((size_t)tensor->elements, sizeof(float), (void **)&values);
        if (!status && tensor->dtype == DTYPE_I32)
            status = safetensors_read_i32(tensor, (int32_t *)(void *)values);
        else if (!status)
            status = safetensors_read_f32(tensor, values);
        status_free(status);
        free(values);
    }
    (void)safetensors_metadata(file, "format");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "a.safetensors",
                                        "b.safetensors"};
    safetensors_t *file;
    fuzz_parts_t parts = fuzz_parts(data, size);
    fuzz_allow(1 << 20, 64, size);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const uint8_t *part = NULL;
        size_t length = 0;
        bool there = fuzz_next(&parts, &part, &length) && length;
        fuzz_file(names[i], there ? part : NULL, length);
    }
    for (int i = 0; i < 2; i++) {
        status_t status =
            i ? safetensors_open_folder(fuzz_folder(), &file) : safetensors_open(fuzz_path("model.safetensors"), &file);
        if (!status) {
            use(file);
            safetensors_close(file);
        }
        status_free(status);
    }
    return 0;
}
