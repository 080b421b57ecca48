// score, generate and tokenize against transformers' log-probs, and what they refuse.
#include "common/store/store.h"
#include "rollout/rollout.h"
#include "tests/lib/check.h"

#include <jansson.h>
#include <math.h>

#define GOLDEN POISE_SOURCE_DIR "/tests/goldens/score"

typedef struct lines {
    json_t *line[64];
    int count;
} lines_t;

static lines_t read_lines(const char *path) {
    lines_t out = {0};
    char *text;
    size_t size;
    CHECK_OK(file_read_whole(path, 1 << 24, &text, &size));
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(out.count < 64);
        out.line[out.count] = json_loads(line, 0, NULL);
        assert_non_null(out.line[out.count]);
        out.count++;
    }
    free(text);
    return out;
}

static void free_lines(lines_t *lines) {
    for (int i = 0; i < lines->count; i++) json_decref(lines->line[i]);
}

static json_t *get(const lines_t *lines, int line, const char *key) {
    json_t *value = json_object_get(lines->line[line], key);
    if (!value) fail_msg("line %d has no %s", line, key);
    return value;
}

// log-probs within 1e-4 of the reference.
static void check_near(const json_t *found, const json_t *expected, size_t count) {
    for (size_t i = 0; i < count; i++) {
        double a = json_number_value(json_array_get(found, i)), b = json_number_value(json_array_get(expected, i));
        if (!(fabs(a - b) < 1e-4)) fail_msg("log-prob %zu is %.9g, not %.9g", i, a, b);
    }
}

typedef struct place {
    char folder[256], input[320], output[320], second[320];
} place_t;

static void make_place(place_t *place) {
    check_make_folder(place->folder, sizeof(place->folder));
    snprintf(place->input, sizeof(place->input), "%s/in.jsonl", place->folder);
    snprintf(place->output, sizeof(place->output), "%s/out.jsonl", place->folder);
    snprintf(place->second, sizeof(place->second), "%s/second.jsonl", place->folder);
}

static tool_options_t options_of(const char *input, const char *output) {
    return (tool_options_t){.model = GOLDEN "/model",
                            .input = input,
                            .output = output,
                            .device = "cpu",
                            .dtype = "fp32",
                            .threads = 2,
                            .temperature = 1,
                            .max_tokens = 8,
                            .samples = 1,
                            .seed = 3};
}

static void write_text(const char *path, const char *text) {
    CHECK_OK(file_write_whole(path, text, strlen(text)));
}

static void test_score(void **state) {
    (void)state;
    place_t place;
    make_place(&place);
    tool_options_t options = options_of(GOLDEN "/input.jsonl", place.output);
    CHECK_OK(tool_score(&options));
    lines_t found = read_lines(place.output), expected = read_lines(GOLDEN "/expected.jsonl");
    assert_int_equal(found.count, expected.count);
    for (int i = 0; i < found.count; i++) {
        const char *const exact[] = {"id", "prompt_tokens", "prompt_ids", "tokens"};
        for (int k = 0; k < 4; k++) assert_true(json_equal(get(&found, i, exact[k]), get(&expected, i, exact[k])));
        json_t *logprobs = get(&found, i, "logprobs");
        assert_int_equal(json_array_size(logprobs), json_array_size(get(&expected, i, "logprobs")));
        check_near(logprobs, get(&expected, i, "logprobs"), json_array_size(logprobs));
    }
    free_lines(&found);
    free_lines(&expected);
    check_remove_folder(place.folder);
}

static void test_greedy(void **state) {
    (void)state;
    place_t place;
    make_place(&place);
    tool_options_t options = options_of(GOLDEN "/input.jsonl", place.output);
    options.temperature = 0;
    CHECK_OK(tool_generate(&options));
    lines_t found = read_lines(place.output), expected = read_lines(GOLDEN "/expected.jsonl");
    assert_int_equal(found.count, expected.count);
    for (int i = 0; i < found.count; i++) {
        assert_true(json_equal(get(&found, i, "tokens"), get(&expected, i, "greedy_tokens")));
        check_near(get(&found, i, "logprobs"), get(&expected, i, "greedy_logprobs"), 8);
        assert_string_equal(json_string_value(get(&found, i, "text")),
                            json_string_value(get(&expected, i, "greedy_text")));
        assert_string_equal(json_string_value(get(&found, i, "finish_reason")), "length");
    }
    free_lines(&found);
    free_lines(&expected);
    check_remove_folder(place.folder);
}

// The folder of the goldens with another generation_config.json.
static void model_with(const char *folder, const char *generation) {
    char path[512], from[512];
    static const char *const names[] = {"config.json", "preprocessor_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "model.safetensors"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        snprintf(from, sizeof(from), "%s/model/%s", GOLDEN, names[i]);
        assert_int_equal(symlink(from, path), 0);
    }
    snprintf(path, sizeof(path), "%s/generation_config.json", folder);
    if (generation) write_text(path, generation);
}

