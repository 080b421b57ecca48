// safetensors: round trips, conversions, shards, and files that lie.
#include "common/model/safetensors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { PATH = 512 };

static char folder[PATH - 64];

static void check(status_t status) {
    if (!status) return;
    status_print(status, stderr, -1, true);
    status_free(status);
    fail();
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "%s/safetensors-test-XXXXXX", POISE_BINARY_DIR);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[PATH + 16];
    snprintf(command, sizeof(command), "rm -r '%s'", folder);
    return system(command);
}

static const char *path_of(const char *name) {
    static char path[PATH];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *name, const void *bytes, size_t size) {
    FILE *file = fopen(path_of(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

// A file whose header length, header and data bytes are as given.
static void write_raw(const char *name, uint64_t header_bytes, const char *header, size_t data_bytes) {
    size_t length = strlen(header);
    unsigned char *bytes = calloc(8 + length + data_bytes, 1);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(header_bytes >> (8 * i));
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++) bytes[8 + length + i] = (unsigned char)(i * 31);
    write_bytes(name, bytes, 8 + length + data_bytes);
    free(bytes);
}

static void refuse_file(const char *name, const char *reason) {
    safetensors_t *file = NULL;
    status_t status = safetensors_open(path_of(name), &file);
    if (!status) fail_msg("a file was taken that should be refused for: %s", reason);
    assert_null(file);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    if (!strstr(status_message(status), reason)) fail_msg("'%s' lacks '%s'", status_message(status), reason);
    status_free(status);
}

static void refuse(const char *header, size_t data_bytes, const char *reason) {
    write_raw("hostile.safetensors", strlen(header), header, data_bytes);
    refuse_file("hostile.safetensors", reason);
}

static void test_round_trip(void **state) {
    (void)state;
    const float values[6] = {0.0F, -0.0F, 1.5F, INFINITY, 1e-42F, -3.25e30F};
    const int32_t numbers[2] = {-7, INT32_MAX};
    const int64_t shape[5] = {1, 3, 1, 2, 1}, two[1] = {2}, none[2] = {0, 4};
    const safetensors_item_t items[4] = {
        {.name = "z.first", .dtype = DTYPE_F32, .dimensions = 5, .shape = shape, .data = values},
        {.name = "a \"quoted\" näme", .dtype = DTYPE_I32, .dimensions = 1, .shape = two, .data = numbers},
        {.name = "empty", .dtype = DTYPE_F32, .dimensions = 2, .shape = none, .data = values},
        {.name = "scalar", .dtype = DTYPE_F32, .dimensions = 0, .shape = NULL, .data = values + 2},
    };
    safetensors_t *file;
    check(safetensors_write(path_of("one.safetensors"), items, 4, "pt", NULL, NULL));
    check(safetensors_open(path_of("one.safetensors"), &file));
    assert_int_equal(safetensors_count(file), 4);
    assert_string_equal(safetensors_metadata(file, "format"), "pt");
    assert_null(safetensors_metadata(file, "other"));
    const safetensors_tensor_t *first = safetensors_find(file, "z.first");
    assert_non_null(first);
    assert_int_equal(first->dimensions, 5);
    assert_memory_equal(first->shape, shape, sizeof(shape));
    float read[6];
    check(safetensors_read_f32(first, read));
    assert_memory_equal(read, values, sizeof(values));
    int32_t read_numbers[2];
    check(safetensors_read_i32(safetensors_find(file, "a \"quoted\" näme"), read_numbers));
    assert_memory_equal(read_numbers, numbers, sizeof(numbers));
    assert_int_equal(safetensors_find(file, "empty")->elements, 0);
    assert_int_equal(safetensors_find(file, "scalar")->elements, 1);
    assert_null(safetensors_find(file, "nothing"));
    safetensors_close(file);
    // Data starts at a multiple of 8, and nothing is left beside the file.
    FILE *raw = fopen(path_of("one.safetensors"), "rb");
    unsigned char length = (unsigned char)fgetc(raw);
    fclose(raw);
    assert_int_equal(length % 8, 0);
    char temporary[PATH];
    snprintf(temporary, sizeof(temporary), "%s/one.safetensors.partial-%d", folder, (int)getpid());
    assert_int_not_equal(access(temporary, F_OK), 0);
}

static void test_write_fails_whole(void **state) {
    (void)state;
    const float value = 1;
    const int64_t shape[1] = {1};
    const safetensors_item_t item = {.name = "x", .dtype = DTYPE_F32, .dimensions = 1, .shape = shape, .data = &value};
    status_t status = safetensors_write(path_of("missing/one.safetensors"), &item, 1, NULL, NULL, NULL);
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_IO);
    status_free(status);
}

static void test_conversions(void **state) {
    (void)state;
    const uint16_t half[8] = {0x0000, 0x8000, 0x3C00, 0xC000, 0x0001, 0x83FF, 0x7BFF, 0xFC00};
    const float half_values[8] = {0.0F, -0.0F, 1.0F, -2.0F, 0x1p-24F, -1023 * 0x1p-24F, 65504.0F, -INFINITY};
    const uint16_t brain[4] = {0x3F80, 0xC0A0, 0x0001, 0x7F80};
    const float brain_values[4] = {1.0F, -5.0F, 0x1p-133F, INFINITY};
    const int64_t eight[1] = {8}, four[1] = {4}, large[2] = {1LL << 31, 3};
    const int64_t two[1] = {2};
    const safetensors_item_t items[3] = {
        {.name = "half", .dtype = DTYPE_F16, .dimensions = 1, .shape = eight, .data = half},
        {.name = "brain", .dtype = DTYPE_BF16, .dimensions = 1, .shape = four, .data = brain},
        {.name = "large", .dtype = DTYPE_I64, .dimensions = 1, .shape = two, .data = large},
    };
    safetensors_t *file;
    float out[8];
    int32_t numbers[2];
    check(safetensors_write(path_of("types.safetensors"), items, 3, NULL, NULL, NULL));
    check(safetensors_open(path_of("types.safetensors"), &file));
    check(safetensors_read_f32(safetensors_find(file, "half"), out));
    assert_memory_equal(out, half_values, sizeof(half_values));
    check(safetensors_read_f32(safetensors_find(file, "brain"), out));
    assert_memory_equal(out, brain_values, sizeof(brain_values));
    status_t status = safetensors_read_i32(safetensors_find(file, "large"), numbers);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "out of range"));
    status_free(status);
    status = safetensors_read_f32(safetensors_find(file, "large"), out);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "floating point"));
    status_free(status);
    safetensors_close(file);
}

