// linear and its backward, as products of kernels/cuda/gemm.h. Rounding as on the CPU: y is one fp32 number, the
// adapter's part included, until it is stored; x A^T is rounded to what lora_xa keeps before B meets it.
#include "kernels/cuda/cuda_library.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"

// Rows whose fp32 sums exist at once where the base is bf16 and the adapter is not.
enum { BASE_ROWS = 2048 };

static status_t check_linear(const linear_args_t *args) {
    int m = args->x.rows, k = args->x.columns, n = args->weight.rows, r = args->lora_a.rows;
    TRY(check_values("linear", "x", &args->x, m, k));
    TRY(check_values("linear", "the weight", &args->weight, n, k));
    TRY(check_values("linear", "y", &args->y, m, n));
    if (!args->lora_a.data) return STATUS_OK;
    if (r < 1) FAIL(STATUS_INVALID, "linear: an adapter needs a rank of 1 or more, not %d", r);
    TRY(check_values("linear", "lora_a", &args->lora_a, r, k));
    TRY(check_values("linear", "lora_b", &args->lora_b, n, r));
    return check_values("linear", "lora_xa", &args->lora_xa, m, r);
}

// a b^T, or a b where across.
static gemm_job_t product(matrix_t a, matrix_t b, bool across, gemm_output_t out) {
    gemm_job_t job = {};
    job.a = gemm_operand_of(a);
    job.b = gemm_operand_of(b);
    job.b_across = across;
    job.out = out;
    job.rows = a.rows;
    job.columns = across ? b.columns : b.rows;
    return job;
}

// Whether a base of bf16 meets an adapter that is not: then they are products of two engines.
static bool is_mixed(const linear_args_t *args) {
    bool base = args->x.dtype == DTYPE_BF16 && args->weight.dtype == DTYPE_BF16;
    return base && args->lora_a.data && (args->lora_xa.dtype != DTYPE_BF16 || args->lora_b.dtype != DTYPE_BF16);
}

static status_t linear_mixed(device_t *device, const linear_args_t *args, float *base) {
    for (int first = 0; first < args->x.rows; first += BASE_ROWS) {
        int rows = args->x.rows - first < BASE_ROWS ? args->x.rows - first : (int)BASE_ROWS;
        matrix_t sums = matrix_view(base, DTYPE_F32, rows, args->y.columns);
        matrix_t y = gemm_rows(args->y, first, rows);
        gemm_job_t job =
            product(gemm_rows(args->x, first, rows), args->weight, false, gemm_output_to(sums, GEMM_STORE, 1.0f));
        job.out.bias = args->bias;
        TRY(CUDA_NAME(gemm_product)(device, &job));
        job = product(gemm_rows(args->lora_xa, first, rows), args->lora_b, false,
                      gemm_output_to(y, GEMM_FMA, args->lora_scale));
        job.out.base = base;
        job.out.base_stride = sums.stride;
        TRY(CUDA_NAME(gemm_product)(device, &job));
    }
    return STATUS_OK;
}

extern "C" status_t CUDA_NAME(linear)(device_t *device, const linear_args_t *args) {
    void *base = NULL;
    library_plan_t plan;
    TRY(check_linear(args));
    TRY(CUDA_NAME(library_plan)(device, args, &plan));
    if (plan.taken) {
        TRY(device_workspace(device, plan.bytes, &base));
    } else if (is_mixed(args)) {
        int rows = args->x.rows < BASE_ROWS ? args->x.rows : (int)BASE_ROWS;
        TRY(device_workspace(device, (size_t)rows * (size_t)args->y.columns * sizeof(float), &base));
    }
    if (device->measuring || args->x.rows == 0) return STATUS_OK;
    if (args->lora_a.data) {
        gemm_job_t job = product(args->x, args->lora_a, false, gemm_output_to(args->lora_xa, GEMM_STORE, 1.0f));
        TRY(CUDA_NAME(gemm_product)(device, &job));
    }
    if (plan.taken) return CUDA_NAME(library_linear)(device, args, &plan, base);
    if (is_mixed(args)) return linear_mixed(device, args, (float *)base);
    gemm_job_t job = product(args->x, args->weight, false, gemm_output_to(args->y, GEMM_STORE, 1.0f));
    job.out.bias = args->bias;
    if (args->lora_a.data) {
        job.a2 = gemm_operand_of(args->lora_xa);
        job.b2 = gemm_operand_of(args->lora_b);
        job.out.alpha = args->lora_scale;
    }
    return CUDA_NAME(gemm_product)(device, &job);
}