// Any of the ids of generation_config.json ends a completion, be it a number or a list; it is the last token.
static void test_ends(void **state) {
    (void)state;
    lines_t expected = read_lines(GOLDEN "/expected.jsonl");
    const json_t *greedy = get(&expected, 0, "greedy_tokens");
    int first = 0; // of the token that ends it: no earlier one is the same
    json_int_t end = json_integer_value(json_array_get(greedy, 2));
    while (json_integer_value(json_array_get(greedy, (size_t)first)) != end) first++;
    for (int list = 0; list < 2; list++) {
        place_t place;
        char text[128];
        make_place(&place);
        snprintf(text, sizeof(text), list ? "{\"eos_token_id\":[7,%d]}" : "{\"eos_token_id\":%d}", (int)end);
        model_with(place.folder, text);
        tool_options_t options = options_of(GOLDEN "/input.jsonl", place.output);
        options.model = place.folder;
        options.temperature = 0;
        CHECK_OK(tool_generate(&options));
        lines_t found = read_lines(place.output);
        assert_string_equal(json_string_value(get(&found, 0, "finish_reason")), "stop");
        const json_t *tokens = get(&found, 0, "tokens");
        assert_int_equal(json_array_size(tokens), first + 1);
        for (int i = 0; i <= first; i++)
            assert_true(json_equal(json_array_get(tokens, (size_t)i), json_array_get(greedy, (size_t)i)));
        free_lines(&found);
        check_remove_folder(place.folder);
    }
    free_lines(&expected);
}

// Samples are those of (seed, id, sample number), whatever else is in the file; scoring them gives the same bits.
static void test_sampling(void **state) {
    (void)state;
    place_t place;
    char text[4096] = "";
    make_place(&place);
    tool_options_t options = options_of(GOLDEN "/input.jsonl", place.output);
    options.samples = 3;
    options.temperature = 0.9;
    options.max_tokens = 20;
    CHECK_OK(tool_generate(&options));
    lines_t all = read_lines(place.output);
    assert_int_equal(all.count, 18);
    // Other threads and kernels: the same file.
    options.output = place.second;
    options.threads = 3;
    options.device = "cpu:portable";
    CHECK_OK(tool_generate(&options));
    lines_t again = read_lines(place.second);
    for (int i = 0; i < 18; i++) assert_true(json_equal(again.line[i], all.line[i]));
    free_lines(&again);
    snprintf(text, sizeof(text), "%s", "{\"id\":\"5\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n");
    write_text(place.input, text);
    options = options_of(place.input, place.second);
    options.samples = 2;
    options.temperature = 0.9;
    options.max_tokens = 20;
    CHECK_OK(tool_generate(&options));
    lines_t one = read_lines(place.second);
    assert_int_equal(one.count, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(json_integer_value(get(&one, i, "sample")), i);
        assert_true(json_equal(get(&one, i, "tokens"), get(&all, 15 + i, "tokens")));
        assert_true(json_equal(get(&one, i, "logprobs"), get(&all, 15 + i, "logprobs")));
    }
    assert_false(json_equal(get(&one, 0, "tokens"), get(&one, 1, "tokens")));
    // What was sampled, scored at the same temperature.
    text[0] = 0;
    for (int i = 0; i < 2; i++) {
        json_t *line = json_pack("{s:i,s:O,s:O}", "id", i, "prompt_ids", get(&one, i, "prompt_ids"), "completion_ids",
                                 get(&one, i, "tokens"));
        char *dumped = json_dumps(line, JSON_COMPACT);
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s\n", dumped);
        free(dumped);
        json_decref(line);
    }
    write_text(place.input, text);
    options = options_of(place.input, place.output);
    options.temperature = 0.9;
    CHECK_OK(tool_score(&options));
    lines_t scored = read_lines(place.output);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(json_integer_value(get(&scored, i, "id")), i);
        assert_true(json_equal(get(&scored, i, "logprobs"), get(&one, i, "logprobs")));
    }
    free_lines(&all);
    free_lines(&one);
    free_lines(&scored);
    check_remove_folder(place.folder);
}

static void test_order_and_ids(void **state) {
    (void)state;
    place_t place;
    make_place(&place);
    write_text(place.input, "{\"id\":{\"a\":[1,null]},\"prompt_ids\":[1,2,3],\"completion_ids\":[4,5]}\n\n"
                            "{\"id\":1.5,\"prompt_ids\":[1,2,3],\"completion_ids\":[]}\n"
                            "{\"id\":null,\"prompt_ids\":[7],\"completion\":\"<|im_end|>\"}\n"
                            "{\"id\":null,\"prompt_ids\":[7],\"completion_ids\":[1282],\"note\":\"kept out\"}");
    tool_options_t options = options_of(place.input, place.output);
    CHECK_OK(tool_score(&options));
    lines_t found = read_lines(place.output);
    assert_int_equal(found.count, 4);
    json_t *id = json_pack("{s:[i,n]}", "a", 1);
    assert_true(json_equal(get(&found, 0, "id"), id));
    json_decref(id);
    assert_true(json_real_value(get(&found, 1, "id")) == 1.5);
    assert_int_equal(json_array_size(get(&found, 1, "tokens")), 0);
    assert_int_equal(json_array_size(get(&found, 1, "logprobs")), 0);
    assert_true(json_is_null(get(&found, 2, "id")));
    // Special-token text counts as the token.
    assert_true(json_equal(get(&found, 2, "tokens"), get(&found, 3, "tokens")));
    assert_true(json_equal(get(&found, 2, "logprobs"), get(&found, 3, "logprobs")));
    free_lines(&found);
    check_remove_folder(place.folder);
}

