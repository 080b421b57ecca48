#include "learner/optimizer.h"

#include <math.h>

// What transformers' get_{cosine,linear,constant}_schedule_with_warmup give, as a share of the learning rate.
static double schedule_share(config_schedule_t schedule, int64_t completed, int64_t warmup, int64_t total) {
    int64_t span = total - warmup > 1 ? total - warmup : 1;
    double progress = (double)(completed - warmup) / (double)span;
    if (progress > 1.0) progress = 1.0;
    switch (schedule) {
    case SCHEDULE_COSINE:
        return 0.5 * (1.0 + cos(3.14159265358979323846 * progress));
    case SCHEDULE_LINEAR:
        return completed < total ? (double)(total - completed) / (double)span : 0.0;
    case SCHEDULE_CONSTANT:
    default:
        return 1.0;
    }
}

double optimizer_learning_rate(const config_t *config, int64_t completed) {
    int64_t warmup = config->optimizer.warmup_steps;
    if (completed < warmup) return config->optimizer.learning_rate * ((double)completed / (double)warmup);
    double share = schedule_share(config->optimizer.schedule, completed, warmup, config->optimizer.steps);
    double floor = config->optimizer.schedule == SCHEDULE_CONSTANT ? 0.0 : config->optimizer.final_fraction;
    return config->optimizer.learning_rate * (floor + (1.0 - floor) * share);
}
