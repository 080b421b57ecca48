// Products, linear and its gradients: equal bits on every kernel set, any thread count, any rows beside a row, any
// layout of leaves; right by a double-precision reference; exact sums at their edges.
#include "tests/lib/matrix_fixture.h"

#include "kernels/cpu/gemm.h"

enum { MOST_SINKS = 4, EXPONENT = 24 };

// One linear layer with everything it can have.
typedef struct layer {
    int m, n, k, r; // r == 0: no adapter
    float *x, *weight, *bias, *a, *b, *xa, *y, *dy, *dx;
    int64_t *sum[MOST_SINKS]; // weight, bias, a, b
    gradient_sink_t sink[MOST_SINKS];
    uint32_t flags;
    int32_t start[8];
    int leaves;
} layer_t;

static layer_t layer_make(int m, int n, int k, int r) {
    layer_t layer = {.m = m, .n = n, .k = k, .r = r, .leaves = 1, .start = {0, m}};
    layer.x = random_floats(1, (int64_t)m * k, 1.0f);
    layer.weight = random_floats(2, (int64_t)n * k, 0.2f);
    layer.bias = random_floats(3, n, 1.0f);
    layer.a = random_floats(4, (int64_t)(r + 1) * k, 0.2f);
    layer.b = random_floats(5, (int64_t)n * (r + 1), 0.2f);
    layer.dy = random_floats(6, (int64_t)m * n, 1.0f);
    layer.dx = random_floats(7, (int64_t)m * k, 1.0f);
    layer.xa = floats((int64_t)m * (r + 1));
    layer.y = floats((int64_t)m * n);
    int64_t elements[MOST_SINKS] = {(int64_t)n * k, n, (int64_t)r * k, (int64_t)n * r};
    for (int i = 0; i < MOST_SINKS; i++) layer.sum[i] = integers(elements[i]);
    return layer;
}

static void layer_free(layer_t *layer) {
    free(layer->x), free(layer->weight), free(layer->bias), free(layer->a), free(layer->b), free(layer->dy);
    free(layer->dx), free(layer->xa), free(layer->y);
    for (int i = 0; i < MOST_SINKS; i++) free(layer->sum[i]);
}

static linear_args_t layer_args(const layer_t *layer) {
    linear_args_t args = {.x = matrix_of(layer->x, layer->m, layer->k),
                          .weight = matrix_of(layer->weight, layer->n, layer->k),
                          .bias = layer->bias,
                          .y = matrix_of(layer->y, layer->m, layer->n)};
    if (layer->r) {
        args.lora_a = matrix_of(layer->a, layer->r, layer->k);
        args.lora_b = matrix_of(layer->b, layer->n, layer->r);
        args.lora_xa = matrix_of(layer->xa, layer->m, layer->r);
        args.lora_scale = 1.7f;
    }
    return args;
}

static linear_gradients_t layer_gradients(layer_t *layer) {
    for (int i = 0; i < MOST_SINKS; i++)
        layer->sink[i] = (gradient_sink_t){.sum = layer->sum[i], .exponent = EXPONENT, .flags = &layer->flags};
    return (linear_gradients_t){.dy = matrix_of(layer->dy, layer->m, layer->n),
                                .dx = matrix_of(layer->dx, layer->m, layer->k),
                                .weight = &layer->sink[0],
                                .bias = &layer->sink[1],
                                .lora_a = layer->r ? &layer->sink[2] : NULL,
                                .lora_b = layer->r ? &layer->sink[3] : NULL,
                                .leaves = {.count = layer->leaves, .start = layer->start}};
}

static void layer_run(layer_t *layer, int set, int threads, bool packed) {
    device_t *device = fixture_open(set, threads);
    linear_args_t args = layer_args(layer);
    void *memory = NULL;
    size_t bytes = cpu_packed_bytes(device, args.weight);
    if (packed && bytes) {
        memory = malloc(bytes);
        assert_non_null(memory);
        ok(cpu_pack_weight(device, args.weight, memory));
        args.packed = memory;
    }
    ok(cpu_linear(device, &args));
    linear_gradients_t gradients = layer_gradients(layer);
    ok(cpu_linear_backward(device, &args, &gradients));
    assert_int_equal(layer->flags, 0);
    free(memory);
    device_close(device);
}

