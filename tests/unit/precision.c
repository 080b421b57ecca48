// A model in bf16: what its published copy, adapters, weight sync and saved folder hold.
#include "common/wire/weights.h"
#include "tests/lib/parity.h"

#include <unistd.h>

enum { PATH = 1024 };

static char folder[PATH - 128];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "%s/precision-test-XXXXXX", POISE_BINARY_DIR);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[PATH];
    snprintf(command, sizeof(command), "rm -r '%s'", folder);
    return system(command);
}

static const char *golden(void) {
    return POISE_SOURCE_DIR "/tests/goldens/qwen2_5_vl/gqa4_window56_hub";
}

static float *values_of(const model_t *model, const parameter_t *parameter) {
    int64_t count = (int64_t)parameter->value.rows * parameter->value.columns;
    float *out = calloc((size_t)count, sizeof(float));
    check(model_read_values(model, parameter, 0, count, out));
    return out;
}

// `half` holds the values of `whole`, rounded (or, when they are bf16 already, the same).
static void is_rounded(const model_t *half, const parameter_t *a, const model_t *whole, const parameter_t *b) {
    float *have = values_of(half, a), *want = values_of(whole, b);
    for (int64_t i = 0; i < (int64_t)a->value.rows * a->value.columns; i++)
        if (have[i] != bf16_widen(bf16_round(want[i])))
            fail_msg("element %lld is %.9g, not %.9g rounded", (long long)i, (double)have[i], (double)want[i]);
    free(have);
    free(want);
}

static int64_t trained_bytes(model_t *model, uint64_t *manifest) {
    static int64_t nothing;
    uint64_t checksum;
    int64_t bytes = 0;
    for (int i = 0; i < model->parameter_count; i++) model->parameter[i].sink.sum = &nothing;
    check(weights_manifest(model, manifest, &checksum, &bytes));
    for (int i = 0; i < model->parameter_count; i++) model->parameter[i].sink.sum = NULL;
    return bytes;
}

static void test_published(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    model_t *whole = parity_model(golden(), device), *half = parity_model_as(golden(), device, DTYPE_BF16);
    int64_t matrices = 0, vectors = 0;
    for (int i = 0; i < half->parameter_count; i++) {
        const parameter_t *parameter = &half->parameter[i];
        bool vector = half->spec[i].dimensions == 1;
        assert_int_equal(parameter->value.dtype, vector ? DTYPE_F32 : DTYPE_BF16);
        assert_null(parameter->packed); // not stored twice
        *(vector ? &vectors : &matrices) += half->spec[i].elements;
        is_rounded(half, parameter, whole, &whole->parameter[i]);
    }
    // A weight sync moves what is published, and its manifest tells the two apart.
    uint64_t manifest, other;
    assert_int_equal(trained_bytes(half, &manifest), 2 * matrices + 4 * vectors);
    assert_int_equal(trained_bytes(whole, &other), 4 * (matrices + vectors));
    assert_true(manifest != other);
    // What is written is rounded, wherever it lies.
    float third[3] = {1.0F / 3, -1.0F / 3, 1e-3F}, back[3];
    for (int i = 0; i < half->parameter_count; i++) {
        if (half->spec[i].elements < 10000 && half->spec[i].dimensions > 1) continue;
        check(model_write_values(half, &half->parameter[i], 5, 3, third));
        check(model_read_values(half, &half->parameter[i], 5, 3, back));
        for (int j = 0; j < 3; j++) assert_true(back[j] == bf16_widen(bf16_round(third[j])));
    }
    model_close(whole);
    model_close(half);
    device_close(device);
}