static status_t check_backward(const device_t *device, const linear_args_t *args, const linear_gradients_t *gradients) {
    const char *op = "linear_backward";
    const gradient_sink_t *sinks[] = {gradients->weight, gradients->bias, gradients->lora_a, gradients->lora_b};
    static const char *const names[] = {"the weight", "the bias", "lora_a", "lora_b"};
    bool wanted = false;
    TRY(check_linear(args));
    TRY(check_matrix(op, "dy", &gradients->dy, args->x.rows, args->weight.rows));
    if (gradients->dx.data) TRY(check_matrix(op, "dx", &gradients->dx, args->x.rows, args->x.columns));
    if ((gradients->lora_a || gradients->lora_b) && !args->lora_a.data)
        FAIL(STATUS_INVALID, "%s: a gradient of an adapter is wanted where there is no adapter", op);
    for (int i = 0; i < 4; i++) {
        if (sinks[i]) TRY(check_sink(op, names[i], sinks[i]));
        wanted = wanted || sinks[i];
    }
    return wanted ? cuda_check_leaves(device, op, &gradients->leaves, args->x.rows) : STATUS_OK;
}

static status_t backward_sinks(device_t *device, const linear_args_t *args, const linear_gradients_t *gradients,
                               matrix_t dxa) {
    gemm_operand_t dy = gemm_operand_of(gradients->dy), x = gemm_operand_of(args->x), left = gemm_operand_of(dxa);
    const leaves_t *leaves = &gradients->leaves;
    if (gradients->weight) TRY(CUDA_NAME(gemm_sink)(device, &dy, &x, 1.0f, gradients->weight, leaves));
    if (gradients->lora_a) TRY(CUDA_NAME(gemm_sink)(device, &left, &x, 1.0f, gradients->lora_a, leaves));
    if (gradients->lora_b) {
        gemm_operand_t xa = gemm_operand_of(args->lora_xa);
        TRY(CUDA_NAME(gemm_sink)(device, &dy, &xa, args->lora_scale, gradients->lora_b, leaves));
    }
    if (gradients->bias) TRY(CUDA_NAME(gemm_sink_columns)(device, &dy, gradients->bias, leaves));
    return STATUS_OK;
}

extern "C" status_t CUDA_NAME(linear_backward)(device_t *device, const linear_args_t *args,
                                               const linear_gradients_t *gradients) {
    int m = args->x.rows, r = args->lora_a.rows;
    matrix_t dxa = matrix_view(NULL, DTYPE_F32, m, r);
    TRY(check_backward(device, args, gradients));
    bool adapter = args->lora_a.data && (gradients->dx.data || gradients->lora_a);
    if (adapter) TRY(device_workspace(device, (size_t)m * (size_t)r * sizeof(float), &dxa.data));
    if (device->measuring || m == 0) return STATUS_OK;
    if (adapter) {
        gemm_job_t job = product(gradients->dy, args->lora_b, true, gemm_output_to(dxa, GEMM_STORE, args->lora_scale));
        TRY(CUDA_NAME(gemm_product)(device, &job));
    }
    if (gradients->dx.data) {
        gemm_output_t dx = gemm_output_to(gradients->dx, GEMM_ADD, 1.0f);
        gemm_job_t job = product(gradients->dy, args->weight, true, dx);
        bool alike = args->weight.dtype == args->lora_a.dtype; // else they are products of two engines
        if (adapter && alike) {
            job.a2 = gemm_operand_of(dxa);
            job.b2 = gemm_operand_of(args->lora_a);
        }
        TRY(CUDA_NAME(gemm_product)(device, &job));
        job = product(dxa, args->lora_a, true, dx);
        if (adapter && !alike) TRY(CUDA_NAME(gemm_product)(device, &job));
    }
    return backward_sinks(device, args, gradients, dxa);
}
