// score, generate, tokenize, pack, merge: files in, files out.
#include "common/data/packed.h"
#include "common/model/gguf_convert.h"
#include "launch/commands.h"
#include "rollout/rollout.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

status_t argument_whole(const char *option, const char *text, int64_t least, int64_t most, int64_t *out) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < least || value > most)
        FAIL(STATUS_INVALID, "--%s must be a whole number between %lld and %lld, not '%s'", option, (long long)least,
             (long long)most, text);
    *out = value;
    return STATUS_OK;
}

status_t argument_real(const char *option, const char *text, double least, double most, double *out) {
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || errno || !(value >= least && value <= most))
        FAIL(STATUS_INVALID, "--%s must be a number between %g and %g, not '%s'", option, least, most, text);
    *out = value;
    return STATUS_OK;
}

typedef struct arguments {
    tool_options_t tool;
    int64_t threads, max_tokens, samples, seed, max_length;
    bool prompts;
} arguments_t;

enum {
    MODEL = 1,
    ADAPTER,
    INPUT,
    OUTPUT,
    DEVICE,
    DTYPE,
    THREADS,
    TEMPERATURE,
    MAX_TOKENS,
    SAMPLES,
    SEED,
    MAX_LENGTH,
    PROMPTS
};

// Sets of options: what a command takes.
#define BIT(option) (1u << (option))
enum {
    FILES = BIT(MODEL) | BIT(INPUT) | BIT(OUTPUT),
    ENGINE = FILES | BIT(ADAPTER) | BIT(DEVICE) | BIT(DTYPE) | BIT(THREADS) | BIT(TEMPERATURE),
};

static const struct option tool_options[] = {{"model", required_argument, NULL, MODEL},
                                             {"adapter", required_argument, NULL, ADAPTER},
                                             {"input", required_argument, NULL, INPUT},
                                             {"output", required_argument, NULL, OUTPUT},
                                             {"device", required_argument, NULL, DEVICE},
                                             {"dtype", required_argument, NULL, DTYPE},
                                             {"threads", required_argument, NULL, THREADS},
                                             {"temperature", required_argument, NULL, TEMPERATURE},
                                             {"max-tokens", required_argument, NULL, MAX_TOKENS},
                                             {"num", required_argument, NULL, SAMPLES},
                                             {"seed", required_argument, NULL, SEED},
                                             {"max-length", required_argument, NULL, MAX_LENGTH},
                                             {"prompts", no_argument, NULL, PROMPTS},
                                             {NULL, 0, NULL, 0}};

static status_t arguments_take(int option, const char *value, arguments_t *out) {
    tool_options_t *tool = &out->tool;
    switch (option) {
    case MODEL:
        tool->model = value;
        break;
    case ADAPTER:
        tool->adapter = value;
        break;
    case INPUT:
        tool->input = value;
        break;
    case OUTPUT:
        tool->output = value;
        break;
    case DEVICE:
        tool->device = value;
        break;
    case DTYPE:
        tool->dtype = value;
        break;
    case THREADS:
        return argument_whole("threads", value, 1, 1024, &out->threads);
    case TEMPERATURE:
        return argument_real("temperature", value, 0, 100, &tool->temperature);
    case MAX_TOKENS:
        return argument_whole("max-tokens", value, 1, 1000000, &out->max_tokens);
    case SAMPLES:
        return argument_whole("num", value, 1, 1024, &out->samples);
    case SEED:
        return argument_whole("seed", value, 0, INT64_MAX, &out->seed);
    case MAX_LENGTH:
        return argument_whole("max-length", value, 1, 100000000, &out->max_length);
    case PROMPTS:
        out->prompts = true;
        break;
    default:
        FAIL(STATUS_INVALID, "unknown option");
    }
    return STATUS_OK;
}