static void test_saved(void **state) {
    (void)state;
    char path[PATH];
    device_t *device;
    check(device_open("cpu", 1, &device));
    model_t *half = parity_model_as(golden(), device, DTYPE_BF16);
    snprintf(path, sizeof(path), "%s/half", folder);
    check(model_save(half, golden(), path));
    safetensors_t *file;
    check(safetensors_open_folder(path, &file));
    for (int i = 0; i < safetensors_count(file); i++) assert_int_equal(safetensors_at(file, i)->dtype, DTYPE_BF16);
    safetensors_close(file);
    char name[PATH + 32];
    snprintf(name, sizeof(name), "%s/config.json", path);
    json_t *config = json_load_file(name, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(config, "torch_dtype")), "bfloat16");
    json_decref(config);
    // Nothing is lost on the way, into either precision; fp32 says float32 again.
    model_t *again = parity_model_as(path, device, DTYPE_BF16), *whole = parity_model(path, device);
    for (int i = 0; i < half->parameter_count; i++) {
        is_rounded(again, &again->parameter[i], half, &half->parameter[i]);
        is_rounded(whole, &whole->parameter[i], half, &half->parameter[i]);
    }
    char second[PATH];
    snprintf(second, sizeof(second), "%s/whole", folder);
    check(model_save(whole, path, second));
    snprintf(name, sizeof(name), "%s/config.json", second);
    config = json_load_file(name, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(config, "torch_dtype")), "float32");
    json_decref(config);
    model_close(half);
    model_close(again);
    model_close(whole);
    device_close(device);
}

static void test_adapters(void **state) {
    (void)state;
    static const char *const patterns[] = {"q_proj", "down_proj"};
    char path[PATH];
    device_t *device;
    check(device_open("cpu", 1, &device));
    model_t *half = parity_model_as(golden(), device, DTYPE_BF16), *whole = parity_model(golden(), device);
    check(model_add_adapters(half, patterns, 2, 4, 8, 11));
    check(model_add_adapters(whole, patterns, 2, 4, 8, 11));
    int adapted = 0;
    for (int i = 0; i < half->parameter_count; i++) {
        if (!half->adapter[i]) continue;
        adapted++;
        assert_int_equal(half->adapter[i]->a.value.dtype, DTYPE_BF16);
        is_rounded(half, &half->adapter[i]->a, whole, &whole->adapter[i]->a);
        float *b = values_of(whole, &whole->adapter[i]->a); // any numbers: B starts as zeros
        int64_t count = (int64_t)half->adapter[i]->b.value.rows * half->adapter[i]->b.value.columns;
        if (count > (int64_t)half->adapter[i]->a.value.rows * half->adapter[i]->a.value.columns)
            count = (int64_t)half->adapter[i]->a.value.rows * half->adapter[i]->a.value.columns;
        check(model_write_values(half, &half->adapter[i]->b, 0, count, b));
        free(b);
    }
    assert_true(adapted > 2);
    snprintf(path, sizeof(path), "%s/adapter", folder);
    check(model_save_adapter(half, golden(), path));
    model_t *again = parity_model_as(golden(), device, DTYPE_BF16);
    check(model_load_adapter(again, path));
    for (int i = 0; i < half->parameter_count; i++) {
        assert_int_equal(half->adapter[i] != NULL, again->adapter[i] != NULL);
        if (!half->adapter[i]) continue;
        is_rounded(again, &again->adapter[i]->a, half, &half->adapter[i]->a);
        is_rounded(again, &again->adapter[i]->b, half, &half->adapter[i]->b);
    }
    check(model_merge_adapters(again));
    int changed = 0;
    for (int i = 0; i < half->parameter_count; i++) {
        if (!half->adapter[i]) continue;
        float *before = values_of(half, &half->parameter[i]), *after = values_of(again, &again->parameter[i]);
        for (int64_t e = 0; e < half->spec[i].elements; e++) changed += before[e] != after[e];
        free(before);
        free(after);
    }
    assert_true(changed > 100);
    model_close(half);
    model_close(whole);
    model_close(again);
    device_close(device);
}

static void refused(status_t status, const char *text) {
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    if (!strstr(status_message(status), text)) fail_msg("'%s' is not in '%s'", text, status_message(status));
    status_free(status);
}

static void test_names(void **state) {
    (void)state;
    dtype_t dtype;
    model_t *model;
    check(model_dtype_parse("fp32", &dtype));
    assert_int_equal(dtype, DTYPE_F32);
    check(model_dtype_parse("bf16", &dtype));
    assert_int_equal(dtype, DTYPE_BF16);
    refused(model_dtype_parse("fp16", &dtype), "fp32 or bf16");
    refused(model_open_as(golden(), NULL, DTYPE_F16, &model), "f32 or bf16");
    assert_null(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_published), cmocka_unit_test(test_saved),
                                       cmocka_unit_test(test_adapters), cmocka_unit_test(test_names)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