static void same_layers(const layer_t *a, const layer_t *b) {
    int64_t elements[MOST_SINKS] = {(int64_t)a->n * a->k, a->n, (int64_t)a->r * a->k, (int64_t)a->n * a->r};
    same_floats(a->y, b->y, (int64_t)a->m * a->n);
    same_floats(a->dx, b->dx, (int64_t)a->m * a->k);
    if (a->r) same_floats(a->xa, b->xa, (int64_t)a->m * a->r);
    for (int i = 0; i < MOST_SINKS; i++) same_integers(a->sum[i], b->sum[i], elements[i]);
}

static void test_equal_bits(void **state) {
    static const int shapes[][4] = {{1, 1, 1, 0},       {1, 17, 5, 1},   {2, 64, 33, 3},   {5, 65, 96, 8},
                                    {7, 100, 31, 2},    {13, 48, 70, 4}, {31, 130, 17, 0}, {64, 96, 96, 8},
                                    {97, 33, 65, 5},    {100, 70, 3, 1}, {3, 20, 1100, 2}, {300, 9, 12, 1},
                                    {131, 200, 64, 16}, {4, 1030, 6, 2}};
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
        const int *shape = shapes[i];
        layer_t expected = layer_make(shape[0], shape[1], shape[2], shape[3]);
        layer_run(&expected, 0, 1, false);
        for (int set = 0; set < SETS; set++)
            for (int threads = 1; set_is_there(set) && threads <= 3; threads++) {
                layer_t got = layer_make(shape[0], shape[1], shape[2], shape[3]);
                layer_run(&got, set, threads, threads != 2);
                same_layers(&expected, &got);
                layer_free(&got);
            }
        layer_free(&expected);
    }
}

// Long sums pass through memory between blocks of k; the weight gradient's blocks are shorter.
static void test_long_sums(void **state) {
    (void)state;
    for (int set = 1; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t expected = layer_make(700, 21, 2500, 0), got = layer_make(700, 21, 2500, 0);
        layer_run(&expected, 0, 2, false);
        layer_run(&got, set, 2, true);
        same_layers(&expected, &got);
        layer_free(&expected), layer_free(&got);
    }
}

// Row i of a product over M rows has the bits of the same row alone, for every M.
static void test_rows_stand_alone(void **state) {
    enum { ROWS = 130, N = 100, K = 57, R = 3 };
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t all = layer_make(ROWS, N, K, R);
        layer_run(&all, set, 1, true);
        device_t *device = fixture_open(set, 1);
        float *y = floats(ROWS * N), *xa = floats(ROWS * R);
        for (int m = 1; m <= ROWS; m += set == 0 ? 43 : 1) {
            int first = ROWS - m; // so that a row's place in the tiles changes with M
            linear_args_t args = layer_args(&all);
            args.x = matrix_of(all.x + first * K, m, K);
            args.y = matrix_of(y, m, N);
            args.lora_xa = matrix_of(xa, m, R);
            ok(cpu_linear(device, &args));
            same_floats(all.y + first * N, y, (int64_t)m * N);
            float *dx = random_floats(7, (int64_t)ROWS * K, 1.0f);
            linear_gradients_t gradients = {.dy = matrix_of(all.dy + first * N, m, N),
                                            .dx = matrix_of(dx + first * K, m, K)};
            ok(cpu_linear_backward(device, &args, &gradients));
            same_floats(all.dx + first * K, dx + first * K, (int64_t)m * K);
            free(dx);
        }
        free(y), free(xa);
        device_close(device);
        layer_free(&all);
    }
}

// One micro-batch of three leaves (and an empty one) gives the integer sums of three calls.
static void test_leaves(void **state) {
    enum { M = 75, N = 37, K = 50, R = 4 };
    static const int32_t cut[] = {0, 20, 20, 61, M};
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t together = layer_make(M, N, K, R), apart = layer_make(M, N, K, R), joined = layer_make(M, N, K, R);
        together.leaves = 4;
        memcpy(together.start, cut, sizeof(cut));
        layer_run(&together, set, 2, true);
        layer_run(&joined, set, 2, true);
        device_t *device = fixture_open(set, 1);
        for (int leaf = 0; leaf < 4; leaf++) {
            linear_args_t args = layer_args(&apart);
            linear_gradients_t gradients = layer_gradients(&apart);
            int first = cut[leaf], rows = cut[leaf + 1] - first;
            int32_t start[2] = {0, rows};
            args.x = matrix_of(apart.x + first * K, rows, K);
            args.y = matrix_of(apart.y + first * N, rows, N);
            args.lora_xa = matrix_of(apart.xa + first * R, rows, R);
            gradients.dy = matrix_of(apart.dy + first * N, rows, N);
            gradients.dx = matrix_of(apart.dx + first * K, rows, K);
            gradients.leaves = (leaves_t){.count = 1, .start = start};
            ok(cpu_linear(device, &args));
            ok(cpu_linear_backward(device, &args, &gradients));
        }
        same_layers(&together, &apart);
        // One leaf in place of three is another sum: the leaves do matter to the last bit.
        assert_memory_not_equal(together.sum[0], joined.sum[0], (size_t)(N * K) * sizeof(int64_t));
        device_close(device);
        layer_free(&together), layer_free(&apart), layer_free(&joined);
    }
}

