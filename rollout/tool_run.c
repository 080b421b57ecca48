// poise score and poise generate: lines through the engine, many at a time, results in the order of the input.
#include "common/model/model_processor.h"
#include "rollout/tool.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    RUN_ROWS = 256,       // rows of an engine step
    RUN_AHEAD = 4096,     // lines read and not yet written
    RUN_LEAST_PAGES = 64, // pool of the engine, before longer lines ask for more
    RUN_MOST_PAGES = 65536,
    RUN_CACHE_BYTES = 128 << 20, // what the pool may take by itself
    RUN_FEATURE_BYTES = 64 << 20
};

// A line on its way: read, submitted, written when all before it are.
typedef struct run_line {
    struct run_line *next;
    tool_item_t item;
    int missing;       // completions not finished yet
    tool_text_t *text; // [samples] what will be written
    int samples;
} run_line_t;

typedef struct run {
    tool_t tool;
    bool generate;
    engine_t *engine;
    int pages;
    tool_reader_t reader;
    tool_writer_t writer;
    run_line_t *first, *last, *waiting; // waiting: read, but the pool is too small for it
    int lines, in_engine;
    bool ended;
} run_t;

static void line_free(run_line_t *line) {
    if (!line) return;
    for (int i = 0; line->text && i < line->samples; i++) free(line->text[i].data);
    free(line->text);
    tool_item_free(&line->item);
    free(line);
}

static void run_close(run_t *run) {
    engine_close(run->engine);
    for (run_line_t *line = run->first; line;) {
        run_line_t *next = line->next;
        line_free(line);
        line = next;
    }
    tool_writer_close(&run->writer);
    tool_reader_close(&run->reader);
    tool_close(&run->tool);
}

static status_t run_open(run_t *run, const tool_options_t *options) {
    TRY(tool_reader_open(options->input, &run->reader));
    TRY(tool_open(options, true, &run->tool));
    if (run->generate) TRY(tool_need_tokenizer(&run->tool));
    if (run->generate) model_warn_generation(run->tool.model, stderr);
    const model_config_t *config = &run->tool.model->config;
    size_t page = (size_t)ENGINE_PAGE * 2 * (size_t)config->layers * (size_t)config->kv_heads *
                  (size_t)config->head_dim * dtype_bytes(run->tool.model->dtype);
    size_t pages = RUN_CACHE_BYTES / page;
    run->pages = (int)(pages < RUN_LEAST_PAGES ? RUN_LEAST_PAGES : pages > RUN_MOST_PAGES ? RUN_MOST_PAGES : pages);
    return tool_writer_open(options->output, &run->writer);
}

// Opens the engine, with a larger pool when one line needs it. Only when nothing is in the engine.
static status_t open_engine(run_t *run, int pages) {
    if (run->engine && pages <= run->pages) return STATUS_OK;
    engine_close(run->engine);
    run->engine = NULL;
    if (pages > run->pages) run->pages = pages;
    engine_options_t options = {.pages = run->pages,
                                .batch_rows = RUN_ROWS,
                                .prefill_chunk = RUN_ROWS,
                                .feature_cache_bytes = RUN_FEATURE_BYTES};
    TRY(engine_open(run->tool.model, &options, &run->engine));
    if (!run->tool.device->table->host_memory) engine_print_memory(run->engine, stderr);
    return STATUS_OK;
}

static status_t id_key(const json_t *id, uint64_t *out) {
    if (json_is_string(id)) {
        *out = XXH3_64bits(json_string_value(id), json_string_length(id));
        return STATUS_OK;
    }
    tool_text_t text = {0};
    TRY(tool_text_json(&text, id));
    *out = XXH3_64bits(text.data, text.length);
    free(text.data);
    return STATUS_OK;
}

static int budget(const run_t *run, const run_line_t *line) {
    return run->generate ? run->tool.options->max_tokens : line->item.completion.count;
}

static int pages_needed(const run_t *run, const run_line_t *line) {
    return line->item.prompt.count / ENGINE_PAGE + budget(run, line) / ENGINE_PAGE + 3;
}

static status_t submit(run_t *run, run_line_t *line) {
    const tool_options_t *options = run->tool.options;
    const tool_item_t *item = &line->item;
    engine_request_t request = {.tag = (int64_t)(intptr_t)line,
                                .seed = options->seed,
                                .tokens = item->prompt.id,
                                .prompt_length = item->prompt.count,
                                .images = (const image_patches_t *const *)item->images,
                                .image_count = item->image_count,
                                .completions = line->samples,
                                .max_new_tokens = options->max_tokens,
                                .temperature = (float)options->temperature};
    TRY(id_key(item->id, &request.key));
    if (!run->generate) {
        request.forced = item->completion.id;
        request.forced_length = item->completion.count;
    }
    TRY(engine_submit(run->engine, &request));
    run->in_engine += line->samples;
    return STATUS_OK;
}

