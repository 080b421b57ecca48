// HDF5 files are whole or absent, and hostile or torn ones give errors.
#include "tests/lib/check.h"

#include "common/store/store.h"
#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <zlib.h>

typedef struct place {
    char folder[256], file[300];
} place_t;

static int setup(void **state) {
    place_t *place = calloc(1, sizeof(*place));
    check_make_folder(place->folder, sizeof(place->folder));
    snprintf(place->file, sizeof(place->file), "%s/data.h5", place->folder);
    *state = place;
    return 0;
}

static int teardown(void **state) {
    place_t *place = *state;
    check_remove_folder(place->folder);
    free(place);
    return 0;
}

static int count_files(const char *folder) {
    char command[400];
    snprintf(command, sizeof(command), "ls -A '%s' | wc -l", folder);
    FILE *pipe = popen(command, "r");
    int count = -1;
    assert_int_equal(fscanf(pipe, "%d", &count), 1);
    pclose(pipe);
    return count;
}

static void write_sample(const char *path) {
    unlink(path);
    store_t *store;
    float f32[5] = {1.5f, -0.0f, 3e38f, 1e-45f, 7};
    uint16_t halves[3] = {0x3f80, 0x7fff, 0x0001};
    int32_t ids[100000];
    for (int i = 0; i < 100000; i++) ids[i] = i % 17;
    int64_t wide[2] = {INT64_MIN, INT64_MAX};
    CHECK_OK(store_create(path, &store));
    CHECK_OK(store_write(store, "weights/a", DTYPE_F32, f32, 5, false));
    CHECK_OK(store_write(store, "weights/b", DTYPE_BF16, halves, 3, false));
    CHECK_OK(store_write(store, "weights/c", DTYPE_F16, halves, 3, true));
    CHECK_OK(store_write(store, "ids", DTYPE_I32, ids, 100000, true));
    CHECK_OK(store_write(store, "wide", DTYPE_I64, wide, 2, false));
    CHECK_OK(store_write(store, "none", DTYPE_U8, NULL, 0, true));
    CHECK_OK(store_write_string(store, "meta/text", "héllo\n"));
    CHECK_OK(store_write_string(store, "meta/empty", ""));
    CHECK_OK(store_write_number(store, "meta/step", -42));
    CHECK_OK(store_write_real(store, "meta/rate", 0.1));
    assert_int_equal(access(path, F_OK), -1); // nothing under the final name before the commit
    CHECK_OK(store_commit(store));
    store_close(store);
}

static void test_round_trip(void **state) {
    place_t *place = *state;
    write_sample(place->file);
    assert_int_equal(count_files(place->folder), 1);
    store_t *store;
    CHECK_OK(store_open(place->file, &store));
    float *f32;
    int64_t count, number;
    double real;
    char *text;
    CHECK_OK(store_read_all(store, "weights/a", DTYPE_F32, (void **)&f32, &count));
    assert_int_equal(count, 5);
    assert_true(f32[0] == 1.5f && f32[2] == 3e38f && f32[3] == 1e-45f);
    free(f32);
    uint16_t halves[2];
    CHECK_OK(store_read(store, "weights/b", DTYPE_BF16, 1, 2, halves));
    assert_int_equal(halves[0], 0x7fff); // a NaN's bits stay
    assert_int_equal(halves[1], 1);
    int32_t ids[10];
    CHECK_OK(store_read(store, "ids", DTYPE_I32, 99990, 10, ids));
    assert_int_equal(ids[9], 99999 % 17);
    CHECK_OK(store_count(store, "ids", &count));
    assert_int_equal(count, 100000);
    void *none;
    CHECK_OK(store_read_all(store, "none", DTYPE_U8, &none, &count));
    assert_int_equal(count, 0);
    free(none);
    CHECK_OK(store_read_string(store, "meta/text", &text));
    assert_string_equal(text, "héllo\n");
    free(text);
    CHECK_OK(store_read_string(store, "meta/empty", &text));
    assert_string_equal(text, "");
    free(text);
    CHECK_OK(store_read_number(store, "meta/step", &number));
    assert_int_equal(number, -42);
    CHECK_OK(store_read_real(store, "meta/rate", &real));
    assert_true(real == 0.1);
    assert_true(store_has(store, "weights/a") && store_has(store, "weights"));
    assert_false(store_has(store, "weights/z") || store_has(store, "no/such") || store_has(store, ""));
    store_close(store);
}