static void test_hostile_headers(void **state) {
    (void)state;
    const char *const good = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    safetensors_t *file;
    write_raw("good.safetensors", strlen(good), good, 8);
    check(safetensors_open(path_of("good.safetensors"), &file));
    safetensors_close(file);
    write_bytes("short.safetensors", "1234", 4);
    refuse_file("short.safetensors", "shorter than its header");
    refuse_file("nothing.safetensors", "cannot open");
    write_raw("hostile.safetensors", UINT64_MAX, good, 8);
    refuse_file("hostile.safetensors", "does not hold");
    write_raw("hostile.safetensors", strlen(good) + 9, good, 8);
    refuse_file("hostile.safetensors", "does not hold");
    refuse("{\"a\":", 8, "not a JSON object");
    refuse("[1,2]", 8, "not a JSON object");
    refuse("{\"a\":3}", 8, "not described by an object");
    refuse("{\"__metadata__\":3}", 0, "not an object");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
           "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
           8, "duplicate");
    refuse("{\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, "the type F64, which");
    refuse("{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "the type nothing, which");
    refuse("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "no shape");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, "no shape");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "impossible shape");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "impossible shape");
}

static void test_hostile_places(void **state) {
    (void)state;
    // 2^62 elements of 4 bytes is 0 modulo 2^64; 2^32 by 2^32 overflows before.
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "impossible shape");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "impossible");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,12]}}", 8, "outside of the file");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "outside of the file");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "outside of the file");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "outside of the file");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "its shape needs 12");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
           "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
           12, "overlaps another");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
           "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
           8, "overlaps another");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "gap");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "belong to none");
}

static void refuse_folder(const char *name, const char *reason) {
    safetensors_t *file = NULL;
    status_t status = safetensors_open_folder(path_of(name), &file);
    if (!status) fail_msg("a folder was taken that should be refused for: %s", reason);
    if (!strstr(status_message(status), reason)) fail_msg("'%s' lacks '%s'", status_message(status), reason);
    status_free(status);
}

static void write_index(const char *map) {
    char text[1024];
    snprintf(text, sizeof(text), "{\"metadata\":{\"total_size\":8},\"weight_map\":%s}", map);
    write_bytes("shards/model.safetensors.index.json", text, strlen(text));
}

static void test_shards(void **state) {
    (void)state;
    const char *const a = "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
    const char *const b = "{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}";
    safetensors_t *file;
    assert_int_equal(mkdir(path_of("shards"), 0777), 0);
    refuse_folder("shards", "neither");
    write_raw("shards/1.safetensors", strlen(a), a, 4);
    write_raw("shards/2.safetensors", strlen(b), b, 3);
    write_raw("shards/3.safetensors", strlen(a), a, 4);
    write_index("{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}");
    check(safetensors_open_folder(path_of("shards"), &file));
    assert_int_equal(safetensors_count(file), 2);
    assert_int_equal(safetensors_find(file, "b")->elements, 3);
    safetensors_close(file);
    write_index("{\"a\":\"1.safetensors\",\"b\":\"3.safetensors\"}");
    refuse_folder("shards", "is in two files");
    write_index("{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}");
    refuse_folder("shards", "'c', which no file holds");
    write_index("{\"a\":\"../1.safetensors\"}");
    refuse_folder("shards", "no plain file name");
    write_index("{\"a\":\"9.safetensors\"}");
    refuse_folder("shards", "cannot open");
    write_index("{\"a\":\"..\"}");
    refuse_folder("shards", "not a safetensors file");
    write_index("3");
    refuse_folder("shards", "weight_map");
    // A single file goes before an index, as in transformers; other formats are named.
    write_raw("shards/model.safetensors", strlen(b), b, 3);
    check(safetensors_open_folder(path_of("shards"), &file));
    assert_int_equal(safetensors_count(file), 1);
    safetensors_close(file);
    unlink(path_of("shards/model.safetensors"));
    unlink(path_of("shards/model.safetensors.index.json"));
    write_bytes("shards/pytorch_model.bin", "x", 1);
    refuse_folder("shards", "its weights as pytorch_model.bin");
}

