// Composing a vision tower with a language model: the language model's weights stay to the bit, a new image token gets
// the mean row, a chat with a picture and one with plain strings both read well, and what does not fit is refused.
#include "common/model/compose.h"
#include "common/text/chat.h"
#include "common/vision/image.h"
#include "tests/lib/parity.h"

#include <unistd.h>

enum { PATH = 1024, VOCABULARY = 1288, HIDDEN = 24 };

static char folder[PATH - 200], language[PATH], vision[PATH], composed[PATH];

static void write_text(const char *directory, const char *name, const char *text) {
    char path[2 * PATH];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void write_vision(const char *tower, const char *more) {
    char text[1024];
    snprintf(text, sizeof(text),
             "{\"image_grid_pinpoints\":[[28,56],[56,28]],\"vision_feature_layer\":-1,%s\"vision_config\":{%s,"
             "\"hidden_size\":16,\"intermediate_size\":20,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
             "\"image_size\":28,\"patch_size\":14}}",
             more, tower);
    write_text(folder, "vision.json", text);
}

// The vocabulary is the quickstart's; `tied` says whether the head is the token table.
static void make_language(device_t *device, bool tied) {
    char command[8 * PATH], config[1024];
    snprintf(command, sizeof(command),
             "rm -rf '%s' '%s' && mkdir '%s' && cp '%s/configs/quickstart/tokenizer.json' '%s'", language, composed,
             language, POISE_SOURCE_DIR, language);
    assert_int_equal(system(command), 0);
    snprintf(config, sizeof(config),
             "{\"model_type\":\"llama\",\"vocab_size\":%d,\"hidden_size\":%d,\"intermediate_size\":32,"
             "\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"bos_token_id\":1280,"
             "\"eos_token_id\":1282,\"tie_word_embeddings\":%s,\"max_position_embeddings\":512}",
             VOCABULARY, HIDDEN, tied ? "true" : "false");
    write_text(language, "config.json", config);
    write_text(language, "tokenizer_config.json",
               "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"eos_token\":\"<|im_end|>\",\"chat_template\":"
               "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
               "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"}");
    model_t *model;
    check(model_open(language, device, &model));
    check(model_initialise(model, 7, 0.5f));
    char saved[PATH + 8];
    snprintf(saved, sizeof(saved), "%s.new", language);
    check(model_save(model, language, saved));
    snprintf(command, sizeof(command), "mv '%s/model.safetensors' '%s' && rm -r '%s'", saved, language, saved);
    assert_int_equal(system(command), 0);
    model_close(model);
}

static int set_up(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "%s/compose-test-XXXXXX", POISE_BINARY_DIR);
    if (!mkdtemp(folder)) return -1;
    snprintf(language, sizeof(language), "%s/language", folder);
    snprintf(vision, sizeof(vision), "%s/vision.json", folder);
    snprintf(composed, sizeof(composed), "%s/composed", folder);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[PATH];
    snprintf(command, sizeof(command), "rm -r '%s'", folder);
    return system(command);
}

static status_t compose(const char *token) {
    compose_options_t options = {
        .language = language, .vision = vision, .output = composed, .image_token = token, .seed = 3, .std = 0.02f};
    return compose_model(&options);
}

static const float *values(const model_t *model, const char *name, int rows) {
    int at = model_find(model, name);
    assert_true(at >= 0);
    assert_int_equal(model->spec[at].rows, rows);
    return model->parameter[at].value.data;
}

static void check_table(const model_t *before, const model_t *after, const char *name) {
    char inside[200];
    snprintf(inside, sizeof(inside), "language_model.%s", name);
    const float *old = values(before, name, VOCABULARY), *new = values(after, inside, VOCABULARY + 1);
    assert_memory_equal(old, new, sizeof(float) * VOCABULARY * HIDDEN);
    for (int c = 0; c < HIDDEN; c++) {
        double mean = 0;
        for (int r = 0; r < VOCABULARY; r++) mean += old[r * HIDDEN + c];
        assert_true(fabs(mean / VOCABULARY - (double)new[VOCABULARY * HIDDEN + c]) < 1e-7);
    }
}

static void check_weights(device_t *device, bool tied) {
    model_t *before, *after;
    make_language(device, tied);
    check(compose("<picture>"));
    check(model_open(language, device, &before));
    check(model_load(before, language));
    check(model_open(composed, device, &after));
    check(model_load(after, composed));
    assert_string_equal(after->family->name, "llava_next");
    assert_int_equal(after->config.image.image_token, VOCABULARY);
    assert_int_equal(after->config.tied_embeddings, tied);
    check_table(before, after, "model.embed_tokens.weight");
    if (!tied) check_table(before, after, "lm_head.weight");
    assert_memory_equal(values(before, "model.layers.1.mlp.down_proj.weight", HIDDEN),
                        values(after, "language_model.model.layers.1.mlp.down_proj.weight", HIDDEN),
                        sizeof(float) * HIDDEN * 32);
    const float *projector = values(after, "multi_modal_projector.linear_1.weight", HIDDEN);
    double square = 0;
    for (int i = 0; i < HIDDEN * 16; i++) square += (double)projector[i] * (double)projector[i] / (HIDDEN * 16);
    assert_true(square > 1e-4 && square < 1e-3); // 0.02 squared is 4e-4
    model_close(before);
    model_close(after);
}