static status_t begin_text(const run_line_t *line, int sample, tool_text_t *text) {
    TRY(tool_text_add(text, "{\"id\":"));
    TRY(tool_text_json(text, line->item.id));
    if (line->samples > 1) TRY(tool_text_add(text, ",\"sample\":%d", sample));
    TRY(tool_text_add(text, ",\"prompt_tokens\":%d,\"prompt_ids\":", line->item.prompt.count));
    return tool_text_ids(text, line->item.prompt.id, line->item.prompt.count);
}

static status_t finish_text(const run_t *run, run_line_t *line, int sample, const int32_t *tokens,
                            const float *logprobs, int count, const char *reason) {
    tool_text_t *text = &line->text[sample];
    TRY(begin_text(line, sample, text));
    TRY(tool_text_add(text, ",\"tokens\":"));
    TRY(tool_text_ids(text, tokens, count));
    TRY(tool_text_add(text, ",\"logprobs\":"));
    TRY(tool_text_floats(text, logprobs, count));
    if (run->generate) {
        char *decoded;
        TRY(tokenizer_decode(run->tool.tokenizer, tokens, count, true, &decoded));
        status_t status = tool_text_add(text, ",\"text\":");
        if (!status) status = tool_text_string(text, decoded);
        free(decoded);
        TRY(status);
        TRY(tool_text_add(text, ",\"finish_reason\":\"%s\"", reason));
    }
    TRY(tool_text_add(text, "}\n"));
    if (--line->missing == 0) tool_item_free_images(&line->item);
    return STATUS_OK;
}

static status_t on_completion(void *context, const engine_completion_t *completion) {
    run_t *run = context;
    run_line_t *line = (run_line_t *)(intptr_t)completion->tag;
    run->in_engine--;
    return tool_reader_blame(&run->reader, line->item.line,
                             finish_text(run, line, completion->index, completion->tokens, completion->logprobs,
                                         completion->length, completion->stopped ? "stop" : "length"));
}

// Hands the waiting line to the engine, if the pool has room for it or nothing else is in it.
static status_t place_line(run_t *run, run_line_t *line) {
    if (!run->generate && !line->item.completion.count) {
        run->waiting = NULL;
        return finish_text(run, line, 0, NULL, NULL, 0, "");
    }
    int pages = pages_needed(run, line);
    if (run->in_engine && pages > run->pages) return STATUS_OK;
    TRY(open_engine(run, pages));
    run->waiting = NULL;
    return submit(run, line);
}

static status_t place(run_t *run) {
    int64_t number = run->waiting->item.line;
    status_t status = place_line(run, run->waiting);
    return tool_reader_blame(&run->reader, number, status);
}

static status_t read_line(run_t *run) {
    json_t *object;
    run_line_t *line;
    TRY(tool_reader_next(&run->reader, &object));
    run->ended = !object;
    if (!object) return STATUS_OK;
    status_t status = ALLOCATE(&line, 1);
    if (status) {
        json_decref(object);
        return status;
    }
    *(run->last ? &run->last->next : &run->first) = line;
    run->last = run->waiting = line;
    run->lines++;
    status = tool_item_read(&run->tool, object, !run->generate, &line->item);
    json_decref(object);
    TRY(status);
    line->item.line = run->reader.number;
    line->samples = line->missing = run->generate ? run->tool.options->samples : 1;
    return ALLOCATE(&line->text, line->samples);
}

static status_t fill(run_t *run) {
    while (!run->ended && !run->waiting && run->in_engine < 2 * RUN_ROWS && run->lines < RUN_AHEAD) {
        status_t status = read_line(run);
        // Errors of the JSON itself name their line already.
        TRY(run->waiting ? tool_reader_blame(&run->reader, run->reader.number, status) : status);
        if (run->waiting) TRY(place(run));
    }
    return run->waiting ? place(run) : STATUS_OK;
}

static status_t write_ready(run_t *run) {
    while (run->first && !run->first->missing && run->first != run->waiting) {
        run_line_t *line = run->first;
        for (int i = 0; i < line->samples; i++)
            if (fwrite(line->text[i].data, 1, line->text[i].length, run->writer.file) != line->text[i].length)
                FAIL(STATUS_IO, "cannot write the output; is the disk full?");
        run->first = line->next;
        if (!run->first) run->last = NULL;
        run->lines--;
        line_free(line);
    }
    return STATUS_OK;
}

static status_t run_all(run_t *run) {
    while (!run->ended || run->first) {
        TRY(fill(run));
        if (run->engine) TRY(engine_step(run->engine, on_completion, run));
        TRY(write_ready(run));
    }
    return tool_writer_finish(&run->writer);
}

static status_t run_tool(const tool_options_t *options, bool generate) {
    run_t run = {.generate = generate};
    if (!(options->temperature >= 0) || options->temperature > 1e6)
        FAIL(STATUS_INVALID, "the temperature must be 0 or more, not %g", options->temperature);
    if (generate && (options->max_tokens < 1 || options->samples < 1))
        FAIL(STATUS_INVALID, "--max-tokens and --num must be at least 1");
    status_t status = run_open(&run, options);
    if (!status) status = run_all(&run);
    run_close(&run);
    return status;
}

status_t tool_score(const tool_options_t *options) {
    return run_tool(options, false);
}

status_t tool_generate(const tool_options_t *options) {
    return run_tool(options, true);
}
