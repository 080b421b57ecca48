// Single ops against torch and transformers, and what attention sees against Gemma-3's masks; on every kernel set.
#include "common/tensor/tape_internal.h"
#include "tests/lib/parity.h"

enum { EXPONENT = 34, MASKS = 5, MOST_KEYS = 128 };
#define RELATIVE 1e-6

static const char *const sets[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};

typedef struct golden {
    safetensors_t *file;
    device_t *device;
    tape_t *tape;
    float *loaded[64];
    int count;
} golden_t;

static bool golden_open(golden_t *golden, const char *name, const char *set) {
    char path[1024];
    *golden = (golden_t){0};
    status_t status = device_open(set, 1, &golden->device);
    if (status) {
        status_free(status);
        return false;
    }
    snprintf(path, sizeof(path), "%s/tests/goldens/ops/%s.safetensors", POISE_SOURCE_DIR, name);
    check(safetensors_open(path, &golden->file));
    tape_memory_t memory = {.values = 1 << 22, .gradients = 1 << 22};
    check(tape_open(golden->device, &memory, RECOMPUTE_NONE, &golden->tape));
    tape_reset(golden->tape, true);
    return true;
}

static void golden_close(golden_t *golden) {
    for (int i = 0; i < golden->count; i++) free(golden->loaded[i]);
    tape_close(golden->tape);
    safetensors_close(golden->file);
    device_close(golden->device);
}

static float *load(golden_t *golden, const char *op, const char *name, int64_t *count) {
    char full[64];
    snprintf(full, sizeof(full), "%s.%s", op, name);
    float *values = parity_floats(golden->file, full, count);
    if (!values) fail_msg("the goldens lack %s", full);
    golden->loaded[golden->count++] = values;
    return values;
}

// |have - want| <= 1e-6 * (|want| + floor).
static void close_to(golden_t *golden, const char *set, const char *op, const char *name, const float *have,
                     double floor) {
    int64_t count;
    const float *want = load(golden, op, name, &count);
    for (int64_t i = 0; i < count; i++) {
        double error = fabs((double)have[i] - (double)want[i]);
        if (!(error <= RELATIVE * (fabs((double)want[i]) + floor)))
            fail_msg("%s on %s: %s[%d] is %.9g instead of %.9g", op, set, name, (int)i, (double)have[i],
                     (double)want[i]);
    }
}

static void test_activations(void **state) {
    (void)state;
    static const char *const names[] = {"silu", "gelu_erf", "gelu_tanh", "quick_gelu"};
    const activation_t kinds[] = {ACTIVATION_SILU, ACTIVATION_GELU_ERF, ACTIVATION_GELU_TANH, ACTIVATION_QUICK_GELU};
    for (int s = 0; s < 3; s++) {
        golden_t golden;
        if (!golden_open(&golden, "ops", sets[s])) continue;
        int64_t count;
        float *x = load(&golden, "activation", "x", &count), *up = load(&golden, "activation", "up", NULL);
        float *dy = load(&golden, "activation", "dy", NULL), *y = calloc((size_t)count, sizeof(float));
        int n = (int)count;
        for (int kind = 0; kind < 4; kind++) {
            for (int gated = 0; gated < 2; gated++) {
                float *dx = calloc((size_t)count, sizeof(float)), *dup = calloc((size_t)count, sizeof(float));
                activation_args_t args = {.kind = kinds[kind],
                                          .x = matrix_view(x, DTYPE_F32, 1, n),
                                          .up = matrix_view(gated ? up : NULL, DTYPE_F32, 1, n),
                                          .y = matrix_view(y, DTYPE_F32, 1, n)};
                activation_gradients_t back = {.dy = matrix_view(dy, DTYPE_F32, 1, n),
                                               .dx = matrix_view(dx, DTYPE_F32, 1, n),
                                               .dup = matrix_view(gated ? dup : NULL, DTYPE_F32, 1, n)};
                check(golden.device->table->activation(golden.device, &args));
                check(golden.device->table->activation_backward(golden.device, &args, &back));
                // Relative down to where the function fades out (a slope also passes through 0).
                close_to(&golden, sets[s], names[kind], gated ? "gated_y" : "y", y, 1e-4);
                close_to(&golden, sets[s], names[kind], gated ? "gated_dx" : "dx", dx, 0.1);
                if (gated) close_to(&golden, sets[s], names[kind], "gated_dup", dup, 1e-4);
                free(dx);
                free(dup);
            }
        }
        free(y);
        golden_close(&golden);
    }
}

