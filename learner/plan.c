#include "learner/checkpoint.h"
#include "learner/learner.h"
#include "learner/setup.h"

static void print_schedule(const learner_t *learner, bool grpo, int64_t completed, FILE *stream) {
    const config_t *config = learner->config;
    fprintf(stream, "steps      %lld to %lld of %d\n", (long long)completed, (long long)learner->last,
            config->optimizer.steps);
    fprintf(stream, "data       %s, %lld samples\n", config->data.train, (long long)packed_count(learner->packed));
    int64_t batch = grpo ? config->grpo.prompts : config->sft.batch;
    double epochs = (double)(learner->last * batch) / (double)packed_count(learner->packed);
    if (grpo) {
        fprintf(stream, "batch      %d prompts of %d completions, %d updates each; %.2f epochs\n", config->grpo.prompts,
                config->grpo.completions, config->grpo.updates, epochs);
    } else {
        fprintf(stream, "batch      %d samples in packs of at most %d tokens; %.2f epochs\n", config->sft.batch,
                config->sft.pack_tokens, epochs);
    }
    fprintf(stream, "kernels    %s (%s), %d threads a rank\n", learner->device->table->name, learner->device->kernels,
            config->threads);
}

status_t learner_print_plan(job_t *job, bool grpo, FILE *stream) {
    learner_t learner;
    TRY(learner_open(job, grpo, &learner));
    int64_t completed;
    status_t status = checkpoint_check(&learner, grpo ? "grpo" : "sft", &completed);
    if (!status) status = learner_plan_memory(&learner, grpo, true);
    if (!status && learner.first) {
        print_schedule(&learner, grpo, completed, stream);
        learner_print_setup(&learner, stream);
    }
    // All have measured before the first gives its memory back.
    if (!status) ledger_read(learner.device, &job->memory);
    if (!status) status = learner_agree(&learner, STATUS_OK, "memory plan");
    learner_close(&learner);
    return status;
}
