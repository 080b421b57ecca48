// What a replay found, for people and as JSON.
#include "learner/replay_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

void replay_sentence(const replay_difference_t *d, char *out, size_t size) {
    char where[640] = "";
    size_t at = 0;
    if (d->update > 0) at += (size_t)snprintf(where + at, sizeof(where) - at, ", update %lld", (long long)d->update);
    if (d->serial >= 0)
        at += (size_t)snprintf(where + at, sizeof(where) - at, ", group %lld (sample \"%s\"), completion %lld",
                               (long long)d->serial, d->id, (long long)d->completion);
    if (d->token >= 0) at += (size_t)snprintf(where + at, sizeof(where) - at, ", token %lld", (long long)d->token);
    if (d->tensor[0]) at += (size_t)snprintf(where + at, sizeof(where) - at, ", tensor %s", d->tensor);
    if (d->elements >= 0)
        snprintf(where + at, sizeof(where) - at, ", %lld of %lld elements unlike the checkpoint's",
                 (long long)d->elements, (long long)d->of);
    snprintf(out, size, "step %lld differs: %s%s: recorded %s, replayed %s", (long long)d->step, d->quantity, where,
             d->recorded, d->computed);
}

static status_t put_number(json_t *object, const char *key, int64_t value) {
    if (value < 0) return STATUS_OK;
    if (json_object_set_new(object, key, json_integer(value)) != 0) FAIL(STATUS_MEMORY, "no memory for the report");
    return STATUS_OK;
}

static status_t put_text(json_t *object, const char *key, const char *value) {
    if (!value[0]) return STATUS_OK;
    if (json_object_set_new(object, key, json_string(value)) != 0) FAIL(STATUS_MEMORY, "no memory for the report");
    return STATUS_OK;
}

static status_t difference_json(const replay_difference_t *d, json_t *out) {
    TRY(put_text(out, "quantity", d->quantity));
    TRY(put_number(out, "step", d->step));
    TRY(put_number(out, "update", d->update));
    TRY(put_number(out, "group", d->serial));
    TRY(put_number(out, "sample", d->sample));
    TRY(put_text(out, "id", d->id));
    TRY(put_number(out, "completion", d->completion));
    TRY(put_number(out, "token", d->token));
    TRY(put_text(out, "tensor", d->tensor));
    TRY(put_number(out, "elements", d->elements));
    TRY(put_number(out, "of", d->of));
    TRY(put_text(out, "recorded", d->recorded));
    return put_text(out, "replayed", d->computed);
}

static status_t fill_json(const replay_t *replay, json_t *report, json_t *list) {
    TRY(put_text(report, "run", replay->options->run));
    TRY(put_number(report, "step", replay->options->step));
    TRY(put_number(report, "from", replay->start));
    TRY(put_number(report, "steps", replay->repeated));
    TRY(put_number(report, "completions", replay->completions));
    TRY(put_number(report, "tokens", replay->tokens));
    TRY(put_number(report, "tensors", optimizer_tensors(replay->run.learner.optimizer)));
    TRY(put_number(report, "differing", replay->differing));
    const struct {
        const char *key;
        bool value;
    } flags[] = {{"agrees", !replay->differing},
                 {"checkpoint_compared", replay->checkpoint_compared},
                 {"other_kernels", replay->other_kernels}};
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
        if (json_object_set_new(report, flags[i].key, json_boolean(flags[i].value)) != 0)
            FAIL(STATUS_MEMORY, "no memory for the report");
    }
    for (int i = 0; i < replay->differences; i++) {
        json_t *one = json_object();
        if (!one || json_array_append_new(list, one) != 0) FAIL(STATUS_MEMORY, "no memory for the report");
        TRY(difference_json(&replay->difference[i], one));
    }
    return STATUS_OK;
}

static status_t report_json(const replay_t *replay, FILE *stream) {
    json_t *report = json_object(), *list = json_array();
    char *text = NULL;
    status_t status =
        report && list ? fill_json(replay, report, list) : STATUS_NEW(STATUS_MEMORY, "no memory for the report");
    if (json_object_set_new(report, "differences", list) != 0 && !status)
        status = STATUS_NEW(STATUS_MEMORY, "no memory for the report");
    if (!status) text = json_dumps(report, JSON_INDENT(1));
    json_decref(report);
    TRY(status);
    if (!text) FAIL(STATUS_MEMORY, "no memory for the report");
    fprintf(stream, "%s\n", text);
    free(text);
    return STATUS_OK;
}

static void report_text(const replay_t *replay, FILE *stream) {
    char sentence[1024], from[64] = "the run's starting weights";
    if (replay->start > 0) snprintf(from, sizeof(from), "the checkpoint of step %lld", (long long)replay->start);
    fprintf(stream, "%s, step %lld: repeated %lld step%s from %s\n", replay->options->run,
            (long long)replay->options->step, (long long)replay->repeated, replay->repeated == 1 ? "" : "s", from);
    if (replay->other_kernels)
        fprintf(stream, "note: the run's kernels are not this machine's (their fingerprints differ), so that bits may "
                        "differ without a fault\n");
    if (!replay->differing) {
        fprintf(stream,
                "bits agree: log-probs of %lld completions (%lld tokens), losses, ratios, gradient norms, %d "
                "tensors%s\n",
                (long long)replay->completions, (long long)replay->tokens,
                optimizer_tensors(replay->run.learner.optimizer),
                replay->checkpoint_compared ? ", and the step's checkpoint" : "");
        return;
    }
    for (int i = 0; i < replay->differences; i++) {
        replay_sentence(&replay->difference[i], sentence, sizeof(sentence));
        fprintf(stream, "%s\n", sentence);
    }
    if (replay->differing > replay->differences)
        fprintf(stream, "and %lld more\n", (long long)(replay->differing - replay->differences));
}

status_t replay_report(const replay_t *replay, FILE *stream) {
    if (replay->options->json)
        TRY(report_json(replay, stream));
    else
        report_text(replay, stream);
    if (fflush(stream) != 0) FAIL(STATUS_IO, "cannot write the report");
    return STATUS_OK;
}