// `taken`: the options of the command; one that takes --input needs it. `temperature` is the command's default.
static status_t arguments_read(int argc, char **argv, unsigned taken, double temperature, arguments_t *out) {
    bool needs_input = taken & BIT(INPUT);
    *out = (arguments_t){.tool = {.device = "cpu", .dtype = "fp32", .temperature = temperature},
                         .threads = 1,
                         .max_tokens = 1024,
                         .samples = 1,
                         .max_length = 8192};
    opterr = 0;
    optind = 1;
    for (int option, index; (option = getopt_long(argc, argv, ":", tool_options, &index)) != -1;) {
        if (option == ':') FAIL(STATUS_INVALID, "poise %s: '%s' wants a value", argv[0], argv[optind - 1]);
        if (option == '?')
            FAIL(STATUS_INVALID, "poise %s does not take '%s'; 'poise %s --help' shows what it takes", argv[0],
                 argv[optind - 1], argv[0]);
        if (!(taken & BIT(option)))
            FAIL(STATUS_INVALID, "poise %s does not take '--%s'; 'poise %s --help' shows what it takes", argv[0],
                 tool_options[index].name, argv[0]);
        TRY(arguments_take(option, optarg, out));
    }
    if (optind < argc) FAIL(STATUS_INVALID, "poise %s does not take '%s'", argv[0], argv[optind]);
    if (!out->tool.model || !out->tool.output || (needs_input && !out->tool.input))
        FAIL(STATUS_INVALID, "poise %s wants --model DIR, %s--output PATH", argv[0],
             needs_input ? "--input FILE and " : "and ");
    out->tool.threads = (int)out->threads;
    out->tool.max_tokens = (int)out->max_tokens;
    out->tool.samples = (int)out->samples;
    out->tool.seed = (uint64_t)out->seed;
    return STATUS_OK;
}

status_t command_score(int argc, char **argv) {
    arguments_t arguments;
    TRY(arguments_read(argc, argv, ENGINE, 1, &arguments));
    return tool_score(&arguments.tool);
}

status_t command_generate(int argc, char **argv) {
    arguments_t arguments;
    TRY(arguments_read(argc, argv, ENGINE | BIT(MAX_TOKENS) | BIT(SAMPLES) | BIT(SEED), 0, &arguments));
    return tool_generate(&arguments.tool);
}

status_t command_tokenize(int argc, char **argv) {
    arguments_t arguments;
    TRY(arguments_read(argc, argv, FILES, 0, &arguments));
    return tool_tokenize(&arguments.tool);
}

status_t command_pack(int argc, char **argv) {
    arguments_t arguments;
    packed_counts_t counts;
    TRY(arguments_read(argc, argv, FILES | BIT(MAX_LENGTH) | BIT(PROMPTS), 0, &arguments));
    packed_options_t options = {.input = arguments.tool.input,
                                .output = arguments.tool.output,
                                .model = arguments.tool.model,
                                .max_length = (int)arguments.max_length,
                                .require_response = !arguments.prompts};
    TRY(packed_make(&options, stderr, &counts));
    printf("%lld samples, %lld images, %lld tokens (think %lld, answer %lld); dropped: %lld too long, %lld bad; %lld "
           "without a think segment\n",
           (long long)counts.samples, (long long)counts.images, (long long)counts.tokens,
           (long long)counts.think_tokens, (long long)counts.answer_tokens, (long long)counts.dropped_long,
           (long long)counts.dropped_bad, (long long)counts.empty_think);
    return STATUS_OK;
}

// Adds scale * B A to every weight that carries an adapter and writes the folder.
status_t command_merge(int argc, char **argv) {
    arguments_t arguments;
    device_t *device = NULL;
    model_t *model = NULL;
    TRY(arguments_read(argc, argv, BIT(MODEL) | BIT(ADAPTER) | BIT(OUTPUT) | BIT(THREADS), 0, &arguments));
    if (!arguments.tool.adapter) FAIL(STATUS_INVALID, "poise merge wants --adapter DIR");
    TRY(device_open("cpu", arguments.tool.threads, &device));
    status_t status = model_open(arguments.tool.model, device, &model);
    if (!status) status = model_load(model, arguments.tool.model);
    if (!status) status = model_load_adapter(model, arguments.tool.adapter);
    if (!status) status = model_merge_adapters(model);
    if (!status) status = model_save(model, arguments.tool.model, arguments.tool.output);
    model_close(model);
    device_close(device);
    return status;
}

// Writes a GGUF file as a Hugging Face folder.
status_t command_convert(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (argv[i][0] == '-')
            FAIL(STATUS_INVALID, "poise convert does not take '%s'; 'poise convert --help' shows what it takes",
                 argv[i]);
    if (argc != 3) FAIL(STATUS_INVALID, "poise convert wants FILE.gguf DIR");
    return gguf_convert(argv[1], argv[2]);
}
