// poise compose: a vision tower and a projector before a language model.
#include "common/model/compose.h"
#include "launch/commands.h"

#include <getopt.h>
#include <string.h>

enum { LANGUAGE = 1, VISION, OUTPUT, IMAGE_TOKEN, SEED, INIT_STD };

status_t command_compose(int argc, char **argv) {
    static const struct option names[] = {{"language", required_argument, NULL, LANGUAGE},
                                          {"vision", required_argument, NULL, VISION},
                                          {"output", required_argument, NULL, OUTPUT},
                                          {"image-token", required_argument, NULL, IMAGE_TOKEN},
                                          {"seed", required_argument, NULL, SEED},
                                          {"init-std", required_argument, NULL, INIT_STD},
                                          {NULL, 0, NULL, 0}};
    compose_options_t options = {.image_token = "<image>"};
    int64_t seed = 0;
    double std = 0.02;
    opterr = 0;
    optind = 1;
    for (int letter; (letter = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        if (letter == LANGUAGE)
            options.language = optarg;
        else if (letter == VISION)
            options.vision = optarg;
        else if (letter == OUTPUT)
            options.output = optarg;
        else if (letter == IMAGE_TOKEN)
            options.image_token = optarg;
        else if (letter == SEED)
            TRY(argument_whole("seed", optarg, 0, INT64_MAX, &seed));
        else if (letter == INIT_STD)
            TRY(argument_real("init-std", optarg, 1e-6, 10, &std));
        else
            FAIL(STATUS_INVALID, "poise compose does not take '%s'; 'poise compose --help' shows what it takes",
                 argv[optind - 1]);
    }
    if (!options.language || !options.vision || !options.output || optind < argc)
        FAIL(STATUS_INVALID, "poise compose wants --language DIR, --vision FILE, --output DIR and nothing without a "
                             "--name");
    // It goes into a template's string as it is.
    if (!*options.image_token || strpbrk(options.image_token, "'\\{}%\n"))
        FAIL(STATUS_INVALID, "--image-token must be a word without quotes, backslashes, braces and per cent signs");
    options.seed = (uint64_t)seed;
    options.std = (float)std;
    return compose_model(&options);
}
