// What a line gives its chat template beside messages, and how responses follow the generation prompt.
#include "common/text/chat.h"
#include "tests/lib/check.h"

#include <jansson.h>

typedef struct scene {
    char folder[1024];
    tokenizer_t *tokenizer;
    chat_template_t *chat_template;
} scene_t;

static void write_file(const char *folder, const char *name, const char *text) {
    char path[2048];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

// A small Llama tokenizer, which puts a blank before a text, and <s> before a whole one, with the template.
static void scene_open(scene_t *scene, const char *template) {
    json_t *tokenizer = json_load_file(POISE_SOURCE_DIR "/tests/goldens/tokenizers/spm_first/tokenizer.json", 0, NULL);
    assert_non_null(tokenizer);
    json_object_set_new(tokenizer, "post_processor",
                        json_loads("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\","
                                   "\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
                                   "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}}",
                                   0, NULL));
    char *text = json_dumps(tokenizer, 0);
    check_make_folder(scene->folder, sizeof(scene->folder));
    write_file(scene->folder, "tokenizer.json", text);
    write_file(
        scene->folder, "tokenizer_config.json",
        "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"model_max_length\": 1000000000000000019884624838656}");
    write_file(scene->folder, "chat_template.jinja", template);
    CHECK_OK(tokenizer_open(scene->folder, &scene->tokenizer));
    CHECK_OK(chat_template_open(scene->folder, &scene->chat_template));
    free(text);
    json_decref(tokenizer);
}

static void scene_close(scene_t *scene) {
    chat_template_close(scene->chat_template);
    tokenizer_close(scene->tokenizer);
    check_remove_folder(scene->folder);
}

// ---- responses ----

// The response's ids are those that the whole conversation has behind the generation prompt's, and begin as said.
static void check_response(const char *template, const char *response, const char *first) {
    scene_t scene;
    chat_turn_t turn;
    chat_t asked, answered;
    token_list_t prompt = {0}, whole = {0}, list = {0};
    scene_open(&scene, template);
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "user", "content", "on the lot", "role",
                                 "assistant", "content", response);
    CHECK_OK(chat_read(messages, &answered));
    json_array_remove(messages, 1);
    CHECK_OK(chat_read(messages, &asked));
    CHECK_OK(chat_encode(scene.chat_template, scene.tokenizer, &asked, true, NULL, NULL, &prompt));
    CHECK_OK(chat_encode(scene.chat_template, scene.tokenizer, &answered, false, NULL, NULL, &whole));
    CHECK_OK(chat_turn_open(scene.chat_template, scene.tokenizer, &turn));
    assert_int_equal(turn.end, tokenizer_find(scene.tokenizer, "</s>"));
    CHECK_OK(chat_encode_response(&turn, scene.tokenizer, response, strlen(response), &list));
    assert_string_equal(tokenizer_spelling(scene.tokenizer, list.id[0], NULL), first);
    assert_int_equal(prompt.count + list.count + 1, whole.count);
    assert_memory_equal(whole.id, prompt.id, sizeof(int32_t) * (size_t)prompt.count);
    assert_memory_equal(whole.id + prompt.count, list.id, sizeof(int32_t) * (size_t)list.count);
    assert_int_equal(whole.id[whole.count - 1], turn.end);
    token_list_free(&prompt);
    token_list_free(&whole);
    token_list_free(&list);
    chat_turn_close(&turn);
    chat_free(&asked);
    chat_free(&answered);
    json_decref(messages);
    scene_close(&scene);
}

#define LINES                                                                                                          \
    "{% for m in messages %}|{{ m['role'] }}|\n{{ m['content'] }}</s>{% endfor %}"                                     \
    "{% if add_generation_prompt %}|assistant|\n{{ '' }}{% endif %}"
#define BRACKETS                                                                                                       \
    "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% else %} {{ m['content'] }}</s>"         \
    "{% endif %}{% endfor %}"
#define REASONING                                                                                                      \
    "{% for m in messages %}|{{ m['role'] }}|\n{% if m['role'] == 'assistant' and not m['content'].startswith('<') %}" \
    "<think>\n{% endif %}{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}|assistant|\n{{ '' }}"        \
    "{% endif %}"

static void test_responses(void **state) {
    (void)state;
    check_response(LINES, "no", "n");
    check_response(LINES, " no", "\xe2\x96\x81");
    check_response(LINES, "</s>", "</"); // what users spell is text
    check_response(BRACKETS, "no", "\xe2\x96\x81");
    // What the template writes of its own before a response is no part of it.
    check_response(REASONING, "<think>no", "<think>");
}