// Beyond where squares are finite.
static void test_huge(void **state) {
    (void)state;
    for (int s = 0; s < 3; s++) {
        golden_t golden;
        if (!golden_open(&golden, "ops", sets[s])) continue;
        for (int kind = ACTIVATION_SILU; kind <= ACTIVATION_QUICK_GELU; kind++) {
            float x[4] = {3e38F, -3e38F, 1e20F, -1e20F}, y[4];
            activation_args_t args = {
                .kind = (activation_t)kind, .x = matrix_view(x, DTYPE_F32, 1, 4), .y = matrix_view(y, DTYPE_F32, 1, 4)};
            check(golden.device->table->activation(golden.device, &args));
            for (int i = 0; i < 4; i += 2) {
                assert_true(y[i] == x[i]);
                assert_true(fabsf(y[i + 1]) < 3.0F);
            }
        }
        golden_close(&golden);
    }
}

typedef struct trained {
    parameter_t parameter;
    int64_t sum[128];
    float found[128];
    uint32_t flags;
} trained_t;

static void train(trained_t *trained, float *value, int columns) {
    *trained = (trained_t){.parameter.value = matrix_view(value, DTYPE_F32, 1, columns)};
    trained->parameter.sink = (gradient_sink_t){trained->sum, EXPONENT, &trained->flags};
}

static const float *gradient_of(trained_t *trained) {
    assert_int_equal(trained->flags, 0);
    for (int i = 0; i < 128; i++) trained->found[i] = (float)ldexp((double)trained->sum[i], -EXPONENT);
    return trained->found;
}

static tensor_t *input_of(golden_t *golden, float *x, int rows, int columns) {
    tensor_t *tensor;
    tape_reset(golden->tape, true);
    check(tape_input(golden->tape, matrix_view(x, DTYPE_F32, rows, columns), (leaves_t){0}, &tensor));
    tensor->needs_gradient = true;
    return tensor;
}

// Walks back from a gradient of y that is given instead of a loss.
static void backward(golden_t *golden, tensor_t *y, const float *dy) {
    matrix_t gradient;
    check(node_gradient(golden->tape, node_of(y), &gradient));
    assert_int_equal(gradient.stride, gradient.columns);
    memcpy(gradient.data, dy, (size_t)gradient.rows * (size_t)gradient.columns * sizeof(float));
    check(tape_backward(golden->tape));
}

static void test_norms(void **state) {
    (void)state;
    enum { ROWS = 13, COLUMNS = 83 };
    for (int s = 0; s < 3; s++) {
        golden_t golden;
        if (!golden_open(&golden, "ops", sets[s])) continue;
        for (int gemma = 0; gemma < 2; gemma++) {
            const char *op = gemma ? "gemma_rmsnorm" : "layernorm";
            trained_t weight, bias;
            tensor_t *y;
            tensor_t *x = input_of(&golden, load(&golden, "norm", "x", NULL), ROWS, COLUMNS);
            train(&weight, load(&golden, "norm", "weight", NULL), COLUMNS);
            train(&bias, load(&golden, "norm", "bias", NULL), COLUMNS);
            if (gemma)
                check(tape_rmsnorm(golden.tape, x, &weight.parameter, 1e-6F, NORM_ONE_PLUS_WEIGHT, &y));
            else
                check(tape_layernorm(golden.tape, x, &weight.parameter, &bias.parameter, 1e-5F, &y));
            close_to(&golden, sets[s], op, "y", y->value.data, 1);
            backward(&golden, y, load(&golden, "norm", "dy", NULL));
            // The reference sums in float32 too, in another order.
            close_to(&golden, sets[s], op, "dx", x->gradient.data, 1);
            close_to(&golden, sets[s], op, "dweight", gradient_of(&weight), 3);
            if (!gemma) close_to(&golden, sets[s], op, "dbias", gradient_of(&bias), 3);
        }
        golden_close(&golden);
    }
}

// q_norm and k_norm: a norm over each head's columns, through views.
static void test_norm_of_heads(void **state) {
    (void)state;
    enum { ROWS = 7, HEADS = 5, SIZE = 16 };
    for (int s = 0; s < 3; s++) {
        golden_t golden;
        if (!golden_open(&golden, "ops", sets[s])) continue;
        trained_t weight;
        tensor_t *y, *x = input_of(&golden, load(&golden, "heads", "x", NULL), ROWS, HEADS * SIZE);
        train(&weight, load(&golden, "heads", "weight", NULL), SIZE);
        check(tape_split_rows(golden.tape, x, HEADS, &y));
        check(tape_rmsnorm(golden.tape, y, &weight.parameter, 1e-6F, NORM_ONE_PLUS_WEIGHT, &y));
        check(tape_fold_rows(golden.tape, y, HEADS, x->leaves, &y));
        close_to(&golden, sets[s], "heads", "y", y->value.data, 1);
        backward(&golden, y, load(&golden, "heads", "dy", NULL));
        close_to(&golden, sets[s], "heads", "dx", x->gradient.data, 1);
        close_to(&golden, sets[s], "heads", "dweight", gradient_of(&weight), 3);
        golden_close(&golden);
    }
}

