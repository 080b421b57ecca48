// Any bytes as one line of a data file: messages, chat, and the response as an answer.
#include "common/data/packed_messages.h"
#include "common/text/answer.h"
#include "common/text/chat.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_response(const char *response) {
    char *answer;
    const char *start;
    size_t span, length = strlen(response);
    double score = answer_tag_score(response, length, TAG_WHITESPACE_TOLERANT);
    if (!(score >= 0 && score <= 1)) abort();
    if (answer_extract(response, length, &start, &span) && (start < response || start + span > response + length))
        abort();
    status_free(answer_normalise(response, length, NULL, 0, &answer));
    free(answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *object = json_loadb((const char *)data, size, 0, NULL), *messages;
    char *response, *rendered = NULL;
    chat_t chat = {0};
    status_t status = packed_messages(object, &messages, &response);
    if (!status) {
        if (response) use_response(response);
        status = chat_read(messages, &chat);
        if (!status) status = chat_render(&chat, true, &rendered);
        json_decref(messages);
        free(response);
    }
    status_free(status);
    free(rendered);
    chat_free(&chat);
    json_decref(object);
    return 0;
}
