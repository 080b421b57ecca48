// Speed of the rollout engine on the quickstart's decoder: 32 prompts, 8 completions each, 64 tokens.
#include "rollout/engine.h"
#include "kernels/base/philox.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PROMPTS = 32, COMPLETIONS = 8, TOKENS = 64, PROMPT_LENGTH = 60 };

static const char config_json[] =
    "{\"model_type\":\"qwen2\",\"hidden_size\":128,\"num_hidden_layers\":4,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"intermediate_size\":384,\"vocab_size\":1300,\"rms_norm_eps\":1e-6,"
    "\"rope_theta\":10000.0,\"tie_word_embeddings\":true,\"hidden_act\":\"silu\",\"max_position_embeddings\":4096}";

static status_t ignore(void *context, const engine_completion_t *completion) {
    *(int64_t *)context += completion->length;
    return STATUS_OK;
}

static status_t bench(model_t *model, int pages, int batch_rows) {
    engine_options_t options = {.pages = pages, .batch_rows = batch_rows, .prefill_chunk = batch_rows};
    engine_t *engine;
    int64_t tokens = 0;
    TRY(engine_open(model, &options, &engine));
    for (int i = 0; i < PROMPTS; i++) {
        int32_t prompt[PROMPT_LENGTH];
        for (int j = 0; j < PROMPT_LENGTH; j++)
            prompt[j] = (int32_t)philox_below(1, PHILOX_TEST, (uint64_t)i, (uint32_t)j, 0, 1300);
        engine_request_t request = {.key = (uint64_t)i,
                                    .seed = 1,
                                    .tokens = prompt,
                                    .prompt_length = PROMPT_LENGTH,
                                    .completions = COMPLETIONS,
                                    .max_new_tokens = TOKENS,
                                    .temperature = 1};
        TRY(engine_submit(engine, &request));
    }
    clock_t before = clock();
    while (engine_pending(engine)) TRY(engine_step(engine, ignore, &tokens));
    double cpu = (double)(clock() - before) / CLOCKS_PER_SEC;
    engine_statistics_t s = engine_get_statistics(engine);
    printf("%6d %6d %10.0f %12.0f %10.3f %8lld %8lld %8lld %8d\n", pages, batch_rows,
           (double)s.generated_tokens / s.busy_s, (double)s.generated_tokens / cpu, s.busy_s, (long long)s.decode_steps,
           (long long)s.preemptions, (long long)s.pages_saved, s.peak_pages);
    engine_close(engine);
    return STATUS_OK;
}

static status_t run(const char *folder, int threads) {
    char path[300];
    device_t *device;
    model_t *model;
    snprintf(path, sizeof(path), "%s/config.json", folder);
    FILE *file = fopen(path, "w");
    if (!file) FAIL(STATUS_IO, "cannot write %s", path);
    fputs(config_json, file);
    fclose(file);
    TRY(device_open("cpu", threads, &device));
    TRY(model_open(folder, device, &model));
    unlink(path);
    TRY(model_initialise(model, 1, 0.05F));
    model->config.eos_token_count = 0;
    printf("%s, %d threads: %d prompts x %d completions x %d tokens\n", device->kernels, threads, PROMPTS, COMPLETIONS,
           TOKENS);
    printf("%6s %6s %10s %12s %10s %8s %8s %8s %8s\n", "pages", "rows", "tokens/s", "per CPU s", "seconds", "steps",
           "preempt", "saved", "peak");
    const int layouts[][2] = {{4096, 256}, {4096, 64}, {4096, 8}, {512, 256}, {256, 256}};
    for (size_t i = 0; i < sizeof(layouts) / sizeof(*layouts); i++) TRY(bench(model, layouts[i][0], layouts[i][1]));
    model_close(model);
    device_close(device);
    return STATUS_OK;
}

int main(int count, char **arguments) {
    char folder[] = "/tmp/poise-bench-XXXXXX";
    if (!mkdtemp(folder)) return 1;
    status_t status = run(folder, count > 1 ? atoi(arguments[1]) : 1);
    rmdir(folder);
    if (status) status_print(status, stderr, -1, true);
    int code = status_exit_code(status);
    status_free(status);
    return code;
}