// The layer in double precision, with the bounds that rounding in fp32 allows.
static double reference_y(const layer_t *layer, int i, int j) {
    double y = layer->bias[j];
    for (int k = 0; k < layer->k; k++) y += (double)layer->x[i * layer->k + k] * layer->weight[j * layer->k + k];
    for (int r = 0; r < layer->r; r++) {
        double xa = 0;
        for (int k = 0; k < layer->k; k++) xa += (double)layer->x[i * layer->k + k] * layer->a[r * layer->k + k];
        y += (double)1.7f * xa * layer->b[j * layer->r + r];
    }
    return y;
}
static double reference_dxa(const layer_t *layer, int i, int r) {
    double out = 0;
    for (int j = 0; j < layer->n; j++) out += (double)layer->dy[i * layer->n + j] * layer->b[j * layer->r + r];
    return (double)1.7f * out;
}

static void test_against_double(void **state) {
    enum { M = 9, N = 21, K = 35, R = 3 };
    const double unit = ldexp(1.0, -EXPONENT), close = 2e-5;
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t layer = layer_make(M, N, K, R);
        float *before = random_floats(7, M * K, 1.0f);
        layer_run(&layer, set, 1, true);
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) near(layer.y[i * N + j], reference_y(&layer, i, j), close);
            for (int k = 0; k < K; k++) {
                double dx = before[i * K + k];
                for (int j = 0; j < N; j++) dx += (double)layer.dy[i * N + j] * layer.weight[j * K + k];
                for (int r = 0; r < R; r++) dx += reference_dxa(&layer, i, r) * layer.a[r * K + k];
                near(layer.dx[i * K + k], dx, close);
            }
        }
        for (int j = 0; j < N; j++) {
            double bias = 0;
            for (int i = 0; i < M; i++) bias += layer.dy[i * N + j];
            near((double)layer.sum[1][j] * unit, bias, close);
            for (int k = 0; k < K; k++) {
                double dw = 0;
                for (int i = 0; i < M; i++) dw += (double)layer.dy[i * N + j] * layer.x[i * K + k];
                near((double)layer.sum[0][j * K + k] * unit, dw, close);
            }
            for (int r = 0; r < R; r++) {
                double db = 0;
                for (int i = 0; i < M; i++) db += (double)layer.dy[i * N + j] * layer.xa[i * R + r];
                near((double)layer.sum[3][j * R + r] * unit, (double)1.7f * db, close);
            }
        }
        for (int r = 0; r < R; r++)
            for (int k = 0; k < K; k++) {
                double da = 0;
                for (int i = 0; i < M; i++) da += reference_dxa(&layer, i, r) * layer.x[i * K + k];
                near((double)layer.sum[2][r * K + k] * unit, da, close);
            }
        free(before);
        layer_free(&layer);
    }
}

