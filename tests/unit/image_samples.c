// A sample with more or fewer image placeholders than its pictures need is an error that names it: in the learner's
// data, in its batches and in the engine.
#include "tests/lib/packed_fixture.h"

#include "learner/setup.h"
#include "rollout/engine.h"

typedef struct place {
    char folder[256];
    config_t config;
    learner_t learner;
    int32_t tokens[600];
    packed_sample_t sample; // its tokens are ours
} place_t;

static void open_place(place_t *place) {
    char path[400];
    *place = (place_t){0};
    check_make_folder(place->folder, sizeof(place->folder));
    packed_fixture_make(place->folder, 6, true);
    snprintf(path, sizeof(path), "%s/train.h5", place->folder);
    place->learner.config = &place->config;
    CHECK_OK(device_open("cpu", 1, &place->learner.device));
    CHECK_OK(model_open(PACKED_FIXTURE_MODEL, place->learner.device, &place->learner.model));
    CHECK_OK(model_load(place->learner.model, PACKED_FIXTURE_MODEL));
    CHECK_OK(packed_open(path, &place->learner.packed));
    CHECK_OK(patch_cache_open(&place->learner.model->config.image, 1 << 24, &place->learner.patches));
    CHECK_OK(packed_sample(place->learner.packed, 1, &place->sample));
    assert_int_equal(place->sample.image_count, 1);
    memcpy(place->tokens, place->sample.tokens, (size_t)place->sample.length * sizeof(int32_t));
    place->sample.tokens = place->tokens;
}

static void close_place(place_t *place) {
    patch_cache_close(place->learner.patches);
    packed_close(place->learner.packed);
    model_close(place->learner.model);
    device_close(place->learner.device);
    check_remove_folder(place->folder);
}

// Where the sample's first placeholder stands.
static int first_placeholder(const place_t *place) {
    int at = 0;
    while (place->tokens[at] != place->learner.model->config.image.image_token) at++;
    return at;
}

static void check_all(place_t *place, const char *part) {
    const image_patches_t *images[4];
    batch_t batch;
    status_t status = learner_sample_images(&place->learner, &place->sample, images);
    if (!part) {
        CHECK_OK(status);
    } else {
        assert_non_null(status);
        if (!strstr(status_message(status), part) || !strstr(status_message(status), "sample-1"))
            fail_msg("%s", status_message(status));
        status_free(status);
    }
    batch_sequence_t sequence = {.tokens = place->tokens,
                                 .length = place->sample.length,
                                 .shared_with = -1,
                                 .images = images,
                                 .image_count = 1,
                                 .first_target = 1};
    engine_request_t request = {.tokens = place->tokens,
                                .prompt_length = place->sample.length,
                                .images = images,
                                .image_count = 1,
                                .completions = 1,
                                .max_new_tokens = 4};
    engine_options_t options = {.pages = 64, .batch_rows = 8, .prefill_chunk = 8, .feature_cache_bytes = 1 << 20};
    engine_t *engine;
    CHECK_OK(engine_open(place->learner.model, &options, &engine));
    if (part) {
        CHECK_FAILS(batch_build(place->learner.model, &sequence, 1, &batch), part);
        CHECK_FAILS(engine_submit(engine, &request), part);
    } else {
        CHECK_OK(batch_build(place->learner.model, &sequence, 1, &batch));
        batch_free(&batch);
        CHECK_OK(engine_submit(engine, &request));
    }
    engine_close(engine);
    patch_cache_release_all(place->learner.patches);
}

static void test_counts(void **state) {
    (void)state;
    place_t place;
    open_place(&place);
    int32_t image = place.learner.model->config.image.image_token;
    int at = first_placeholder(&place);
    check_all(&place, NULL);
    place.tokens[at] = 1;
    check_all(&place, "image placeholders");
    place.tokens[at] = image;
    check_all(&place, NULL);
    place.tokens[place.sample.length - 1] = image;
    check_all(&place, "image placeholders");
    close_place(&place);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