// Average pooling of a grid; the same order of sums as torch's, so the same bits.
static void test_pooling(void **state) {
    (void)state;
    enum { SIDE = 12, KERNEL = 3, ACROSS = SIDE / KERNEL, WIDTH = 20 };
    int32_t index[SIDE * SIDE];
    for (int i = 0; i < SIDE * SIDE; i++) {
        int out = i / (KERNEL * KERNEL), in = i % (KERNEL * KERNEL);
        index[i] = (out / ACROSS * KERNEL + in / KERNEL) * SIDE + out % ACROSS * KERNEL + in % KERNEL;
    }
    for (int s = 0; s < 3; s++) {
        golden_t golden;
        if (!golden_open(&golden, "ops", sets[s])) continue;
        tensor_t *y, *x = input_of(&golden, load(&golden, "pool", "x", NULL), SIDE * SIDE, WIDTH);
        check(tape_pool_rows(golden.tape, x, index, KERNEL * KERNEL, ACROSS * ACROSS, (leaves_t){0}, &y));
        assert_memory_equal(y->value.data, load(&golden, "pool", "y", NULL),
                            (size_t)ACROSS * ACROSS * WIDTH * sizeof(float));
        backward(&golden, y, load(&golden, "pool", "dy", NULL));
        assert_memory_equal(x->gradient.data, load(&golden, "pool", "dx", NULL),
                            (size_t)SIDE * SIDE * WIDTH * sizeof(float));
        golden_close(&golden);
    }
}

// Equal scores and a value row per key that is 1 in its own column: an output row is 1 / n where its query sees one of
// n keys, and 0 elsewhere.
static void check_mask(golden_t *golden, const char *name, int length, int window, const int32_t *group,
                       const int32_t *want) {
    float *q = calloc((size_t)length * MOST_KEYS, sizeof(float)),
          *v = calloc((size_t)length * MOST_KEYS, sizeof(float));
    float *out = calloc((size_t)length * MOST_KEYS, sizeof(float));
    int32_t start[2] = {0, length}, position = 0, row[MOST_KEYS];
    for (int i = 0; i < length; i++) {
        row[i] = i;
        v[i * MOST_KEYS + i] = 1;
    }
    attention_args_t args = {.q = matrix_view(q, DTYPE_F32, length, MOST_KEYS),
                             .k = matrix_view(q, DTYPE_F32, length, MOST_KEYS),
                             .v = matrix_view(v, DTYPE_F32, length, MOST_KEYS),
                             .heads = 1,
                             .kv_heads = 1,
                             .head_dim = MOST_KEYS,
                             .scale = 1,
                             .mask = {.sequences = 1,
                                      .query_start = start,
                                      .query_position = &position,
                                      .key_start = start,
                                      .key_row = row,
                                      .causal = true,
                                      .window = window,
                                      .group = group},
                             .out = matrix_view(out, DTYPE_F32, length, MOST_KEYS)};
    check(golden->device->table->attention(golden->device, &args));
    for (int i = 0; i < length; i++) {
        int seen = 0;
        for (int j = 0; j < length; j++) seen += want[i * length + j];
        for (int j = 0; j < length; j++) {
            float expected = want[i * length + j] ? 1.0F / (float)seen : 0.0F;
            if (fabsf(out[i * MOST_KEYS + j] - expected) > 1e-6F)
                fail_msg("%s: query %d gives key %d a weight of %.9g instead of %.9g", name, i, j,
                         (double)out[i * MOST_KEYS + j], (double)expected);
        }
    }
    free(q);
    free(v);
    free(out);
}

static void test_masks(void **state) {
    (void)state;
    for (int s = 0; s < 3; s++) {
        golden_t golden;
        if (!golden_open(&golden, "masks", sets[s])) continue;
        for (int m = 0; m < MASKS; m++) {
            char name[64];
            int64_t length = 0;
            int32_t group[MOST_KEYS];
            snprintf(name, sizeof(name), "mask%d.image", m);
            int32_t *image = parity_integers(golden.file, name, &length);
            snprintf(name, sizeof(name), "mask%d.window", m);
            int32_t *window = parity_integers(golden.file, name, NULL);
            assert_true(length <= MOST_KEYS);
            model_config_t config = {.has_vision = true, .image_groups = true, .image.image_token = 1};
            batch_image_groups(&config, image, (int)length, group);
            for (int sliding = 0; sliding < 2; sliding++) {
                snprintf(name, sizeof(name), "mask%d.%s_attention", m, sliding ? "sliding" : "full");
                int32_t *want = parity_integers(golden.file, name, NULL);
                check_mask(&golden, name, (int)length, sliding ? *window : 0, group, want);
                free(want);
            }
            free(image);
            free(window);
        }
        golden_close(&golden);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activations),   cmocka_unit_test(test_huge),    cmocka_unit_test(test_norms),
        cmocka_unit_test(test_norm_of_heads), cmocka_unit_test(test_pooling), cmocka_unit_test(test_masks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
