// Gradient norm and AdamW over the exact sums. Plain loops: every step is one IEEE operation an element, so a compiler
// may vectorise them as it likes without changing a bit.

static void gradient_norm_blocks(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const gradient_norm_job_t *job = context;
    const gradient_norm_args_t *args = job->args;
    double unit = ldexp(1.0, -args->exponent);
    for (int64_t block = first; block < last; block++) {
        int64_t start = block * GRADIENT_BLOCK;
        int count = args->count - start < GRADIENT_BLOCK ? (int)(args->count - start) : GRADIENT_BLOCK;
        const int64_t *sum = args->sum + start;
        double lane[LANES] = {0};
        int64_t largest[LANES] = {0}, smallest[LANES] = {0};
        for (int i = 0; i < count; i += LANES) {
            int n = count - i < LANES ? count - i : LANES;
            for (int j = 0; j < n; j++) {
                double g = (double)sum[i + j] * unit;
                lane[j] = lane[j] + g * g;
                largest[j] = sum[i + j] > largest[j] ? sum[i + j] : largest[j];
                smallest[j] = sum[i + j] < smallest[j] ? sum[i + j] : smallest[j];
            }
        }
        for (int width = LANES / 2; width; width /= 2)
            for (int j = 0; j < width; j++) lane[j] = lane[j] + lane[j + width];
        int64_t absmax = 0;
        for (int j = 0; j < LANES; j++) {
            int64_t low = smallest[j] == INT64_MIN ? INT64_MAX : -smallest[j];
            int64_t high = largest[j] > low ? largest[j] : low;
            absmax = high > absmax ? high : absmax;
        }
        args->square_sum[block] = lane[0];
        job->absmax[block] = absmax;
    }
}

static inline bool all_finite(v16_t x, int n) {
    float lane[LANES];
    int finite = 1;
    v16_store_up_to(lane, x, n);
    for (int j = 0; j < n; j++) finite &= fabsf(lane[j]) <= FLT_MAX;
    return finite;
}

static inline void adamw_vector(const adamw_job_t *job, int64_t i, int n, const float *gradient) {
    const adamw_args_t *args = job->args;
    v16_t g = v16_load(gradient);
    v16_t m = v16_load_up_to(args->first_moment + i, n), v = v16_load_up_to(args->second_moment + i, n);
    v16_t p = v16_mul(v16_load_up_to(args->master + i, n), v16_set(job->by.decay));
    m = v16_add(m, v16_mul(v16_set(job->by.first), v16_sub(g, m)));
    v = v16_add(v16_mul(v, v16_set(args->beta2)), v16_mul(v16_mul(v16_set(job->by.second), g), g));
    v16_t root = v16_add(v16_div(v16_sqrt(v), v16_set(job->by.root_correction)), v16_set(args->eps));
    p = v16_sub(p, v16_div(v16_mul(v16_set(job->by.step_size), m), root));
    if (args->probe) {
        if (!all_finite(p, n) || !all_finite(m, n) || !all_finite(v, n))
            __atomic_fetch_or(args->probe, (uint32_t)GRADIENT_NOT_FINITE, __ATOMIC_RELAXED);
        return;
    }
    v16_store_up_to(args->master + i, p, n);
    v16_store_up_to(args->first_moment + i, m, n);
    v16_store_up_to(args->second_moment + i, v, n);
}

static void adamw_elements(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const adamw_job_t *job = context;
    const int64_t *sum = job->args->sum;
    double factor = job->by.gradient;
    float gradient[LANES];
    int64_t i = first;
    for (; i + LANES <= last; i += LANES) {
        for (int j = 0; j < LANES; j++) gradient[j] = (float)((double)sum[i + j] * factor);
        adamw_vector(job, i, LANES, gradient);
    }
    if (i == last) return;
    memset(gradient, 0, sizeof(gradient));
    for (int j = 0; j < last - i; j++) gradient[j] = (float)((double)sum[i + j] * factor);
    adamw_vector(job, i, (int)(last - i), gradient);
}
