// The op list: one description of each op drives every check of it (tests/ops/ops.c).
//
// An op names its tensors and how to call its forward and backward. From that the harness makes inputs, compares every
// kernel set with a naive reference in double, checks gradients against finite differences of that reference, computes
// rows in other company and compares bits, and measures speed.
#ifndef TESTS_OPS_PARTS_OPS_H
#define TESTS_OPS_PARTS_OPS_H

#include "kernels/device.h"

enum { OP_TENSORS = 8, OP_ARRAYS = 6, OP_SHAPE = 8, OP_EXPONENT = 30 };
enum { HALF_FORWARD = 1, HALF_BACKWARD = 2, HALF_TENSOR = 4, HALF_SPLIT = 8 };
// Of the largest number of a gradient's tensor; or of its root mean square and the number itself.
#define HALF_SPLIT_BOUND 0x1p-15
enum { OP_HALF = OP_SHAPE - 1 }; // the place in a shape that is 1 for bf16
// And the one that is 1 where rows that are padded begin at multiples of 8 elements, as those of a model do: a GPU's
// kernels then take the wide loads and the asynchronous copies, which the paddings of the list keep them from.
enum { OP_ALIGNED = OP_SHAPE - 2 };

typedef enum tensor_role {
    TENSOR_INPUT,  // has an activation gradient
    TENSOR_PARAM,  // has an exact sum
    TENSOR_CONST,  // no gradient
    TENSOR_OUTPUT, // the loss is a weighted sum of these
    TENSOR_SAVED,  // an output that only backward or the sampler reads
} tensor_role_t;

typedef struct op_tensor {
    const char *name;
    tensor_role_t role;
    bool by_row; // its rows belong to the rows of the op in order, so that they can be computed in other company
    int rows, columns;
    int64_t stride;
    float *value, *gradient; // gradient: of an output its weight in the loss, of an input the result
    int64_t *sum;            // parameters
    uint32_t *flags;         // one word
    uint16_t *half;          // of a problem in bf16: what problem_matrix shows; `value` then holds bf16 values
} op_tensor_t;

typedef struct op_array {
    int32_t *value;
    int rows, columns;
    bool by_row;
    bool own; // follows from the number of rows: each problem keeps its own
} op_array_t;

typedef struct problem {
    const struct op *op;
    int shape[OP_SHAPE]; // shape[0] is the number of rows
    int tensors, arrays;
    op_tensor_t tensor[OP_TENSORS];
    op_array_t array[OP_ARRAYS];
    leaves_t leaves;
    int32_t leaf_start[8];
    void *packed; // for ops with a packed weight
    uint64_t seed;
    bool half; // matrices are bf16
    // Of a twin in a device's memory: whose twin, and where. Its pointers are the device's.
    struct problem *origin;
    device_t *device;
} problem_t;

typedef struct op {
    const char *name;     // the member of device_table_t
    const char *backward; // its backward there, or NULL
    // Declares tensors and arrays for problem->shape and fills what is not plain random numbers.
    status_t (*setup)(problem_t *problem);
    // Run the op. The problem's pointers are the device's memory: nothing may be read or written through them here.
    status_t (*run)(problem_t *problem, device_t *device);
    status_t (*run_backward)(problem_t *problem, device_t *device);
    // What the host does before the run, after it, and after the backward. Each may be NULL.
    void (*prepare)(problem_t *problem);
    void (*finish)(problem_t *problem);
    void (*finish_backward)(problem_t *problem);
    // Plain loops in double: value[i] is tensor i as [rows, columns]; writes the outputs there.
    void (*reference)(const problem_t *problem, double *const *value);
    double tolerance; // of outputs against the reference: |difference| <= tolerance * (1 + |reference|)
    // Where bf16 is more than rounding what fp32 gives for the same inputs: HALF_FORWARD, HALF_BACKWARD; HALF_TENSOR:
    // the forward on a GPU, whose tensor cores take bf16 from one product to the next; HALF_SPLIT: the backward there,
    // which takes a gradient as two bf16 parts, off by 2^-17 at most. NULL: nowhere.
    int (*inexact)(const int *shape);
    double (*flops)(const int *shape, bool backward);
    double (*bytes)(const int *shape, bool backward); // that must move at least
} op_t;

