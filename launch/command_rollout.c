// rollout: a pool's worker for a running job.
#include "launch/commands.h"
#include "rollout/rollout.h"

#include <getopt.h>
#include <stdlib.h>

status_t command_rollout(int argc, char **argv) {
    static const struct option long_options[] = {{"join", required_argument, NULL, 'j'},
                                                 {"keys", required_argument, NULL, 'k'},
                                                 {"set", required_argument, NULL, 's'},
                                                 {NULL, 0, NULL, 0}};
    rollout_pool_options_t options = {0};
    const int most = (int)(sizeof(options.setting) / sizeof(options.setting[0]));
    opterr = 0;
    optind = 1;
    for (int letter; (letter = getopt_long(argc, argv, ":", long_options, NULL)) != -1;) {
        if (letter == 'j')
            options.join = optarg;
        else if (letter == 'k')
            options.keys = optarg;
        else if (letter == 's' && options.settings < most)
            options.setting[options.settings++] = optarg;
        else if (letter == 's')
            FAIL(STATUS_INVALID, "poise rollout takes --set at most %d times", most);
        else if (letter == ':')
            FAIL(STATUS_INVALID, "poise rollout: '%s' wants a value", argv[optind - 1]);
        else
            FAIL(STATUS_INVALID, "poise rollout does not take '%s'; 'poise rollout --help' shows what it takes",
                 argv[optind - 1]);
    }
    if (optind < argc)
        FAIL(STATUS_INVALID, "poise rollout does not take '%s'; 'poise rollout --help' shows what it takes",
             argv[optind]);
    if (!options.join || !*options.join)
        FAIL(STATUS_INVALID, "poise rollout wants --join RUN, the output folder of a running poise grpo (or --join "
                             "ENDPOINT --keys FILE)");
    return rollout_pool_run(&options);
}