static void test_wrong_reads(void **state) {
    place_t *place = *state;
    write_sample(place->file);
    store_t *store;
    CHECK_OK(store_open(place->file, &store));
    float f32[8];
    int64_t count;
    void *all;
    char *text;
    CHECK_FAILS(store_read(store, "weights/a", DTYPE_I32, 0, 1, f32), "not of type i32");
    CHECK_FAILS(store_read(store, "weights/c", DTYPE_BF16, 0, 1, f32), "not of type bf16");
    CHECK_FAILS(store_read(store, "weights/a", DTYPE_F32, 0, 6, f32), "has 5 elements");
    CHECK_FAILS(store_read(store, "weights/a", DTYPE_F32, -1, 1, f32), "has 5 elements");
    CHECK_FAILS(store_read(store, "weights/a", DTYPE_F32, 1, INT64_MAX, f32), "has 5 elements");
    CHECK_FAILS(store_read(store, "weights", DTYPE_F32, 0, 1, f32), "weights");
    CHECK_FAILS(store_read_all(store, "nothing", DTYPE_F32, &all, &count), "no dataset 'nothing'");
    CHECK_FAILS(store_read_string(store, "meta/step", &text), "not of type string");
    CHECK_FAILS(store_read_string(store, "ids", &text), "not of type string");
    CHECK_FAILS(store_write_number(store, "x", 1), "not open for writing");
    store_close(store);
}

static void read_flipped(const char *path, char *bytes, size_t size) {
    for (size_t at = 0; at < size; at += at < 6000 ? 7 : 997) {
        store_t *store = NULL;
        int64_t count;
        void *all = NULL;
        bytes[at] ^= 0x5a;
        status_t status = file_write_whole(path, bytes, size);
        bytes[at] ^= 0x5a;
        if (!status) status = store_open(path, &store);
        if (!status) status = store_read_all(store, "ids", DTYPE_I32, &all, &count);
        status_free(status);
        free(all);
        store_close(store);
    }
}

static void test_torn(void **state) {
    place_t *place = *state;
    store_t *store;
    CHECK_FAILS(store_open(place->file, &store), "No such file");
    CHECK_FAILS(store_open(place->folder, &store), "not a file");
    CHECK_OK(file_write_whole(place->file, "hello, no HDF5 here", 19));
    CHECK_FAILS(store_open(place->file, &store), "no HDF5 file");
    write_sample(place->file);
    char *bytes;
    size_t size;
    CHECK_OK(file_read_whole(place->file, 1 << 26, &bytes, &size));
    // Every cut must be noticed on opening or on reading; none may crash.
    for (size_t cut = 0; cut < size; cut += size / 37 + 1) {
        CHECK_OK(file_write_whole(place->file, bytes, cut));
        status_t status = store_open(place->file, &store);
        assert_non_null(status);
        status_free(status);
    }
    // Flipped bytes may or may not be noticed; reading must stay sane.
    read_flipped(place->file, bytes, size);
    free(bytes);
}