typedef struct op_case {
    const op_t *op;
    const char *name;
    int shape[OP_SHAPE];
} op_case_t;

// The rows: those that every check runs, those that are too long for finite differences, and those that are large
// enough for every op to share its work out.
extern const op_case_t op_cases[], op_long_cases[], op_shared_cases[];
extern const int op_cases_count, op_long_cases_count, op_shared_cases_count;
// Whether a device's table has the op of this name. NULL and names that are no op's: false.
bool op_member(const device_table_t *table, const char *name);

extern const op_t op_embedding, op_gather, op_scatter, op_pool, op_rmsnorm, op_layernorm, op_rope, op_rope_table,
    op_attention, op_activation, op_add, op_gradient_norm, op_adamw, op_linear, op_token_logprobs, op_token_sample;

// ---- for setup ----
// A random number in [-1, 1) for (problem, tensor or array, element).
float problem_random(const problem_t *problem, int which, int64_t element);
// Adds a tensor of random numbers in [-spread, spread); rows are padded by `pad` elements that nobody may write.
status_t problem_tensor(problem_t *problem, const char *name, tensor_role_t role, bool by_row, int rows, int columns,
                        int pad, float spread) STATUS_CHECKED;
// Adds an array of whole numbers in [low, bound).
status_t problem_array(problem_t *problem, bool by_row, int rows, int columns, int low, int bound) STATUS_CHECKED;
// Splits the rows into three leaves, one of them empty when there are few.
void problem_leaves(problem_t *problem);
// In a problem in bf16 this decides that the tensor lies as bf16: tensors that only `value` is taken of stay f32.
matrix_t problem_matrix(const problem_t *problem, int tensor);
// Brings what a run wrote as bf16 into `value`.
void problem_settle(problem_t *problem);
matrix_t problem_gradient(const problem_t *problem, int tensor);
gradient_sink_t problem_sink(problem_t *problem, int tensor);

// ---- the harness: each returns the number of failures it printed ----
status_t problem_open(problem_t *problem, const op_case_t *row, uint64_t seed) STATUS_CHECKED;
void problem_close(problem_t *problem);
int harness_compare(const op_case_t *row);
int harness_half(const op_case_t *row); // bf16 against fp32 on the same values, and every kernel set to the bit
int harness_gradients(const op_case_t *row);
int harness_invariance(const op_case_t *row);
// The same checks on a device that is open.
int harness_compare_on(const op_case_t *row, device_t *device);
int harness_gradients_on(const op_case_t *row, device_t *device);
int harness_invariance_on(const op_case_t *row, device_t *device);
int harness_half_on(const op_case_t *row, device_t *device);
int harness_threads(const op_case_t *row); // several thread counts, the same bits
int harness_fail(const op_case_t *row, const char *what, status_t status);
// The twin of a problem in the memory of a device. mirror_fetch brings back all that lies there.
bool mirror_wanted(const device_t *device);
status_t mirror_open(problem_t *twin, problem_t *origin, device_t *device) STATUS_CHECKED;
uint16_t *mirror_half(problem_t *twin, int tensor);
status_t mirror_fetch(problem_t *twin) STATUS_CHECKED;
void mirror_close(problem_t *twin);
// Forward, in the device's memory.
status_t problem_forward(problem_t *problem, device_t *device) STATUS_CHECKED;
// Forward, then backward where the op has one, and what they wrote.
status_t problem_run(problem_t *problem, device_t *device) STATUS_CHECKED;
// Bits of results, gradients and sums of two runs.
int compare_bits(const op_case_t *row, const char *set, const problem_t *a, const problem_t *b);
// Prints one line of speed; the roofline is measured by harness_roofline.
typedef struct roofline {
    double flops, bytes; // a second, on one thread
} roofline_t;
roofline_t harness_roofline(void);
void harness_bench(const op_case_t *row, const char *device, roofline_t roofline);

#endif
