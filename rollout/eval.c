// poise eval: answers to the questions of a packed file, scored.
#include "rollout/eval.h"

#include "common/metrics/metrics.h"
#include "common/model/model_processor.h"
#include "common/model/model_start.h"

#include <stdlib.h>
#include <string.h>

// A question in the engine.
struct question {
    struct question *next, **link; // of those in the engine; *link points to this one
    packed_sample_t sample;
    int32_t *tokens; // the prompt, with placeholders for the images it gets
    int length;
    image_patches_t **images;
    int image_count;
};

static void question_free(question_t *question) {
    *question->link = question->next;
    if (question->next) question->next->link = question->link;
    for (int i = 0; i < question->image_count; i++) image_patches_free(question->images[i]);
    free(question->images);
    free(question->tokens);
    free(question);
}

status_t eval_agree(eval_t *eval, status_t status, const char *phase) {
    int64_t failed = status != STATUS_OK;
    status_t reduced = comm_all_reduce_i64(eval->job->world, &failed, 1, COMM_MAX, phase);
    if (status || reduced) return status_first(status, reduced);
    if (failed) FAIL(STATUS_PEER, "another rank failed in \"%s\"; its message says why", phase);
    return STATUS_OK;
}

// ---- opening ----

static status_t open_parts(eval_t *eval) {
    const config_t *config = eval->config;
    if (!config->data.test || !*config->data.test)
        FAIL(STATUS_INVALID, "data.test is not set; name a file that \"poise pack\" made");
    if (!config->output || !*config->output) FAIL(STATUS_INVALID, "output is not set; name a folder for the results");
    TRY(device_open(job_device(eval->job), config->threads, &eval->device));
    if (!comm_rank(eval->job->world) && eval->device->note) fprintf(stderr, "poise: %s\n", eval->device->note);
    TRY(model_start(config, eval->device, &eval->model));
    if (!comm_rank(eval->job->world)) model_warn_generation(eval->model, stderr);
    TRY(tokenizer_open(config->model, &eval->tokenizer));
    TRY(packed_open(config->data.test, &eval->packed));
    TRY(packed_check_model(eval->packed, config->model));
    eval->count = packed_count(eval->packed);
    if (config->eval.limit && config->eval.limit < eval->count) eval->count = config->eval.limit;
    if (!eval->count) FAIL(STATUS_INVALID, "%s holds no samples", config->data.test);
    TRY(ALLOCATE(&eval->done, eval->count));
    TRY(eval_check_answers(eval));
    TRY(eval_collect_words(eval));
    TRY(eval_identify(eval));
    engine_options_t options = engine_options_of(config);
    TRY(engine_open(eval->model, &options, &eval->engine));
    return engine_plan_data(eval->engine, eval->packed, config->eval.max_new_tokens);
}

static void eval_close(eval_t *eval) {
    engine_close(eval->engine);
    for (question_t *question = eval->questions, *next; question; question = next) {
        next = question->next;
        question_free(question);
    }
    packed_close(eval->packed);
    tokenizer_close(eval->tokenizer);
    model_close(eval->model);
    device_close(eval->device);
    listing_words_free(&eval->words);
    if (eval->file) fclose(eval->file);
    free(eval->path);
    free(eval->done);
}

// ---- questions ----

// The sample whose images this question gets: its own, or under eval.shuffle_images = k those of question i + k, or of
// the next one that has as many.
static status_t image_source(eval_t *eval, const packed_sample_t *sample, packed_sample_t *out) {
    int64_t shift = eval->config->eval.shuffle_images;
    *out = *sample;
    if (!shift || !sample->image_count) return STATUS_OK;
    for (int64_t step = 0; step < eval->count; step++) {
        TRY(packed_sample(eval->packed, (sample->index + shift + step) % eval->count, out));
        if (out->image_count == sample->image_count) return STATUS_OK;
    }
    return STATUS_OK;
}

// The prompt with its image placeholders; where the images are another sample's, each run as long as they ask for.
static status_t fit_placeholders(const eval_t *eval, question_t *question) {
    const packed_sample_t *sample = &question->sample;
    int32_t image_token = eval->model->config.has_vision ? eval->model->config.image.image_token : -1;
    int64_t room = sample->prompt_length;
    for (int i = 0; i < question->image_count; i++) room += question->images[i]->shape.feature_rows;
    TRY(ALLOCATE(&question->tokens, room));
    int image = 0;
    if (!eval->config->eval.shuffle_images) {
        // With its own images the prompt is as it was packed: pictures that touch, or have several runs, included.
        memcpy(question->tokens, sample->tokens, (size_t)sample->prompt_length * sizeof(*question->tokens));
        question->length = sample->prompt_length;
        return STATUS_OK;
    }
    for (int i = 0; i < sample->prompt_length; i++) {
        if (sample->tokens[i] != image_token) {
            question->tokens[question->length++] = sample->tokens[i];
            continue;
        }
        if (i && sample->tokens[i - 1] == image_token) continue;
        if (image == question->image_count)
            FAIL(STATUS_INVALID, "the prompt has more runs of image placeholders than images (%d)", image);
        const image_shape_t *shape = &question->images[image]->shape;
        if (shape->runs > 1)
            FAIL(STATUS_INVALID,
                 "an image becomes %d runs of placeholders, with text between them; "
                 "eval.shuffle_images needs one run an image: turn pan-and-scan off",
                 shape->runs);
        for (int row = 0; row < shape->feature_rows; row++) question->tokens[question->length++] = image_token;
        image++;
    }
    return STATUS_OK;
}

