// Parts: adapter_config.json and adapter_model.safetensors, loaded beside the weights of a tiny model.
#include "common/model/model.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static device_t *device;
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    model_t *model = NULL;
    fuzz_parts_t parts = fuzz_parts(data, size);
    fuzz_allow(64 << 20, 64, size); // the model itself
    if (!device) {
        status_t status = device_open("cpu:portable", 1, &device);
        FUZZ_CHECK(!status);
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const uint8_t *part = NULL;
        size_t length = 0;
        bool there = fuzz_next(&parts, &part, &length) && length;
        fuzz_file(names[i], there ? part : NULL, length);
    }
    status_t status = model_open(POISE_SOURCE_DIR "/tests/goldens/qwen2_5_vl/gqa4_window56_hub", device, &model);
    FUZZ_CHECK(!status);
    status_free(model_load_adapter(model, fuzz_folder()));
    model_close(model);
    return 0;
}
