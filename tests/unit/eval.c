// Lines of samples.jsonl from known answers.
#include "rollout/eval.h"
#include "tests/lib/check.h"

#include <jansson.h>

#define MODEL POISE_SOURCE_DIR "/tests/goldens/score/model"

static const char *const options[] = {"boot", "bag"};

typedef struct scene {
    eval_t eval;
    config_t config;
    packed_sample_t sample;
} scene_t;

static void open_scene(scene_t *scene, bool bare) {
    const char *settings[] = {bare ? "eval.bare=true" : "eval.bare=false"};
    *scene = (scene_t){0};
    CHECK_OK(config_read(NULL, settings, 1, &scene->config));
    scene->eval.config = &scene->config;
    CHECK_OK(tokenizer_open(MODEL, &scene->eval.tokenizer));
    CHECK_OK(listing_words_add(&scene->eval.words, "row 1: boot, bag. row 2: dress, bag."));
    scene->sample = (packed_sample_t){.index = 7,
                                      .id = "seven",
                                      .answer = "2",
                                      .kind = "count",
                                      .options = options,
                                      .listing = "row 1: boot, bag. row 2: dress, bag."};
}

static void close_scene(scene_t *scene) {
    tokenizer_close(scene->eval.tokenizer);
    listing_words_free(&scene->eval.words);
    config_free(&scene->config);
}

// The line of an answer whose text is `text`, with its end-of-turn token when `stopped`.
static json_t *score(scene_t *scene, const char *text, bool stopped) {
    token_list_t tokens = {0};
    CHECK_OK(tokenizer_encode(scene->eval.tokenizer, text, strlen(text), true, &tokens));
    if (stopped) CHECK_OK(tokenizer_encode(scene->eval.tokenizer, "<|im_end|>", 10, true, &tokens));
    engine_completion_t completion = {.length = tokens.count, .tokens = tokens.id, .stopped = stopped};
    tool_text_t line = {0};
    CHECK_OK(eval_score(&scene->eval, &scene->sample, &completion, &line));
    assert_int_equal(line.data[line.length - 1], '\n');
    json_t *object = json_loads(line.data, 0, NULL);
    assert_non_null(object);
    assert_int_equal(json_object_size(object), 15);
    assert_int_equal(json_integer_value(json_object_get(object, "tokens")), tokens.count);
    int64_t think = json_integer_value(json_object_get(object, "think_tokens"));
    assert_int_equal(think + json_integer_value(json_object_get(object, "answer_tokens")), tokens.count);
    free(line.data);
    token_list_free(&tokens);
    return object;
}

static bool is_true(const json_t *line, const char *key) {
    const json_t *value = json_object_get(line, key);
    if (!json_is_boolean(value)) fail_msg("%s is no boolean", key);
    return json_is_true(value);
}

static void test_right(void **state) {
    (void)state;
    scene_t scene;
    open_scene(&scene, true);
    json_t *line = score(&scene, "<think>row 1: boot, bag 1. row 2: dress, bag 2.</think><answer> 2 </answer>", true);
    assert_int_equal(json_integer_value(json_object_get(line, "index")), 7);
    assert_string_equal(json_string_value(json_object_get(line, "id")), "seven");
    assert_string_equal(json_string_value(json_object_get(line, "kind")), "count");
    assert_string_equal(json_string_value(json_object_get(line, "extracted")), "2");
    assert_string_equal(json_string_value(json_object_get(line, "answer")), "2");
    assert_true(is_true(line, "correct"));
    assert_false(is_true(line, "invalid"));
    assert_false(is_true(line, "correct_bare"));
    assert_false(is_true(line, "truncated"));
    assert_true(is_true(line, "trace_correct"));
    assert_true(json_real_value(json_object_get(line, "tag_score")) == 1);
    assert_true(json_integer_value(json_object_get(line, "think_tokens")) > 10);
    assert_true(json_integer_value(json_object_get(line, "answer_tokens")) > 3);
    json_decref(line);
    close_scene(&scene);
}

static void test_wrong(void **state) {
    (void)state;
    scene_t scene;
    open_scene(&scene, true);
    json_t *line = score(&scene, "<think>row 1: bag, bag. row 2: dress, bag.</think><answer>3</answer>", true);
    assert_false(is_true(line, "correct"));
    assert_false(is_true(line, "invalid"));
    assert_false(is_true(line, "trace_correct"));
    json_decref(line);
    // Cut off before the answer's end: invalid, whatever it would have been.
    line = score(&scene, "<think>row 1: boot, bag. row 2: dress, bag.</think><answer>2", false);
    assert_false(is_true(line, "correct"));
    assert_true(is_true(line, "invalid"));
    assert_true(is_true(line, "truncated"));
    assert_true(json_is_null(json_object_get(line, "extracted")));
    assert_true(is_true(line, "trace_correct"));
    json_decref(line);
    close_scene(&scene);
}

static void test_bare(void **state) {
    (void)state;
    scene_t scene;
    open_scene(&scene, true);
    json_t *line = score(&scene, "2", true);
    assert_true(is_true(line, "correct_bare"));
    assert_true(is_true(line, "invalid"));
    assert_false(is_true(line, "correct"));
    assert_int_equal(json_integer_value(json_object_get(line, "think_tokens")), 0);
    json_decref(line);
    close_scene(&scene);
    open_scene(&scene, false);
    scene.sample.listing = "";
    scene.sample.answer = "bag";
    scene.sample.option_count = 2;
    line = score(&scene, "<answer>B</answer>", true);
    assert_true(json_is_null(json_object_get(line, "correct_bare")));
    assert_true(json_is_null(json_object_get(line, "trace_correct")));
    assert_true(is_true(line, "correct"));
    json_decref(line);
    close_scene(&scene);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_right), cmocka_unit_test(test_wrong),
                                       cmocka_unit_test(test_bare)};
    return cmocka_run_group_tests_name("eval", tests, NULL, NULL);
}