static void test_tokenize(void **state) {
    (void)state;
    place_t place;
    make_place(&place);
    write_text(place.input, "{\"id\":0,\"text\":\"How many boot?<|im_end|>\"}\n"
                            "{\"id\":1,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n"
                            "{\"id\":2,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":"
                            "\"" GOLDEN "/pictures/rgb_60x44.png\"}]},{\"role\":\"assistant\",\"content\":\"boot\"}]}\n"
                            "{\"id\":3,\"text\":\"\"}\n");
    tool_options_t options = options_of(place.input, place.output);
    CHECK_OK(tool_tokenize(&options));
    lines_t found = read_lines(place.output), expected = read_lines(GOLDEN "/expected.jsonl");
    assert_int_equal(found.count, 4);
    json_t *ids = get(&found, 0, "ids");
    assert_int_equal(json_integer_value(json_array_get(ids, json_array_size(ids) - 1)), 1282);
    assert_string_equal(json_string_value(get(&found, 0, "decoded")), "How many boot?<|im_end|>");
    assert_true(json_equal(get(&found, 1, "ids"), get(&expected, 5, "prompt_ids")));
    const char *decoded = json_string_value(get(&found, 2, "decoded"));
    assert_non_null(strstr(decoded, "<|image_pad|><|image_pad|>"));
    assert_string_equal(decoded + strlen(decoded) - strlen("boot<|im_end|>\n"), "boot<|im_end|>\n");
    assert_int_equal(json_array_size(get(&found, 3, "ids")), 0);
    free_lines(&found);
    free_lines(&expected);
    check_remove_folder(place.folder);
}

static void test_refusals(void **state) {
    (void)state;
    static const char good[] = "{\"id\":0,\"prompt_ids\":[1],\"completion_ids\":[2]}\n";
    static const struct {
        const char *line, *part;
    } wrong[] = {
        {"{\"id\":0,", "no JSON"},
        {"[1]", "no JSON object"},
        {"{\"prompt_ids\":[1],\"completion_ids\":[2]}", "'id'"},
        {"{\"id\":0,\"prompt_ids\":[1]}", "'completion'"},
        {"{\"id\":0,\"prompt_ids\":[1],\"completion\":\"a\",\"completion_ids\":[2]}", "'completion'"},
        {"{\"id\":0,\"completion_ids\":[2]}", "'messages'"},
        {"{\"id\":0,\"prompt_ids\":[],\"completion_ids\":[2]}", "empty"},
        {"{\"id\":0,\"prompt_ids\":[-1],\"completion_ids\":[2]}", "token id"},
        {"{\"id\":0,\"prompt_ids\":[1],\"completion_ids\":[99999]}", "vocabulary"},
        {"{\"id\":0,\"prompt_ids\":[1286],\"completion_ids\":[2]}", "placeholder"},
        {"{\"id\":0,\"prompt_ids\":[1],\"completion_ids\":[2,1286]}", "is an image placeholder"},
        {"{\"id\":0,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"none.png\"}]}],"
         "\"completion\":\"a\"}",
         "none.png"},
        {"{\"id\":\"\xff\",\"prompt_ids\":[1],\"completion_ids\":[2]}", "UTF-8"},
    };
    place_t place;
    make_place(&place);
    tool_options_t options = options_of(place.input, place.output);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        char text[1024];
        snprintf(text, sizeof(text), "%s%s\n%s", good, wrong[i].line, good);
        write_text(place.input, text);
        CHECK_FAILS(tool_score(&options), wrong[i].part);
        status_t status = tool_score(&options);
        if (!strstr(status_message(status), "line 2")) fail_msg("%s", status_message(status));
        assert_int_equal(status_exit_code(status), 2);
        status_free(status);
        assert_int_equal(access(place.output, F_OK), -1);
    }
    options.dtype = "fp8";
    CHECK_FAILS(tool_score(&options), "fp32");
    options = options_of("/nonexistent/x", place.output);
    CHECK_FAILS(tool_score(&options), "/nonexistent/x");
    options = options_of(place.input, place.output);
    options.max_tokens = 0;
    CHECK_FAILS(tool_generate(&options), "--max-tokens");
    check_remove_folder(place.folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_score),    cmocka_unit_test(test_greedy),        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_ends),     cmocka_unit_test(test_order_and_ids), cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("tools", tests, NULL, NULL);
}