// Where a template cannot be asked, and where prompt and response would share a token, a response stands by itself.
static void test_alone(void **state) {
    (void)state;
    static const char *const templates[] = {
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m['content'] }}{{ 't' if m['role'] == 'user' }}{% endfor %}"};
    for (int i = 0; i < 2; i++) {
        scene_t scene;
        chat_turn_t turn;
        token_list_t list = {0};
        scene_open(&scene, templates[i]);
        CHECK_OK(chat_turn_open(scene.chat_template, scene.tokenizer, &turn));
        assert_int_equal(turn.opening != NULL, i);
        assert_int_equal(turn.end, tokenizer_find(scene.tokenizer, "</s>"));
        CHECK_OK(chat_encode_response(&turn, scene.tokenizer, "h", 1, &list)); // "th" is one token
        assert_int_equal(list.count, 1);
        assert_string_equal(tokenizer_spelling(scene.tokenizer, list.id[0], NULL), "\xe2\x96\x81h");
        token_list_free(&list);
        chat_turn_close(&turn);
        scene_close(&scene);
    }
}

// ---- the beginning of a text ----

static void check_beginning(const char *template, bool processor, const char *first, const char *second) {
    scene_t scene;
    chat_t chat;
    token_list_t list = {0};
    scene_open(&scene, template);
    if (processor) {
        chat_template_close(scene.chat_template);
        write_file(scene.folder, "preprocessor_config.json", "{}");
        CHECK_OK(chat_template_open(scene.folder, &scene.chat_template));
    }
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "<s>");
    CHECK_OK(chat_read(messages, &chat));
    CHECK_OK(chat_encode(scene.chat_template, scene.tokenizer, &chat, true, NULL, NULL, &list));
    assert_string_equal(tokenizer_spelling(scene.tokenizer, list.id[0], NULL), first);
    assert_string_equal(tokenizer_spelling(scene.tokenizer, list.id[1], NULL), second);
    for (int i = 2; i < list.count; i++) assert_int_not_equal(list.id[i], list.id[0]); // the user's is text
    token_list_free(&list);
    chat_free(&chat);
    json_decref(messages);
    scene_close(&scene);
}

static void test_beginning(void **state) {
    (void)state;
    check_beginning("aa{{ messages[0]['content'] }}", false, "\xe2\x96\x81", "aa");
    check_beginning("aa{{ messages[0]['content'] }}", true, "<s>", "\xe2\x96\x81");
    check_beginning("{{ bos_token }}aa{{ messages[0]['content'] }}", false, "<s>", "aa");
    check_beginning("{{ bos_token }}aa{{ messages[0]['content'] }}", true, "<s>", "aa");
    check_beginning("{{ messages[0]['content'] }}", true, "<s>", "\xe2\x96\x81<");
}

// ---- variables ----

#define ASK                                                                                                            \
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% if enable_thinking is defined %}"                  \
    "{{ enable_thinking }}{% endif %}{{ messages[0]['content'] }}"

static status_t render_line(const char *json, char **out) {
    scene_t scene;
    chat_t chat;
    json_t *line = json_loads(json, 0, NULL);
    assert_non_null(line);
    *out = NULL;
    scene_open(&scene, ASK);
    status_t status = chat_read_line(line, json_object_get(line, "messages"), &chat);
    if (!status) {
        status = chat_render(scene.chat_template, &chat, true, out);
        chat_free(&chat);
    }
    scene_close(&scene);
    json_decref(line);
    return status;
}

static void check_line(const char *json, const char *expected) {
    char *text;
    CHECK_OK(render_line(json, &text));
    assert_string_equal(text, expected);
    free(text);
}

static void check_line_fails(const char *json, const char *part) {
    char *text;
    CHECK_FAILS(render_line(json, &text), part);
}

#define MESSAGES "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"

static void test_variables(void **state) {
    (void)state;
    check_line(MESSAGES "}", "<s>a");
    check_line(MESSAGES ",\"tools\":null,\"chat_template_kwargs\":null}", "<s>a");
    check_line(MESSAGES ",\"tools\":[{\"type\":\"function\",\"b\":1}]}", "<s>[{\"type\": \"function\", \"b\": 1}]a");
    check_line(MESSAGES ",\"tools\":\"[{\\\"b\\\": 1}]\"}", "<s>[{\"b\": 1}]a");
    check_line(MESSAGES ",\"chat_template_kwargs\":{\"enable_thinking\":false}}", "<s>Falsea");
    check_line(MESSAGES ",\"chat_template_kwargs\":{\"bos_token\":\"b\"}}", "ba");
    check_line_fails(MESSAGES ",\"tools\":{}}", "'tools' must be a list");
    check_line_fails(MESSAGES ",\"tools\":\"none\"}", "'tools' must be a list");
    check_line_fails(MESSAGES ",\"tools\":[1]}", "element 1 of 'tools'");
    check_line_fails(MESSAGES ",\"chat_template_kwargs\":[]}", "must be an object");
    check_line_fails(MESSAGES ",\"chat_template_kwargs\":{\"messages\":[]}}", "cannot set 'messages'");
}

