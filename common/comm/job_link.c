#include "common/comm/job.h"

link_options_t job_link_options(const job_t *job) {
    return (link_options_t){.public_key = job->public_key,
                            .secret_key = job->secret_key,
                            .heartbeat_s = job->config->deadline.heartbeat_s,
                            .max_message = (size_t)64 << 20,
                            .window = 1024};
}