// A dataset that claims far more than the file holds, and links that lead out of the file.
static void test_hostile(void **state) {
    place_t *place = *state;
    char other[320];
    snprintf(other, sizeof(other), "%s/secret.h5", place->folder);
    write_sample(other);
    hid_t file = H5Fcreate(place->file, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hsize_t huge = (hsize_t)1 << 50, chunk = 1 << 20, small = 4;
    hid_t space = H5Screate_simple(1, &huge, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(plist, 1, &chunk);
    H5Dclose(H5Dcreate2(file, "unfiltered", H5T_STD_U8LE, space, H5P_DEFAULT, plist, H5P_DEFAULT));
    H5Pset_shuffle(plist);
    H5Pset_deflate(plist, 1);
    H5Dclose(H5Dcreate2(file, "chunked", H5T_STD_U8LE, space, H5P_DEFAULT, plist, H5P_DEFAULT));
    H5Dclose(H5Dcreate2(file, "late", H5T_STD_U8LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Lcreate_soft("/late", file, "link", H5P_DEFAULT, H5P_DEFAULT);
    hid_t outside = H5Pcreate(H5P_DATASET_CREATE), little = H5Screate_simple(1, &small, NULL);
    H5Pset_external(outside, "/etc/passwd", 0, 4);
    H5Dclose(H5Dcreate2(file, "outside", H5T_STD_U8LE, little, H5P_DEFAULT, outside, H5P_DEFAULT));
    H5Pclose(outside), H5Pclose(plist), H5Sclose(space), H5Sclose(little), H5Fclose(file);
    store_t *store;
    void *all;
    int64_t count;
    CHECK_OK(store_open(place->file, &store));
    CHECK_FAILS(store_read_all(store, "chunked", DTYPE_U8, &all, &count), "claims");
    CHECK_FAILS(store_read_all(store, "unfiltered", DTYPE_U8, &all, &count), "Poise does not write");
    CHECK_FAILS(store_read_all(store, "late", DTYPE_U8, &all, &count), "claims");
    CHECK_FAILS(store_read_all(store, "link", DTYPE_I32, &all, &count), "no dataset");
    CHECK_FAILS(store_read_all(store, "outside", DTYPE_U8, &all, &count), "Poise does not write");
    store_close(store);
    // A link to another file needs a kind of group that Poise never makes.
    file = H5Fcreate(place->file, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_external(other, "/ids", file, "link", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    CHECK_FAILS(store_open(place->file, &store), "no root group");
}

// Groups that hold themselves, by hard links, in ever more ways.
static void test_endless(void **state) {
    place_t *place = *state;
    hid_t file = H5Fcreate(place->file, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t group = H5Gcreate2(file, "a", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    char name[16];
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "a%d", i);
        H5Lcreate_hard(file, "/a", group, name, H5P_DEFAULT, H5P_DEFAULT);
    }
    H5Gclose(group), H5Fclose(file);
    store_t *store;
    CHECK_FAILS(store_open(place->file, &store), "damaged");
}

// A compressed chunk that inflates to less than it should; HDF5's own reader would read past its buffer.
static void test_short_chunk(void **state) {
    place_t *place = *state;
    hid_t file = H5Fcreate(place->file, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hsize_t length = 4096, offset = 0;
    hid_t space = H5Screate_simple(1, &length, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(plist, 1, &length);
    H5Pset_shuffle(plist);
    H5Pset_deflate(plist, 1);
    static const uint8_t contents[4096] = {1};
    uint8_t packed[8192];
    uLongf bytes = sizeof(packed);
    assert_int_equal(compress(packed, &bytes, contents, 1000), Z_OK);
    hid_t id = H5Dcreate2(file, "short", H5T_STD_U8LE, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    assert_true(H5Dwrite_chunk(id, H5P_DEFAULT, 0, &offset, bytes, packed) >= 0);
    H5Dclose(id), H5Pclose(plist), H5Sclose(space), H5Fclose(file);
    store_t *store;
    void *all;
    int64_t count;
    CHECK_OK(store_open(place->file, &store));
    CHECK_FAILS(store_read_all(store, "short", DTYPE_U8, &all, &count), "missing or broken");
    store_close(store);
}

// Slices across the chunks of a compressed dataset, of every element size.
static void test_slices(void **state) {
    place_t *place = *state;
    enum { COUNT = 700001 };
    static const dtype_t dtypes[] = {DTYPE_U8, DTYPE_F16, DTYPE_I32, DTYPE_I64};
    static const size_t sizes[] = {1, 2, 4, 8};
    uint8_t *data = malloc((size_t)COUNT * 8), *back = malloc((size_t)COUNT * 8);
    for (size_t i = 0; i < (size_t)COUNT * 8; i++) data[i] = (uint8_t)(i * 31 + i / 1001);
    store_t *store;
    char name[16];
    CHECK_OK(store_create(place->file, &store));
    for (int d = 0; d < 4; d++) {
        snprintf(name, sizeof(name), "d%d", d);
        CHECK_OK(store_write(store, name, dtypes[d], data, COUNT, true));
    }
    CHECK_OK(store_commit(store));
    store_close(store);
    CHECK_OK(store_open(place->file, &store));
    static const int64_t slices[][2] = {{0, COUNT}, {0, 1}, {COUNT - 1, 1}, {131071, 2}, {262143, 300000}, {5, 0}};
    for (int d = 0; d < 4; d++)
        for (size_t s = 0; s < sizeof(slices) / sizeof(slices[0]); s++) {
            snprintf(name, sizeof(name), "d%d", d);
            CHECK_OK(store_read(store, name, dtypes[d], slices[s][0], slices[s][1], back));
            assert_memory_equal(back, data + (size_t)slices[s][0] * sizes[d], (size_t)slices[s][1] * sizes[d]);
        }
    store_close(store);
    free(data);
    free(back);
}

// More names in a group than one node of its tree takes, and more chunks than one node of theirs.
static void test_many(void **state) {
    place_t *place = *state;
    enum { NAMES = 3000, COUNT = 200 * (1 << 20) / 8 };
    store_t *store;
    char name[64];
    int64_t value, *data = calloc(COUNT, sizeof(*data)), some[3];
    for (int64_t i = 0; i < COUNT; i++) data[i] = i / 1000;
    CHECK_OK(store_create(place->file, &store));
    for (int i = 0; i < NAMES; i++) {
        snprintf(name, sizeof(name), "group/model.layers.%d.weight", i * 7919 % NAMES);
        CHECK_OK(store_write_number(store, name, i));
    }
    CHECK_OK(store_write(store, "chunks", DTYPE_I64, data, COUNT, true));
    CHECK_OK(store_commit(store));
    store_close(store);
    CHECK_OK(store_open(place->file, &store));
    assert_int_equal(store_names(store), NAMES + 2);
    assert_string_equal(store_name(store, 0), "chunks");
    assert_null(store_name(store, 1)); // the group
    assert_null(store_name(store, NAMES + 2));
    for (int i = 0; i < NAMES; i++) {
        snprintf(name, sizeof(name), "group/model.layers.%d.weight", i * 7919 % NAMES);
        CHECK_OK(store_read_number(store, name, &value));
        assert_int_equal(value, i);
    }
    for (int64_t at = 0; at + 3 <= COUNT; at += COUNT / 7) {
        CHECK_OK(store_read(store, "chunks", DTYPE_I64, at, 3, some));
        assert_memory_equal(some, data + at, sizeof(some));
    }
    store_close(store);
    free(data);
}

// Parts of a dataset written in any order, as the pictures of packed data are.
static void test_parts(void **state) {
    place_t *place = *state;
    store_t *store;
    int32_t *back;
    int64_t count;
    CHECK_OK(store_create(place->file, &store));
    CHECK_OK(store_write_part(store, "a/b", DTYPE_I32, 5, 3, 2, (const int32_t[]){30, 40}));
    CHECK_OK(store_write_part(store, "a/b", DTYPE_I32, 5, 0, 3, (const int32_t[]){0, 10, 20}));
    CHECK_OK(store_write_part(store, "none", DTYPE_U8, 0, 0, 0, NULL));
    CHECK_OK(store_commit(store));
    store_close(store);
    CHECK_OK(store_open(place->file, &store));
    CHECK_OK(store_read_all(store, "a/b", DTYPE_I32, (void **)&back, &count));
    assert_int_equal(count, 5);
    for (int i = 0; i < 5; i++) assert_int_equal(back[i], 10 * i);
    free(back);
    CHECK_OK(store_count(store, "none", &count));
    assert_int_equal(count, 0);
    store_close(store);
    CHECK_OK(store_create(place->file, &store));
    CHECK_FAILS(store_write_part(store, "x", DTYPE_I32, 5, 4, 2, (const int32_t[]){1, 2}), "this part of 'x'");
    CHECK_FAILS(store_commit(store), "earlier write");
    store_close(store);
}

static void test_absent(void **state) {
    place_t *place = *state;
    store_t *store;
    CHECK_OK(store_create(place->file, &store));
    CHECK_OK(store_write_number(store, "x", 1));
    CHECK_FAILS(store_write_number(store, "x", 2), "'x'");
    CHECK_FAILS(store_commit(store), "earlier write");
    store_close(store);
    assert_int_equal(count_files(place->folder), 0);
    char missing[320];
    snprintf(missing, sizeof(missing), "%s/no/such/data.h5", place->folder);
    CHECK_FAILS(store_create(missing, &store), "cannot create");
    CHECK_OK(store_create(place->file, &store));
    store_close(store);
    store_close(NULL);
    assert_int_equal(count_files(place->folder), 0);
}

// A disk that is full, played by a limit on the size of files: the old file stays, no temporary file is left.
static void test_full_disk(void **state) {
    place_t *place = *state;
    write_sample(place->file);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {1 << 20, 1 << 20};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        store_t *store;
        static char data[4 << 20];
        status_t status = store_create(place->file, &store);
        if (status) _exit(10);
        status = store_write(store, "big", DTYPE_U8, data, sizeof(data), false);
        status = status_first(status, store_commit(store));
        store_close(store);
        if (!status) _exit(11);
        status_free(status);
        status = file_write_whole(place->file, data, sizeof(data));
        _exit(status ? 0 : 12);
    }
    int code;
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(code, 0);
    assert_int_equal(count_files(place->folder), 1);
    store_t *store;
    CHECK_OK(store_open(place->file, &store));
    store_close(store);
}

static void test_equal_bytes(void **state) {
    place_t *place = *state;
    char *a, *b;
    size_t size_a, size_b;
    write_sample(place->file);
    CHECK_OK(file_read_whole(place->file, 1 << 26, &a, &size_a));
    sleep(1); // a timestamp in the file would show
    write_sample(place->file);
    CHECK_OK(file_read_whole(place->file, 1 << 26, &b, &size_b));
    assert_int_equal(size_a, size_b);
    assert_memory_equal(a, b, size_a);
    free(a), free(b);
}

// A pipe that nobody writes into is not waited for; one with a slow writer is read to its end, up to the limit.
static void test_pipes(const place_t *place) {
    char path[512], *text;
    size_t size;
    int ends[2];
    snprintf(path, sizeof(path), "%s/pipe", place->folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    CHECK_OK(file_read_whole(path, 100, &text, &size));
    assert_int_equal(size, 0);
    free(text);
    unlink(path);
    for (size_t limit = 5; limit < 7; limit++) {
        assert_int_equal(pipe(ends), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (!child) {
            usleep(50000);
            _exit(write(ends[1], "123456", 6) != 6);
        }
        close(ends[1]);
        snprintf(path, sizeof(path), "/dev/fd/%d", ends[0]);
        if (limit == 5) {
            CHECK_FAILS(file_read_whole(path, limit, &text, &size), "larger than the 5");
        } else {
            CHECK_OK(file_read_whole(path, limit, &text, &size));
            assert_int_equal(size, 6);
            assert_string_equal(text, "123456");
            free(text);
        }
        close(ends[0]);
        assert_int_equal(waitpid(child, NULL, 0), child);
    }
}

static void test_files(void **state) {
    place_t *place = *state;
    char path[400], *text;
    size_t size;
    snprintf(path, sizeof(path), "%s/a/b/c", place->folder);
    CHECK_OK(file_make_directory(path));
    CHECK_OK(file_make_directory(path));
    snprintf(path, sizeof(path), "%s/a/b/c/file", place->folder);
    CHECK_OK(file_write_whole(path, "12345", 5));
    CHECK_OK(file_read_whole(path, 5, &text, &size));
    assert_int_equal(size, 5);
    assert_string_equal(text, "12345");
    free(text);
    CHECK_FAILS(file_read_whole(path, 4, &text, &size), "more than the 4");
    CHECK_FAILS(file_make_directory(path), "in the way");
    CHECK_FAILS(file_read_whole(place->folder, 100, &text, &size), "folder");
    CHECK_FAILS(file_read_whole("/dev/zero", 100000, &text, &size), "device");
    CHECK_FAILS(file_read_whole("/no/such", 100, &text, &size), "/no/such");
    CHECK_OK(file_write_whole(path, "", 0));
    CHECK_OK(file_read_whole(path, 4, &text, &size));
    assert_int_equal(size, 0);
    free(text);
    test_pipes(place);
}

static void touch(const char *folder, const char *name) {
    char path[600];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
}

static void test_sweep(void **state) {
    place_t *place = *state;
    char host[64], name[200];
    gethostname(host, sizeof(host));
    for (char *c = host; *c; c++)
        if (*c == '.') *c = '_';
    pid_t dead = fork();
    if (dead == 0) _exit(0);
    waitpid(dead, NULL, 0);
    snprintf(name, sizeof(name), "data.h5.tmp.%s.%d", host, (int)dead);
    touch(place->folder, name); // goes
    pid_t zombie = fork();
    if (zombie == 0) _exit(0);
    siginfo_t information;
    waitid(P_PID, (id_t)zombie, &information, WEXITED | WNOWAIT); // it has ended, nobody has reaped it
    snprintf(name, sizeof(name), "more.h5.tmp.%s.%d", host, (int)zombie);
    touch(place->folder, name); // goes
    snprintf(name, sizeof(name), "data.h5.tmp.%s.%d", host, (int)getpid());
    touch(place->folder, name);                       // stays: alive
    touch(place->folder, "data.h5.tmp.elsewhere.77"); // stays: another host, young
    touch(place->folder, "data.h5");
    touch(place->folder, "notes.tmp");
    touch(place->folder, "a.tmp.b.c");
    store_sweep(place->folder);
    assert_int_equal(count_files(place->folder), 5);
    waitpid(zombie, NULL, 0);
    store_sweep("/no/such/folder");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_torn, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hostile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_endless, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_short_chunk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slices, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_absent, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_equal_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sweep, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
