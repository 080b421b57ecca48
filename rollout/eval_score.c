// From one answer to its line of samples.jsonl.
#include "rollout/eval.h"

#include <stdlib.h>
#include <string.h>

status_t eval_check_answers(eval_t *eval) {
    for (int64_t i = 0; i < eval->count; i++) {
        packed_sample_t sample;
        TRY(packed_sample(eval->packed, i, &sample));
        if (*sample.answer) return STATUS_OK;
    }
    if (eval->rank == 0)
        fprintf(stderr,
                "poise: no sample of %s that is evaluated has an 'answer': accuracies say nothing, only the answers in "
                "samples.jsonl do\n",
                eval->config->data.test);
    return STATUS_OK;
}

status_t eval_collect_words(eval_t *eval) {
    int64_t count = packed_count(eval->packed);
    for (int64_t i = 0; i < count; i++) {
        packed_sample_t sample;
        TRY(packed_sample(eval->packed, i, &sample));
        TRY(listing_words_add(&eval->words, sample.listing));
    }
    return STATUS_OK;
}

// Tokens of the think and answer segments, labelled by the characters that each token stands for.
static status_t count_segments(const eval_t *eval, const engine_completion_t *completion, int *think, int *answer) {
    char *text = NULL;
    size_t length = 0;
    int32_t *offsets = NULL;
    uint8_t *labels = NULL;
    int count = completion->length;
    status_t status = ALLOCATE(&offsets, 2 * (size_t)count);
    if (!status) status = ALLOCATE(&labels, count);
    if (!status)
        status = tokenizer_decode_offsets(eval->tokenizer, completion->tokens, count, true, &text, &length, offsets);
    *think = *answer = 0;
    if (!status) {
        answer_segments(text, length, offsets, count, labels);
        // The end-of-turn token covers no text; it belongs to the answer.
        if (completion->stopped) labels[count - 1] = SEGMENT_ANSWER;
        for (int i = 0; i < count; i++) *(labels[i] == SEGMENT_THINK ? think : answer) += 1;
    }
    free(text);
    free(offsets);
    free(labels);
    return status;
}

typedef struct verdict {
    bool valid, correct, correct_bare, has_listing, trace_correct;
    const char *extracted;
    size_t extracted_length;
    double tag_score;
    int think, answer;
} verdict_t;

static status_t judge(const eval_t *eval, const packed_sample_t *sample, const char *text, verdict_t *out) {
    size_t length = strlen(text), think_length;
    const char *think;
    out->valid = answer_extract(text, length, &out->extracted, &out->extracted_length);
    if (out->valid)
        TRY(answer_equal(out->extracted, out->extracted_length, sample->answer, sample->options, sample->option_count,
                         &out->correct));
    if (eval->config->eval.bare)
        TRY(answer_equal(text, length, sample->answer, sample->options, sample->option_count, &out->correct_bare));
    out->tag_score =
        answer_tag_score(text, length, eval->config->grpo.strict_tags ? TAG_STRICT_NEWLINE : TAG_WHITESPACE_TOLERANT);
    out->has_listing = sample->listing[0] != 0;
    if (out->has_listing && answer_think(text, length, &think, &think_length))
        out->trace_correct = listing_equal(&eval->words, think, think_length, sample->listing);
    return STATUS_OK;
}

static const char *boolean(bool known, bool value) {
    return !known ? "null" : value ? "true" : "false";
}

static status_t write_line(const eval_t *eval, const packed_sample_t *sample, const engine_completion_t *completion,
                           const char *text, const verdict_t *verdict, tool_text_t *line) {
    TRY(tool_text_add(line, "{\"index\":%lld,\"id\":", (long long)sample->index));
    TRY(tool_text_string(line, sample->id));
    TRY(tool_text_add(line, ",\"kind\":"));
    TRY(tool_text_string(line, sample->kind));
    // Reports resample whole pictures: questions on one picture are not independent.
    if (sample->image_count)
        TRY(tool_text_add(line, ",\"image\":\"%016llx\"",
                          (unsigned long long)packed_image_hash(eval->packed, sample->images[0])));
    TRY(tool_text_add(line, ",\"text\":"));
    TRY(tool_text_string(line, text));
    TRY(tool_text_add(line, ",\"extracted\":"));
    if (verdict->valid) {
        char *extracted;
        TRY(memory_copy_bytes(verdict->extracted, verdict->extracted_length, &extracted));
        status_t status = tool_text_string(line, extracted);
        free(extracted);
        TRY(status);
    } else {
        TRY(tool_text_add(line, "null"));
    }
    TRY(tool_text_add(line, ",\"answer\":"));
    TRY(tool_text_string(line, sample->answer));
    return tool_text_add(line,
                         ",\"correct\":%s,\"invalid\":%s,\"correct_bare\":%s,\"tag_score\":%.2f,\"think_tokens\":%d,"
                         "\"answer_tokens\":%d,\"tokens\":%d,\"truncated\":%s,\"trace_correct\":%s}\n",
                         boolean(true, verdict->correct), boolean(true, !verdict->valid),
                         boolean(eval->config->eval.bare, verdict->correct_bare), verdict->tag_score, verdict->think,
                         verdict->answer, completion->length, boolean(true, !completion->stopped),
                         boolean(verdict->has_listing, verdict->trace_correct));
}

status_t eval_score(eval_t *eval, const packed_sample_t *sample, const engine_completion_t *completion,
                    tool_text_t *line) {
    verdict_t verdict = {0};
    char *text;
    TRY(count_segments(eval, completion, &verdict.think, &verdict.answer));
    TRY(tokenizer_decode(eval->tokenizer, completion->tokens, completion->length, true, &text));
    status_t status = judge(eval, sample, text, &verdict);
    if (!status) status = write_line(eval, sample, completion, text, &verdict, line);
    free(text);
    return status;
}
