// Chat templates of many models, and chats with pictures, against transformers: the same text, the same ids.
#include "common/text/chat.h"
#include "tests/lib/check.h"

#include <jansson.h>

static json_t *read_json(const char *path) {
    char full[1024];
    json_error_t error;
    snprintf(full, sizeof(full), "%s/%s", POISE_SOURCE_DIR, path);
    json_t *root = json_load_file(full, 0, &error);
    if (!root) fail_msg("%s:%d: %s", full, error.line, error.text);
    return root;
}

static void write_file(const char *folder, const char *name, const char *text) {
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void write_json(const char *folder, const char *name, const json_t *value) {
    char *text = json_dumps(value, 0);
    write_file(folder, name, text);
    free(text);
}

static void check_rendered(const chat_template_t *chat_template, const json_t *messages, bool generation,
                           const json_t *expected, const char *name, size_t at) {
    chat_t chat;
    char *text = NULL;
    CHECK_OK(chat_read(messages, &chat));
    status_t status = chat_render(chat_template, &chat, generation, &text);
    if (json_is_null(expected) != (status != NULL))
        fail_msg("%s, chat %zu: %s", name, at, status ? status_message(status) : "no error");
    if (!status && strcmp(text, json_string_value(expected)) != 0)
        fail_msg("%s, chat %zu:\n%s\ninstead of\n%s", name, at, text, json_string_value(expected));
    status_free(status);
    free(text);
    chat_free(&chat);
}

static void test_templates(void **state) {
    (void)state;
    json_t *root = read_json("tests/goldens/text/templates.json"), *item, *pair;
    const json_t *chats = json_object_get(root, "chats");
    char folder[1024];
    size_t i, c;
    int compared = 0;
    check_make_folder(folder, sizeof(folder));
    write_json(folder, "tokenizer_config.json", json_object_get(root, "tokens"));
    json_array_foreach(json_object_get(root, "templates"), i, item) {
        chat_template_t *chat_template;
        const char *name = json_string_value(json_object_get(item, "name"));
        write_file(folder, "chat_template.jinja", json_string_value(json_object_get(item, "template")));
        CHECK_OK(chat_template_open(folder, &chat_template));
        json_array_foreach(json_object_get(item, "rendered"), c, pair) {
            for (size_t generation = 0; generation < 2; generation++, compared++)
                check_rendered(chat_template, json_array_get(chats, c), generation, json_array_get(pair, generation),
                               name, c);
        }
        chat_template_close(chat_template);
    }
    assert_true(compared > 600);
    check_remove_folder(folder);
    json_decref(root);
}

// The quickstart's vocabulary with a family's special tokens.
static void write_folder(const char *folder, const json_t *family) {
    json_t *tokenizer = read_json("configs/quickstart/tokenizer.json"), *id, *config = json_object();
    const char *token;
    json_object_foreach(json_object_get((json_t *)family, "tokens"), token, id) {
        json_array_append_new(json_object_get(tokenizer, "added_tokens"),
                              json_pack("{s:O, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", token,
                                        "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
    }
    write_json(folder, "tokenizer.json", tokenizer);
    json_object_set(config, "bos_token", json_object_get(family, "bos"));
    json_object_set_new(config, "eos_token", json_pack("{s:O}", "content", json_object_get(family, "eos")));
    write_json(folder, "tokenizer_config.json", config);
    write_file(folder, "chat_template.jinja", json_string_value(json_object_get(family, "template")));
    json_decref(config);
    json_decref(tokenizer);
}

static int name_of(const tokenizer_t *tokenizer, const json_t *family, const char *key) {
    const char *token = json_string_value(json_object_get(json_object_get(family, "names"), key));
    return token ? tokenizer_find(tokenizer, token) : -1;
}

static void check_case(const chat_template_t *chat_template, const tokenizer_t *tokenizer, const image_rules_t *rules,
                       const json_t *item) {
    chat_t chat;
    image_shape_t shapes[8];
    memset(shapes, 0, sizeof(shapes));
    token_list_t list = {0};
    const json_t *ids = json_object_get(item, "ids"), *shape;
    size_t i;
    bool generation = json_is_true(json_object_get(item, "generation"));
    CHECK_OK(chat_read(json_object_get(item, "messages"), &chat));
    json_array_foreach(json_object_get(item, "shapes"), i, shape) {
        shapes[i].feature_rows = (int)json_integer_value(json_object_get(shape, "rows"));
        shapes[i].runs = (int)json_integer_value(json_object_get(shape, "runs"));
    }
    check_rendered(chat_template, json_object_get(item, "messages"), generation, json_object_get(item, "text"), "", 0);
    CHECK_OK(chat_encode(chat_template, tokenizer, &chat, generation, rules, shapes, &list));
    assert_int_equal(list.count, json_array_size(ids));
    for (i = 0; i < json_array_size(ids); i++) assert_int_equal(list.id[i], json_integer_value(json_array_get(ids, i)));
    if (chat.images) { // one row more or fewer is another text
        shapes[0].feature_rows += shapes[0].runs;
        token_list_t other = {0};
        CHECK_OK(chat_encode(chat_template, tokenizer, &chat, generation, rules, shapes, &other));
        assert_int_equal(other.count, list.count + shapes[0].runs);
        // A picture too few for the template's marks.
        chat_t fewer = {.messages = chat.messages, .image = chat.image, .images = chat.images - 1};
        if (fewer.images)
            CHECK_FAILS(chat_encode(chat_template, tokenizer, &fewer, generation, rules, shapes, &other),
                        "image marks");
        token_list_free(&other);
    }
    token_list_free(&list);
    chat_free(&chat);
}

static void test_pictures(void **state) {
    (void)state;
    json_t *root = read_json("tests/goldens/text/chat_pictures.json"), *family, *item;
    size_t f, i;
    int crops = 0;
    json_array_foreach(json_object_get(root, "families"), f, family) {
        char folder[1024];
        tokenizer_t *tokenizer;
        chat_template_t *chat_template;
        bool gemma = strcmp(json_string_value(json_object_get(family, "family")), "gemma3") == 0;
        check_make_folder(folder, sizeof(folder));
        write_folder(folder, family);
        CHECK_OK(tokenizer_open(folder, &tokenizer));
        CHECK_OK(chat_template_open(folder, &chat_template));
        image_rules_t rules = {.processor = gemma ? PROCESSOR_GEMMA3 : PROCESSOR_LLAVA_NEXT,
                               .image_token = name_of(tokenizer, family, "image"),
                               .vision_start = name_of(tokenizer, family, "start"),
                               .vision_end = name_of(tokenizer, family, "end")};
        json_array_foreach(json_object_get(family, "cases"), i, item) {
            check_case(chat_template, tokenizer, &rules, item);
            const json_t *shape = json_array_get(json_object_get(item, "shapes"), 0);
            crops += json_integer_value(json_object_get(shape, "runs")) > 1;
        }
        chat_turn_t turn;
        CHECK_OK(chat_turn_open(chat_template, tokenizer, &turn));
        assert_int_equal(turn.end, tokenizer_find(tokenizer, gemma ? "<end_of_turn>" : "</s>"));
        chat_turn_close(&turn);
        chat_template_close(chat_template);
        tokenizer_close(tokenizer);
        check_remove_folder(folder);
    }
    assert_int_equal(f, 3);
    assert_true(crops >= 2);
    json_decref(root);
}

// tokenizer_config.json as save_pretrained writes it: a length that no integer holds.
static void test_huge_length(void **state) {
    (void)state;
    char folder[1024];
    chat_template_t *chat_template;
    chat_t chat;
    char *text;
    check_make_folder(folder, sizeof(folder));
    write_file(folder, "tokenizer_config.json",
               "{\"model_max_length\": 1000000000000000019884624838656, \"bos_token\": \"<s>\","
               " \"chat_template\": \"{{ bos_token }}{{ messages[0]['content'] }}\"}");
    CHECK_OK(chat_template_open(folder, &chat_template));
    json_t *messages = json_pack("[{ssss}]", "role", "user", "content", "hi");
    CHECK_OK(chat_read(messages, &chat));
    CHECK_OK(chat_render(chat_template, &chat, false, &text));
    assert_string_equal(text, "<s>hi");
    free(text);
    chat_free(&chat);
    json_decref(messages);
    chat_template_close(chat_template);
    check_remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_pictures),
        cmocka_unit_test(test_huge_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
