// Packed data: counts, and one sample token by token.
#include "common/config/config.h"
#include "common/data/packed.h"
#include "common/store/store.h"
#include "launch/inspect_parts.h"
#include "learner/loss.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int by_length(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static void print_lengths(const char *key, int *length, int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += length[i];
    qsort(length, (size_t)count, sizeof(*length), by_length);
    inspect_line(key, "mean %.1f, median %d, 95 %% up to %d, longest %d", (double)sum / (double)count,
                 length[count / 2], length[(count - 1) * 95 / 100], length[count - 1]);
}

typedef struct totals {
    int64_t tokens[SEGMENT_COUNT]; // prompt tokens are SEGMENT_NONE
    int64_t with_response, no_think, with_listing, with_options, with_answer, image_uses;
    int32_t images; // largest image number + 1
} totals_t;

static void add_sample(totals_t *totals, const packed_sample_t *sample) {
    int64_t think = 0;
    for (int i = 0; i < sample->length; i++) {
        totals->tokens[sample->segments[i]]++;
        think += sample->segments[i] == SEGMENT_THINK;
    }
    bool response = sample->prompt_length < sample->length;
    totals->with_response += response;
    totals->no_think += response && !think;
    totals->with_listing += *sample->listing != 0;
    totals->with_options += sample->option_count > 0;
    totals->with_answer += *sample->answer != 0;
    totals->image_uses += sample->image_count;
    for (int i = 0; i < sample->image_count; i++)
        if (sample->images[i] >= totals->images) totals->images = sample->images[i] + 1;
}

static status_t print_kinds(const json_t *kinds) {
    const char *kind;
    const json_t *value;
    json_object_foreach((json_t *)kinds, kind, value) {
        char name[64];
        snprintf(name, sizeof(name), "kind %s", *kind ? kind : "(none)");
        inspect_line(name, "%lld samples", (long long)json_integer_value(value));
    }
    return STATUS_OK;
}

static status_t read_samples(packed_t *packed, int *length, int *prompt, totals_t *totals, json_t *kinds) {
    for (int64_t i = 0; i < packed_count(packed); i++) {
        packed_sample_t sample;
        TRY(packed_sample(packed, i, &sample));
        length[i] = sample.length;
        prompt[i] = sample.prompt_length;
        add_sample(totals, &sample);
        int64_t before = json_integer_value(json_object_get(kinds, sample.kind));
        if (json_object_set_new(kinds, sample.kind, json_integer(before + 1)))
            FAIL(STATUS_INVALID, "sample %lld names a kind that is no UTF-8", (long long)i);
    }
    return STATUS_OK;
}

static void print_totals(const packed_t *packed, const totals_t *t) {
    int64_t count = packed_count(packed);
    inspect_line("samples", "%" PRId64 " (%" PRId64 " with a response, %" PRId64 " prompts alone)", count,
                 t->with_response, count - t->with_response);
    inspect_line("tokens", "%" PRId64 " prompt, %" PRId64 " think, %" PRId64 " answer", t->tokens[SEGMENT_NONE],
                 t->tokens[SEGMENT_THINK], t->tokens[SEGMENT_ANSWER]);
    if (t->with_response) inspect_line("without reasoning", "%" PRId64 " responses", t->no_think);
    inspect_line("carry", "%" PRId64 " an expected answer, %" PRId64 " options, %" PRId64 " a listing", t->with_answer,
                 t->with_options, t->with_listing);
    inspect_line("images", "%d, used %" PRId64 " times", t->images, t->image_uses);
    inspect_line("content hash", "%s", packed_hash(packed));
}

static status_t print_summary(packed_t *packed) {
    int64_t count = packed_count(packed);
    int *length;
    totals_t totals = {0};
    json_t *kinds = json_object();
    TRY(ALLOCATE(&length, 2 * (size_t)count));
    status_t status = kinds ? read_samples(packed, length, length + count, &totals, kinds)
                            : STATUS_NEW(STATUS_MEMORY, "out of memory while counting kinds");
    if (!status) {
        print_totals(packed, &totals);
        if (count) print_lengths("sample lengths", length, count);
        if (count) print_lengths("prompt lengths", length + count, count);
        status = print_kinds(kinds);
    }
    json_decref(kinds);
    free(length);
    return status;
}