// Slices of wider matrices: neighbours must not be read into results nor written.
static void test_strides(void **state) {
    enum { M = 11, N = 19, K = 23, WIDE = 40 };
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        float *x = random_floats(1, M * WIDE, 1.0f), *weight = random_floats(2, N * WIDE, 1.0f);
        float *y = floats(M * WIDE), *expected = floats(M * N), *dense_x = floats(M * K), *dense_w = floats(N * K);
        for (int i = 0; i < M * WIDE; i++) y[i] = -7.0f;
        for (int i = 0; i < M; i++) memcpy(dense_x + i * K, x + i * WIDE + 5, K * sizeof(float));
        for (int i = 0; i < N; i++) memcpy(dense_w + i * K, weight + i * WIDE + 9, K * sizeof(float));
        device_t *device = fixture_open(set, 2);
        linear_args_t args = {.x = matrix_columns(matrix_of(x, M, WIDE), 5, K),
                              .weight = matrix_columns(matrix_of(weight, N, WIDE), 9, K),
                              .y = matrix_columns(matrix_of(y, M, WIDE), 3, N)};
        linear_args_t dense = {
            .x = matrix_of(dense_x, M, K), .weight = matrix_of(dense_w, N, K), .y = matrix_of(expected, M, N)};
        ok(cpu_linear(device, &args));
        ok(cpu_linear(device, &dense));
        for (int i = 0; i < M; i++) {
            same_floats(y + i * WIDE + 3, expected + i * N, N);
            for (int j = 0; j < WIDE; j++)
                if (j < 3 || j >= 3 + N) assert_true(y[i * WIDE + j] == -7.0f);
        }
        device_close(device);
        free(x), free(weight), free(y), free(expected), free(dense_x), free(dense_w);
    }
}

// Packing on the fly goes by groups of panels when they do not fit the scratch; so does its order of threads.
static void test_groups(void **state) {
    enum { M = 3, N = 700, K = 1500 };
    (void)state;
    for (int set = 1; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t packed = layer_make(M, N, K, 0), loose = layer_make(M, N, K, 0);
        layer_run(&packed, set, 1, true);
        layer_run(&loose, set, 2, false);
        same_layers(&packed, &loose);
        layer_free(&packed), layer_free(&loose);
    }
}

// ---- exact sums ----

typedef struct edge {
    float value;
    int exponent;
    int64_t sum;
    uint32_t flags;
} edge_t;

static void test_quantisation_edges(void **state) {
    const edge_t edges[] = {
        {0.5f, 0, 0, 0},
        {1.5f, 0, 2, 0},
        {2.5f, 0, 2, 0},
        {-0.5f, 0, 0, 0},
        {-1.5f, 0, -2, 0},
        {-2.5f, 0, -2, 0},
        {0.75f, 1, 2, 0},
        {3.0f, -1, 2, 0},
        {8388607.5f, 0, 8388608, 0},
        {0x1.fffffep46f, 0, 0x7fffff800000, 0},
        {-0x1.fffffep46f, 0, -0x7fffff800000, 0},
        {0x1p47f, 0, 0, GRADIENT_OVERFLOW},
        {-0x1p47f, 0, 0, GRADIENT_OVERFLOW},
        {1.0f, 46, 1LL << 46, 0},
        {1.0f, 47, 0, GRADIENT_OVERFLOW},
        {0x1p-149f, 149, 1, 0},
        {0x1p-149f, 195, 1LL << 46, 0},
        {0x1p-149f, 148, 0, 0},
        {0x1.8p-148f, 148, 2, 0},
        {FLT_MAX, 127, 0, GRADIENT_OVERFLOW},
        {FLT_MAX, -100, (1LL << 28) - 16, 0},
        {FLT_MAX, -2000, 0, 0},
        {0x1p-149f, 2000, 0, GRADIENT_OVERFLOW},
        {0.0f, 2000, 0, 0},
        {-0.0f, 127, 0, 0},
        {NAN, 0, 0, GRADIENT_NOT_FINITE},
        {INFINITY, -300, 0, GRADIENT_NOT_FINITE},
        {-INFINITY, 300, 0, GRADIENT_NOT_FINITE},
    };
    enum { COUNT = 37 };
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        device_t device = {.kernels = set_names[set]};
        for (size_t i = 0; i < sizeof(edges) / sizeof(*edges); i++)
            for (int place = 0; place < COUNT; place++) {
                // Beside the edge stand values that every exponent of the table takes to 0 or that are 0.
                float values[COUNT] = {0};
                int64_t sum[COUNT];
                uint32_t flags = 0;
                for (int j = 0; j < COUNT; j++) sum[j] = 1000 + j;
                values[place] = edges[i].value;
                gradient_sink_t sink = {.sum = sum, .exponent = edges[i].exponent, .flags = &flags};
                gemm_kernels_for(&device)->sink(&sink, 0, values, COUNT);
                assert_int_equal(flags, edges[i].flags);
                for (int j = 0; j < COUNT; j++) assert_true(sum[j] == 1000 + j + (j == place ? edges[i].sum : 0));
            }
    }
}