// ---- several templates ----

#define NAMED                                                                                                          \
    "{\"chat_template\": [{\"name\": \"default\", \"template\": \"plain\"}, {\"name\": \"tool_use\", \"template\": "   \
    "\"{{ tools | length }} tools\"}, {\"name\": \"rag\", \"template\": \"{% include 'x' %}\"}]}"

// What a folder of these files makes of a line; NULL for a file that is not there.
static void check_named(const char *config, const char *jinja, const char *processor, const char *line,
                        const char *wanted) {
    chat_template_t *chat_template;
    chat_t chat;
    char folder[1024], *text;
    check_make_folder(folder, sizeof(folder));
    if (config) write_file(folder, "tokenizer_config.json", config);
    if (jinja) write_file(folder, "chat_template.jinja", jinja);
    if (processor) write_file(folder, "processor_config.json", processor);
    json_t *json = json_loads(line, 0, NULL);
    CHECK_OK(chat_template_open(folder, &chat_template));
    CHECK_OK(chat_read_line(json, json_object_get(json, "messages"), &chat));
    CHECK_OK(chat_render(chat_template, &chat, true, &text));
    assert_string_equal(text, wanted);
    free(text);
    chat_free(&chat);
    json_decref(json);
    chat_template_close(chat_template);
    check_remove_folder(folder);
}

static void test_named(void **state) {
    (void)state;
    check_named(NAMED, NULL, NULL, MESSAGES "}", "plain");
    check_named(NAMED, NULL, NULL, MESSAGES ",\"tools\":[{\"a\":1}]}", "1 tools");
    check_named(NAMED, NULL, NULL, MESSAGES ",\"tools\":[]}", "0 tools");
    check_named("{\"chat_template\": {\"default\": \"a\", \"tool_use\": \"b\"}}", NULL, NULL, MESSAGES ",\"tools\":[]}",
                "b");
    check_named(NAMED, "file", NULL, MESSAGES ",\"tools\":[{\"a\":1}]}", "file"); // the file is instead of all of them
    check_named(NAMED, NULL, "{}", MESSAGES ",\"tools\":[{\"a\":1}]}", "plain");  // processors take the default
}

// ---- text that a template leaves out ----

static void check_dropped(const char *messages, int expected) {
    scene_t scene;
    chat_t chat;
    char told[256] = {0};
    token_list_t list = {0};
    // As LLaVA's: content is taken as a list of parts.
    scene_open(&scene, "x{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text | trim }}"
                       "{% endfor %}{% endfor %}");
    json_t *json = json_loads(messages, 0, NULL);
    CHECK_OK(chat_read(json, &chat));
    CHECK_OK(chat_encode(scene.chat_template, scene.tokenizer, &chat, true, NULL, NULL, &list));
    assert_int_equal(chat.dropped, expected);
    FILE *out = fmemopen(told, sizeof(told), "w");
    bool once = false;
    for (int i = 0; i < 2; i++) chat_tell_dropped(&chat, &once, out);
    assert_int_equal(fclose(out), 0);
    assert_int_equal(once, expected > 0);
    assert_int_equal(strncmp(told, "warning: ", 9) == 0 && strchr(told, '\n')[1] == 0,
                     expected > 0); // one line, or none
    token_list_free(&list);
    chat_free(&chat);
    json_decref(json);
    scene_close(&scene);
}

static void test_dropped(void **state) {
    (void)state;
    check_dropped("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\" the lot \"}]}]", 0);
    check_dropped("[{\"role\":\"user\",\"content\":\"the lot\"}]", 1);
    check_dropped("[{\"role\":\"user\",\"content\":\" \"}]", 0);
    check_dropped("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]},"
                  "{\"role\":\"assistant\",\"content\":\"gone\"},{\"role\":\"user\",\"content\":\"b\"}]",
                  3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dropped), cmocka_unit_test(test_named),     cmocka_unit_test(test_responses),
        cmocka_unit_test(test_alone),   cmocka_unit_test(test_beginning), cmocka_unit_test(test_variables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
