// Parts: config.json, preprocessor_config.json, generation_config.json of a model folder. Read, and the rules for
// pictures that come out of it used.
#include "common/model/decoder.h"
#include "common/vision/image.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"config.json", "preprocessor_config.json", "generation_config.json"};
    model_t *model = NULL;
    fuzz_parts_t parts = fuzz_parts(data, size);
    // A line of JSON can ask for thousands of layers; their list must stay a list.
    fuzz_allow(64 << 20, 64, size);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const uint8_t *part = NULL;
        size_t length = 0;
        bool there = fuzz_next(&parts, &part, &length) && length;
        fuzz_file(names[i], there ? part : NULL, length);
    }
    status_t status = model_open(fuzz_folder(), NULL, &model);
    if (!status) {
        for (int i = 0; i < model->parameter_count; i++)
            FUZZ_CHECK(model->parameter[i].value.rows >= 0 && model->parameter[i].value.columns >= 0);
        float frequency[ATTENTION_MAX_HEAD_DIM / 2];
        FUZZ_CHECK(model->config.head_dim <= ATTENTION_MAX_HEAD_DIM && model->config.layers <= DECODER_MAX_LAYERS);
        for (int i = 0; i < 1 + model->config.decoder.two_ropes; i++)
            decoder_inverse_frequencies(&model->config.decoder.rope[i], model->config.head_dim, frequency);
        for (int part = 0; part < PART_COUNT; part++) {
            int64_t trainable, total;
            model_count(model, (model_part_t)part, &trainable, &total);
            FUZZ_CHECK(trainable >= 0 && trainable <= total);
        }
        static const int sides[][2] = {{1, 1}, {60, 44}, {9, 1800}, {30000, 5}};
        for (size_t i = 0; model->config.has_vision && !status && i < sizeof(sides) / sizeof(sides[0]); i++) {
            int height, width;
            status = image_smart_resize(&model->config.image, sides[i][0], sides[i][1], &height, &width);
            FUZZ_CHECK(status || (height > 0 && width > 0));
        }
    }
    status_free(status);
    model_close(model);
    return 0;
}
