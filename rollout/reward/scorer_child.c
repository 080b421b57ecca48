// The child's side: `poise __scorer`.
#include "rollout/reward/reward.h"
#include "rollout/rollout.h"

#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

// Fills the input from a request object; strings are borrowed from it.
static status_t request_read(const json_t *request, reward_input_t *out, const char *options[ANSWER_MOST_OPTIONS]) {
    const char *completion = json_string_value(json_object_get(request, "completion"));
    const json_t *answer = json_object_get(request, "answer"); // null: not paid
    const char *kind = json_string_value(json_object_get(request, "kind"));
    const json_t *list = json_object_get(request, "options");
    if (!completion || !(json_is_string(answer) || json_is_null(answer)) || !kind || !json_is_array(list) ||
        json_array_size(list) > ANSWER_MOST_OPTIONS)
        FAIL(STATUS_PEER, "the scoring request lacks completion, answer, kind or options");
    for (size_t i = 0; i < json_array_size(list); i++) {
        options[i] = json_string_value(json_array_get(list, i));
        if (!options[i]) FAIL(STATUS_PEER, "an option of the scoring request is no text");
    }
    *out = (reward_input_t){.completion = completion,
                            .answer = json_string_value(answer),
                            .kind = kind,
                            .options = options,
                            .option_count = (int)json_array_size(list),
                            .tag_style = json_is_true(json_object_get(request, "strict")) ? TAG_STRICT_NEWLINE
                                                                                          : TAG_WHITESPACE_TOLERANT,
                            .tokens = (int)json_integer_value(json_object_get(request, "tokens")),
                            .budget = (int)json_integer_value(json_object_get(request, "budget"))};
    return STATUS_OK;
}

// {"ok": true, "tag": x, "answer": y, "length": z} or {"ok": false, "why": "..."}, with the request's serial and index
static status_t request_answer(const char *line, size_t length, json_t **out) {
    json_error_t error;
    json_t *request = json_loadb(line, length, 0, &error);
    const char *options[ANSWER_MOST_OPTIONS];
    reward_input_t input;
    double tag = 0, answer = 0, length_score = 0;
    status_t status = request ? request_read(request, &input, options)
                              : STATUS_NEW(STATUS_PEER, "the scoring request is no JSON: %s", error.text);
    if (!status) status = reward_find("tag")->score(&input, &tag);
    if (!status) status = reward_find("answer")->score(&input, &answer);
    if (!status) status = reward_find("length")->score(&input, &length_score);
    if (status)
        *out = json_pack("{s:b, s:s}", "ok", 0, "why", status_message(status));
    else
        *out = json_pack("{s:b, s:f, s:f, s:f}", "ok", 1, "tag", tag, "answer", answer, "length", length_score);
    if (*out) {
        json_object_set(*out, "serial", json_object_get(request, "serial"));
        json_object_set(*out, "index", json_object_get(request, "index"));
    }
    json_decref(request);
    status_free(status);
    if (!*out) FAIL(STATUS_MEMORY, "out of memory while answering a scoring request");
    return STATUS_OK;
}

status_t reward_scorer_main(void) {
    char *line = NULL;
    size_t capacity = 0;
    status_t status = STATUS_OK;
    // A scorer that hangs must not outlive a reward rank that is killed; one that waits sees the end of its input.
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    for (ssize_t length; !status && (length = getline(&line, &capacity, stdin)) > 0;) {
        json_t *answer = NULL;
        status = request_answer(line, (size_t)length, &answer);
        if (!status && (json_dumpf(answer, stdout, JSON_COMPACT) || putchar('\n') == EOF || fflush(stdout)))
            status = STATUS_NEW(STATUS_IO, "a scorer cannot write its answer");
        json_decref(answer);
    }
    free(line);
    return status;
}
