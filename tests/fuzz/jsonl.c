// Any bytes as lines of a data file: read as the tools do, as packing does (messages, chat, response), and as listings.
#include "common/data/packed_messages.h"
#include "common/text/answer.h"
#include "common/text/listing.h"
#include "rollout/tool.h"
#include "tests/fuzz/fuzz.h"

static void use_response(const char *response) {
    char *answer;
    const char *start, *options[] = {"a", "", "A. two", response};
    size_t span, length = strlen(response);
    bool equal;
    for (int style = 0; style < 2; style++) {
        double score = answer_tag_score(response, length, (tag_style_t)style);
        FUZZ_CHECK(score >= 0 && score <= 1);
    }
    if (answer_extract(response, length, &start, &span))
        FUZZ_CHECK(start >= response && start + span <= response + length);
    if (answer_think(response, length, &start, &span))
        FUZZ_CHECK(start >= response && start + span <= response + length);
    status_t status = answer_normalise(response, length, options, 4, &answer);
    if (!status) status = answer_equal(response, length, answer, options, 4, &equal);
    status_free(status);
    free(answer);
    listing_words_t words = {0};
    status_free(listing_words_add(&words, response));
    (void)listing_equal(&words, response, length, "row 1: bag, boot. row 2: bag");
    listing_words_free(&words);
}

static void use_line(const chat_template_t *chat_template, const json_t *object) {
    json_t *messages;
    char *response, *rendered = NULL;
    chat_t chat = {0};
    status_t status = packed_messages(object, &messages, &response);
    if (!status) {
        if (response) use_response(response);
        status = chat_read(messages, &chat);
        if (!status) status = chat_render(chat_template, &chat, true, &rendered);
        json_decref(messages);
        free(response);
    }
    status_free(status);
    free(rendered);
    chat_free(&chat);
}

// As `poise score` reads it; lines with pictures would lead out of this process's folder.
static void use_item(tool_t *tool, const json_t *object) {
    tool_item_t item;
    char *text = json_dumps(object, JSON_COMPACT);
    bool pictures = !text || strstr(text, "image");
    free(text);
    if (pictures) return;
    status_t status = tool_item_read(tool, object, true, &item);
    if (!status) tool_item_free(&item);
    status_free(status);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tokenizer_t *tokenizer;
    static chat_template_t *chat_template;
    tool_options_t options = {.input = fuzz_path("lines.jsonl")};
    tool_t tool = {.options = &options};
    tool_reader_t reader;
    fuzz_allow(0, 0, 0);
    if (!tokenizer) {
        status_t status = tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &tokenizer);
        if (!status) status = chat_template_open(POISE_SOURCE_DIR "/configs/quickstart", &chat_template);
        FUZZ_CHECK(!status);
    }
    tool.tokenizer = tokenizer;
    tool.chat_template = chat_template;
    fuzz_allow(1 << 20, 256, size);
    fuzz_file("lines.jsonl", data, size);
    status_t status = tool_reader_open(fuzz_path("lines.jsonl"), &reader);
    for (json_t *line = NULL; !status;) {
        status = tool_reader_next(&reader, &line);
        if (status || !line) break;
        use_line(chat_template, line);
        use_item(&tool, line);
        json_decref(line);
    }
    tool_reader_close(&reader);
    status_free(status);
    return 0;
}