static status_t fill_question(eval_t *eval, int64_t index, question_t *question) {
    packed_sample_t source;
    TRY(packed_sample(eval->packed, index, &question->sample));
    TRY(image_source(eval, &question->sample, &source));
    if (source.image_count && !eval->model->config.has_vision)
        FAIL(STATUS_INVALID, "it has images and the model (%s) takes none", eval->model->config.family);
    TRY(ALLOCATE(&question->images, source.image_count));
    for (int i = 0; i < source.image_count; i++) {
        const void *bytes;
        size_t size;
        uint64_t hash;
        TRY(packed_image(eval->packed, source.images[i], &bytes, &size, &hash));
        TRY(image_patches_make(&eval->model->config.image, bytes, size, &question->images[i]));
        question->image_count++;
    }
    TRY(fit_placeholders(eval, question));
    engine_request_t request = {.key = (uint64_t)index,
                                .tag = (int64_t)(intptr_t)question,
                                .seed = (uint64_t)eval->config->seed,
                                .tokens = question->tokens,
                                .prompt_length = question->length,
                                .images = (const image_patches_t *const *)question->images,
                                .image_count = question->image_count,
                                .completions = 1,
                                .max_new_tokens = eval->config->eval.max_new_tokens,
                                .temperature = (float)eval->config->eval.temperature};
    return engine_submit(eval->engine, &request);
}

static status_t ask(eval_t *eval, int64_t index) {
    question_t *question;
    TRY(ALLOCATE(&question, 1));
    question->next = eval->questions;
    question->link = &eval->questions;
    if (question->next) question->next->link = &question->next;
    eval->questions = question;
    status_t status = fill_question(eval, index, question);
    if (!status) return STATUS_OK;
    question_free(question);
    return status_context(status, "sample %lld of %s", (long long)index, eval->config->data.test);
}

static status_t on_answer(void *context, const engine_completion_t *completion) {
    eval_t *eval = context;
    question_t *question = (question_t *)(intptr_t)completion->tag;
    tool_text_t line = {0};
    status_t status = eval_score(eval, &question->sample, completion, &line);
    if (!status) status = eval_append(eval, question->sample.index, &line);
    free(line.data);
    question_free(question);
    return status;
}

static status_t answer_all(eval_t *eval) {
    int64_t wanted = 0, next = eval->rank;
    for (int64_t i = eval->rank; i < eval->count; i += eval->ranks) wanted += !eval->done[i];
    progress_t progress;
    if (eval->rank == 0) progress_start(&progress, "eval", wanted);
    // Enough questions to keep every row of a step busy, and no more images in memory than that needs.
    int ahead = eval->config->rollout.batch_rows + 16;
    while (next < eval->count || engine_pending(eval->engine)) {
        job_phase(eval->job, "answering");
        eval->stopped = job_stop_requested(eval->job);
        if (eval->stopped) break;
        for (; next < eval->count && engine_pending(eval->engine) < ahead; next += eval->ranks)
            if (!eval->done[next]) TRY(ask(eval, next));
        TRY(engine_step(eval->engine, on_answer, eval));
        if (eval->rank == 0) progress_show(&progress, eval->finished, "");
    }
    if (eval->rank == 0) progress_end(&progress);
    return STATUS_OK;
}

static eval_t eval_of(job_t *job) {
    return (eval_t){.job = job, .config = job->config, .rank = comm_rank(job->world), .ranks = comm_size(job->world)};
}

status_t eval_print_plan(job_t *job, FILE *stream) {
    eval_t eval = eval_of(job);
    status_t status = eval_agree(&eval, open_parts(&eval), "start of the evaluation");
    if (!status && eval.rank == 0) {
        fprintf(stream, "data       %s, %lld of %lld samples\n", eval.config->data.test, (long long)eval.count,
                (long long)packed_count(eval.packed));
        fprintf(stream, "one rank (of %d):\n", eval.ranks);
        engine_print_memory(eval.engine, stream);
    }
    if (!status) ledger_read(eval.device, &job->memory);
    if (!status) status = eval_agree(&eval, STATUS_OK, "memory plan");
    eval_close(&eval);
    return status;
}

// A rank that was done before the others were stopped ends as they do.
static status_t agree_stop(eval_t *eval) {
    int64_t stopped = eval->stopped;
    TRY(comm_all_reduce_i64(eval->job->world, &stopped, 1, COMM_MAX, "stop request"));
    if (stopped) FAIL(STATUS_CANCELLED, "stopped; start the same command again to go on from here");
    return STATUS_OK;
}

status_t eval_run(job_t *job) {
    eval_t eval = eval_of(job);
    double started = clock_seconds();
    status_t status = eval_agree(&eval, open_parts(&eval), "start of the evaluation");
    if (!status) status = eval_resume(&eval);
    if (!status) {
        status = answer_all(&eval);
        // The ranks' shares are alike, but not equal: the slower ones get as long again as this one took.
        double seconds = clock_seconds() - started;
        comm_set_deadline(job->world, job->config->deadline.collective_s + seconds);
        status = eval_agree(&eval, status, "evaluation");
        if (!status) status = agree_stop(&eval);
        comm_set_deadline(job->world, job->config->deadline.collective_s);
    }
    int64_t answered = eval.finished;
    if (!status) status = comm_all_reduce_i64(job->world, &answered, 1, COMM_SUM, "evaluation");
    if (!status) {
        bool first = eval.rank == 0;
        job_phase(job, "merging the samples");
        status = first ? eval_merge(&eval, clock_seconds() - started, answered > 0) : STATUS_OK;
        status = eval_agree(&eval, status, "merging the samples");
    }
    eval_close(&eval);
    return status;
}