// The sum of a value that overflows is left out alone; flags gather; other elements keep their sums.
static void test_overflow_in_a_product(void **state) {
    enum { N = 20, K = 33 };
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t layer = layer_make(2, N, K, 0);
        linear_args_t args = layer_args(&layer);
        linear_gradients_t gradients = layer_gradients(&layer);
        for (int i = 0; i < 2 * N; i++) layer.dy[i] = 1.0f;
        for (int i = 0; i < 2 * K; i++) layer.x[i] = 1.0f;
        layer.x[7] = 0x1p30f; // * 2^24 is beyond 2^47
        layer.dy[3] = NAN;
        gradients.dx.data = NULL;
        gradients.bias = NULL;
        device_t *device = fixture_open(set, 3);
        ok(cpu_linear_backward(device, &args, &gradients));
        assert_int_equal(layer.flags, GRADIENT_OVERFLOW | GRADIENT_NOT_FINITE);
        for (int j = 0; j < N; j++)
            for (int k = 0; k < K; k++)
                assert_true(layer.sum[0][j * K + k] == (k == 7 || j == 3 ? 0 : 2LL << EXPONENT));
        device_close(device);
        layer_free(&layer);
    }
}

// ---- refusals and the dry run ----

static void test_refusals(void **state) {
    (void)state;
    device_t *device = fixture_open(0, 1);
    layer_t layer = layer_make(4, 5, 6, 2);
    linear_args_t args = layer_args(&layer);
    args.x.columns = 5;
    refused(cpu_linear(device, &args), STATUS_INVALID, "weight");
    args = layer_args(&layer);
    args.y.rows = 3;
    refused(cpu_linear(device, &args), STATUS_INVALID, "y is [3, 5] where [4, 5]");
    args = layer_args(&layer);
    args.weight.dtype = DTYPE_F16;
    refused(cpu_linear(device, &args), STATUS_UNAVAILABLE, "f32");
    args = layer_args(&layer);
    args.x.stride = 3;
    refused(cpu_linear(device, &args), STATUS_INVALID, "stride");
    args = layer_args(&layer);
    args.lora_b.rows = 4;
    refused(cpu_linear(device, &args), STATUS_INVALID, "lora_b");
    args = layer_args(&layer);
    linear_gradients_t gradients = layer_gradients(&layer);
    layer.start[1] = 3;
    refused(cpu_linear_backward(device, &args, &gradients), STATUS_INVALID, "leaves cover rows 0 to 3");
    gradients.leaves.count = 0;
    refused(cpu_linear_backward(device, &args, &gradients), STATUS_INVALID, "leaf");
    gradients = layer_gradients(&layer);
    gradients.dx.columns = 7;
    refused(cpu_linear_backward(device, &args, &gradients), STATUS_INVALID, "dx");
    refused(cpu_pack_weight(device, args.weight, layer.y), STATUS_UNAVAILABLE, "packed");
    for (int i = 0; i < 20; i++) assert_true(layer.y[i] == 0.0f); // nothing was written
    layer_free(&layer);
    device_close(device);
}

// The dry run touches no tensor (they are NULL here) and asks for at least what the real run takes.
static void test_measuring(void **state) {
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        layer_t layer = layer_make(64, 96, 70, 4);
        device_t *dry = fixture_open(set, 2), *wet = fixture_open(set, 2);
        dry->measuring = true;
        linear_args_t args = layer_args(&layer), blank = args;
        linear_gradients_t gradients = layer_gradients(&layer), nothing = gradients;
        blank.x.data = blank.weight.data = blank.y.data = NULL;
        nothing.dy.data = NULL;
        nothing.leaves.start = NULL;
        ok(cpu_linear(dry, &blank));
        ok(cpu_linear_backward(dry, &blank, &nothing));
        ok(cpu_linear(wet, &args));
        ok(cpu_linear_backward(wet, &args, &gradients));
        assert_true(dry->workspace_bytes >= wet->workspace_bytes);
        assert_null(dry->workspace);
        device_close(dry), device_close(wet);
        layer_free(&layer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_bits),
        cmocka_unit_test(test_long_sums),
        cmocka_unit_test(test_rows_stand_alone),
        cmocka_unit_test(test_leaves),
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_strides),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_quantisation_edges),
        cmocka_unit_test(test_overflow_in_a_product),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_measuring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