static void test_weights(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    write_vision("\"model_type\":\"clip_vision_model\"", "");
    check_weights(device, true);
    check_weights(device, false);
    device_close(device);
}

// One picture of 56 x 28: two tiles and the whole, 4 features each, and a newline for each of two rows.
static void check_chat(const char *content, bool picture, const char *wanted) {
    chat_template_t *template;
    chat_t chat;
    char *text, line[512];
    snprintf(line, sizeof(line), "[{\"role\":\"user\",\"content\":%s}]", content);
    json_t *messages = json_loads(line, 0, NULL);
    assert_non_null(messages);
    check(chat_template_open(composed, &template));
    check(chat_read(messages, &chat));
    check(chat_render(template, &chat, true, &text));
    assert_string_equal(text, wanted);
    free(text);
    if (picture) {
        tokenizer_t *tokenizer;
        model_t *model;
        token_list_t list = {0};
        check(tokenizer_open(composed, &tokenizer));
        check(model_open(composed, NULL, &model));
        uint8_t pixels[56 * 28 * 3] = {0}, *png;
        size_t bytes;
        image_patches_t *patches;
        check(image_encode_png(&(image_t){.width = 56, .height = 28, .pixels = pixels}, &png, &bytes));
        check(image_patches_make(&model->config.image, png, bytes, &patches));
        free(png);
        check(chat_encode(template, tokenizer, &chat, true, &model->config.image, &patches->shape, &list));
        int found = 0;
        for (int i = 0; i < list.count; i++) found += list.id[i] == model->config.image.image_token;
        assert_int_equal(found, 4 + 8 + 2);
        token_list_free(&list);
        image_patches_free(patches);
        model_close(model);
        tokenizer_close(tokenizer);
    }
    chat_free(&chat);
    chat_template_close(template);
    json_decref(messages);
}

static void test_chats(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    for (int siglip = 0; siglip < 2; siglip++) {
        make_language(device, true);
        write_vision(siglip ? "\"model_type\":\"siglip_vision_model\",\"vision_use_head\":false"
                            : "\"model_type\":\"clip_vision_model\"",
                     siglip ? "\"vision_feature_select_strategy\":\"full\"," : "");
        check(compose("<image>"));
        check_chat("\"Hello\"", false, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
        check_chat("[{\"type\":\"image\",\"image\":\"a.png\"},{\"type\":\"text\",\"text\":\"How many?\"}]", true,
                   "<|im_start|>user\n<image>\nHow many?<|im_end|>\n<|im_start|>assistant\n");
    }
    device_close(device);
}

// What a second composition of the same parts makes is the same, and a folder that is there is replaced whole.
static void test_token_that_is_there(void **state) {
    (void)state;
    device_t *device;
    model_t *model;
    check(device_open("cpu", 1, &device));
    make_language(device, true);
    write_vision("\"model_type\":\"clip_vision_model\"", "");
    check(compose("<image>"));
    check(compose("<|image_pad|>"));
    check(model_open(composed, NULL, &model));
    assert_int_equal(model->config.image.image_token, 1286);
    assert_int_equal(model->config.vocabulary, VOCABULARY);
    model_close(model);
    device_close(device);
}

static void refuse(const char *what) {
    status_t status = compose("<image>");
    if (!status) fail_msg("composed all the same: %s", what);
    status_free(status);
    assert_int_not_equal(access(composed, F_OK), 0);
}

static void test_refusals(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    make_language(device, true);
    write_text(folder, "vision.json", "{\"image_grid_pinpoints\":[[28,56]]}");
    refuse("no vision_config");
    write_vision("\"model_type\":\"clip_vision_model\"", "\"model_type\":\"llava\",");
    refuse("another model_type");
    write_vision("\"model_type\":\"clip_vision_model\"", "\"vision_feature_select_strategy\":\"full\",");
    refuse("features that are no whole tiles");
    write_vision("\"model_type\":\"clip_vision_model\"", "");
    write_text(language, "tokenizer_config.json", "{}");
    refuse("no chat template");
    snprintf(language, sizeof(language), "%s/configs/quickstart", POISE_SOURCE_DIR);
    refuse("a model that has pictures already");
    snprintf(language, sizeof(language), "%s/language", folder);
    device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_weights), cmocka_unit_test(test_chats),
                                       cmocka_unit_test(test_token_that_is_there), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