// ---- one sample ----

// What each token weighs in the loss of the sample under SCALe at step 0: w_s / n_s in segment s, 0 in the prompt.
// weight: [length].
static status_t token_weights(const packed_sample_t *sample, float *weight) {
    config_t config;
    float *zeros;
    sft_sums_t sums = {0};
    TRY(config_read(NULL, NULL, 0, &config));
    int first = sample->prompt_length, count = sample->length - first;
    status_t status = ALLOCATE(&zeros, count);
    if (!status) {
        sft_weights_t weights = sft_weights_at(&config, 0);
        if (config.sft.objective != OBJECTIVE_SCALE)
            weights = (sft_weights_t){config.sft.think_start, config.sft.answer_start};
        printf("  weights of SCALe at its start: think %g, answer %g, each spread evenly over its segment\n",
               weights.think, weights.answer);
        sft_sample_loss(OBJECTIVE_SCALE, weights, zeros, sample->segments + first, count, weight + first, &sums);
        for (int i = 0; i < sample->length; i++) weight[i] = i < first ? 0.0F : -weight[i];
        free(zeros);
    }
    config_free(&config);
    return status;
}

static status_t print_tokens(const packed_sample_t *sample, const tokenizer_t *tokenizer) {
    static const char *const segments[SEGMENT_COUNT] = {"prompt", "think", "answer"};
    float *weight;
    char *text = NULL;
    int32_t *span = NULL;
    TRY(ALLOCATE(&weight, sample->length));
    status_t status = token_weights(sample, weight);
    if (!status) status = ALLOCATE(&span, 2 * (size_t)sample->length);
    if (!status) status = tokenizer_decode_offsets(tokenizer, sample->tokens, sample->length, false, &text, NULL, span);
    if (!status) printf("  %6s  %7s  %-7s  %10s  text\n", "index", "id", "segment", "weight");
    for (int i = 0; !status && i < sample->length; i++) {
        if (!tokenizer_spelling(tokenizer, sample->tokens[i], NULL)) {
            status = STATUS_NEW(STATUS_INVALID, "the tokenizer has no token of the id %d", sample->tokens[i]);
            break;
        }
        printf("  %6d  %7d  %-7s  %10.6f  ", i, sample->tokens[i], segments[sample->segments[i]], (double)weight[i]);
        inspect_quoted(text + span[2 * i], (size_t)(span[2 * i + 1] - span[2 * i]));
        putchar('\n');
    }
    free(text);
    free(span);
    free(weight);
    return status;
}

static void print_quoted_line(const char *key, const char *text) {
    if (!*text) return;
    printf("  %-22s ", key);
    inspect_quoted(text, strlen(text));
    putchar('\n');
}

static status_t print_sample(packed_t *packed, const char *model, int64_t index) {
    packed_sample_t sample;
    tokenizer_t *tokenizer;
    TRY(packed_sample(packed, index, &sample));
    if (!model) FAIL(STATUS_INVALID, "--sample wants --model DIR too: the folder whose tokenizer spells the tokens");
    TRY(packed_check_model(packed, model));
    printf("sample %" PRId64 "\n", index);
    print_quoted_line("id", sample.id);
    print_quoted_line("kind", sample.kind);
    print_quoted_line("expected answer", sample.answer);
    for (int i = 0; i < sample.option_count; i++) print_quoted_line("option", sample.options[i]);
    print_quoted_line("listing", sample.listing);
    for (int i = 0; i < sample.image_count; i++) {
        const void *bytes;
        size_t size;
        uint64_t hash;
        TRY(packed_image(packed, sample.images[i], &bytes, &size, &hash));
        inspect_line("image", "number %d, hash %016" PRIx64 ", %zu bytes", sample.images[i], hash, size);
    }
    TRY(tokenizer_open(model, &tokenizer));
    status_t status = print_tokens(&sample, tokenizer);
    tokenizer_close(tokenizer);
    return status;
}

status_t inspect_packed(const char *path, const char *model, int64_t sample) {
    packed_t *packed;
    TRY(packed_open(path, &packed));
    status_t status;
    if (sample >= 0) {
        status = print_sample(packed, model, sample);
    } else {
        printf("%s: packed data\n", path);
        status = print_summary(packed);
    }
    packed_close(packed);
    return status;
}
