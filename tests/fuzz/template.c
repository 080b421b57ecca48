// Any bytes as a chat template, and what follows a byte 0x1e as its variables (a JSON object): what renders is UTF-8
// and every byte of it has a mark.
#include "common/text/template.h"
#include "common/text/utf8.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>

static const char usual[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be "
    "brief.\"},{\"role\":\"user\",\"content\":[{\"type\":\"image\"},"
    "{\"type\":\"text\",\"text\":\"What is \\u00e9?\"}]},{\"role\":\"assistant\",\"content\":\"<|im_end|> 1, 2\"}],"
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"x\":1}}}],"
    "\"add_generation_prompt\":true,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_parts_t parts = fuzz_parts(data, size);
    const uint8_t *source, *variables;
    size_t length, bytes;
    template_t *template = NULL;
    template_text_t text = {0};
    fuzz_allow(32 << 20, 1024, size);
    if (!fuzz_next(&parts, &source, &length)) return 0;
    json_t *given = fuzz_next(&parts, &variables, &bytes)
                        ? json_loadb((const char *)variables, bytes, JSON_ALLOW_NUL, NULL)
                        : json_loads(usual, 0, NULL);
    status_t status = template_parse((const char *)source, length, &template);
    if (!status) status = template_render(template, given, NULL, &text);
    if (!status) {
        FUZZ_CHECK(text.text[text.length] == 0);
        FUZZ_CHECK(utf8_valid(text.text, text.length) == text.length);
        for (size_t i = 0; i < text.length; i++) FUZZ_CHECK(text.given[i] == 0 || text.given[i] == 1);
        template_text_free(&text);
    }
    status_free(status);
    template_free(template);
    json_decref(given);
    return 0;
}