static status_t load_item(void *context, int index, void *buffer, size_t bytes) {
    *(int *)context += index;
    memset(buffer, 'a' + index, bytes);
    return STATUS_OK;
}

// Shards of at most 8 bytes, in order; a tensor that is larger has one for itself.
static void test_written_shards(void **state) {
    (void)state;
    const int64_t shapes[] = {4, 3, 2, 9, 1, 8};
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
    static const int shard[] = {1, 1, 2, 3, 4, 5};
    safetensors_item_t items[6];
    safetensors_t *file;
    int asked = 0;
    for (int i = 0; i < 6; i++)
        items[i] = (safetensors_item_t){.name = names[i], .dtype = DTYPE_U8, .dimensions = 1, .shape = &shapes[i]};
    assert_int_equal(mkdir(path_of("written"), 0777), 0);
    check(safetensors_write_folder(path_of("written"), items, 6, "pt", load_item, &asked, 8));
    assert_int_equal(asked, 15);
    check(safetensors_open_folder(path_of("written"), &file));
    assert_int_equal(safetensors_count(file), 6);
    for (int i = 0; i < 6; i++) {
        const safetensors_tensor_t *tensor = safetensors_find(file, names[i]);
        assert_int_equal(tensor->elements, shapes[i]);
        assert_int_equal(*(const char *)tensor->data, 'a' + i);
    }
    safetensors_close(file);
    for (int i = 0; i < 6; i++) {
        char name[64];
        snprintf(name, sizeof(name), "written/model-%05d-of-00005.safetensors", shard[i]);
        check(safetensors_open(path_of(name), &file));
        assert_non_null(safetensors_find(file, names[i]));
        safetensors_close(file);
    }
    json_error_t error;
    json_t *index = json_load_file(path_of("written/model.safetensors.index.json"), 0, &error);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")), 27);
    assert_int_equal(json_object_size(json_object_get(index, "weight_map")), 6);
    json_decref(index);
    // All of it fits: one file, no index.
    assert_int_equal(mkdir(path_of("whole"), 0777), 0);
    check(safetensors_write_folder(path_of("whole"), items, 6, "pt", load_item, &asked, 27));
    assert_int_equal(access(path_of("whole/model.safetensors"), R_OK), 0);
    assert_int_not_equal(access(path_of("whole/model.safetensors.index.json"), R_OK), 0);
}

// Every truncation and many corruptions of a good file end in an error or in tensors that lie inside of it.
static void test_mutations(void **state) {
    (void)state;
    const char *const header = "{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,8]},"
                               "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[8,20]}}";
    size_t size = 8 + strlen(header) + 20;
    write_raw("seed.safetensors", strlen(header), header, 20);
    unsigned char *good = malloc(size), *bad = malloc(size);
    FILE *file = fopen(path_of("seed.safetensors"), "rb");
    assert_int_equal(fread(good, 1, size, file), size);
    fclose(file);
    uint32_t random = 12345;
    for (size_t i = 0; i < 3 * size; i++) {
        size_t length = i < size ? i : size;
        memcpy(bad, good, size);
        for (int change = 0; i >= size && change < 3; change++) {
            random = random * 1664525U + 1013904223U;
            bad[(random >> 8) % size] = (unsigned char)(random >> 24);
        }
        write_bytes("mutant.safetensors", bad, length);
        safetensors_t *opened;
        status_t status = safetensors_open(path_of("mutant.safetensors"), &opened);
        if (status) {
            status_free(status);
            continue;
        }
        assert_int_equal(length, size);
        for (int t = 0; t < safetensors_count(opened); t++) {
            const safetensors_tensor_t *tensor = safetensors_at(opened, t);
            float values[64];
            assert_true(tensor->bytes <= size && tensor->elements <= 64);
            status_free(safetensors_read_f32(tensor, values));
        }
        safetensors_close(opened);
    }
    free(good);
    free(bad);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_write_fails_whole),
        cmocka_unit_test(test_conversions),    cmocka_unit_test(test_hostile_headers),
        cmocka_unit_test(test_hostile_places), cmocka_unit_test(test_shards),
        cmocka_unit_test(test_written_shards), cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
