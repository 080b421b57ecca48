// Weight server and pull: values arrive whole or not at all.
#include "common/wire/weights.h"
#include "common/comm/clock.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

static void check(status_t status) {
    if (status) status_print(status, stderr, -1, true);
    assert_null(status);
}

static void check_kind(status_t status, status_kind_t kind, const char *part) {
    assert_non_null(status);
    if (status_kind(status) != kind || !strstr(status_message(status), part))
        fail_msg("kind %d, \"%s\" where \"%s\" was expected", status_kind(status), status_message(status), part);
    status_free(status);
}

static const link_options_t plain = {.heartbeat_s = 3, .max_message = 8 << 20, .window = 16};

// ---- a model by hand: three parameters (the middle one frozen) and an adapter beside the last ----

enum { PARAMETERS = 3, TRAINED = 4 };
static const char *const names[PARAMETERS] = {"visual.a.weight", "frozen.weight", "language.b.weight"};

typedef struct toy {
    model_t model;
    parameter_spec_t spec[PARAMETERS];
    parameter_t parameter[PARAMETERS];
    adapter_t *adapters[PARAMETERS];
    adapter_t adapter;
    int64_t sum; // only marks what is trained
} toy_t;

static void make_parameter(toy_t *toy, parameter_t *parameter, int rows, int columns, int64_t stride, bool trained) {
    void *data = NULL;
    check(toy->model.device->table->allocate(toy->model.device, (size_t)rows * (size_t)stride * 4, &data));
    parameter->value = matrix_view(data, DTYPE_F32, rows, columns);
    parameter->value.stride = stride;
    parameter->sink.sum = trained ? &toy->sum : NULL;
}

static void fill(const parameter_t *parameter, float seed) {
    float *data = parameter->value.data;
    for (int r = 0; r < parameter->value.rows; r++)
        for (int c = 0; c < parameter->value.columns; c++)
            data[r * parameter->value.stride + c] = seed + (float)(r * parameter->value.columns + c) * 0.5f;
}

static void fill_all(toy_t *toy, float seed) {
    for (int i = 0; i < PARAMETERS; i++) fill(&toy->parameter[i], i == 1 ? 1 : seed + (float)i);
    fill(&toy->adapter.a, seed + 7);
    fill(&toy->adapter.b, seed + 8);
}

// 1,024 x 900 floats: more than three chunks, and none of them aligned with a tensor.
static toy_t *make_toy(device_t *device, int columns, float seed) {
    toy_t *toy = calloc(1, sizeof(*toy));
    model_t *model = &toy->model;
    model->device = device;
    model->parameter_count = PARAMETERS;
    model->spec = toy->spec;
    model->parameter = toy->parameter;
    model->adapter = toy->adapters;
    for (int i = 0; i < PARAMETERS; i++) {
        toy->spec[i].name = (char *)(uintptr_t)names[i];
        toy->spec[i].part = i == 0 ? PART_VISION : PART_LANGUAGE;
    }
    make_parameter(toy, &toy->parameter[0], 1024, columns, columns, true);
    make_parameter(toy, &toy->parameter[1], 5, 3, 3, false);
    make_parameter(toy, &toy->parameter[2], 7, 11, 13, true); // rows with gaps between them
    make_parameter(toy, &toy->adapter.a, 4, 11, 11, true);
    make_parameter(toy, &toy->adapter.b, 7, 4, 4, true);
    toy->adapters[2] = &toy->adapter;
    size_t packed = device->table->packed_bytes(device, toy->parameter[0].value);
    if (packed) check(device->table->allocate(device, packed, &toy->parameter[0].packed));
    model->vision_version = 1;
    fill_all(toy, seed);
    check(model_parameters_changed(model, NULL, 0));
    return toy;
}

static void free_toy(toy_t *toy) {
    device_t *device = toy->model.device;
    for (int i = 0; i < PARAMETERS; i++) {
        device->table->release(device, toy->parameter[i].value.data);
        if (toy->parameter[i].packed) device->table->release(device, toy->parameter[i].packed);
    }
    device->table->release(device, toy->adapter.a.value.data);
    device->table->release(device, toy->adapter.b.value.data);
    free(toy);
}

static uint64_t checksum_of(toy_t *toy) {
    uint64_t manifest = 0, checksum = 0;
    int64_t bytes = 0;
    check(weights_manifest(&toy->model, &manifest, &checksum, &bytes));
    return checksum;
}

static void same_values(const toy_t *a, const toy_t *b) {
    const parameter_t *x[] = {&a->parameter[0], &a->parameter[2], &a->adapter.a, &a->adapter.b};
    const parameter_t *y[] = {&b->parameter[0], &b->parameter[2], &b->adapter.a, &b->adapter.b};
    for (int i = 0; i < TRAINED; i++)
        for (int r = 0; r < x[i]->value.rows; r++)
            assert_memory_equal((float *)x[i]->value.data + r * x[i]->value.stride,
                                (float *)y[i]->value.data + r * y[i]->value.stride, (size_t)x[i]->value.columns * 4);
}

static device_t *open_device(void) {
    device_t *device = NULL;
    check(device_open("cpu", 1, &device));
    return device;
}

static void test_publish_and_pull(void **state) {
    (void)state;
    device_t *device = open_device();
    toy_t *learner = make_toy(device, 900, 3), *worker = make_toy(device, 900, 50);
    weight_server_t *server = NULL;
    message_weights_t one, two, three;
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", 2, &server));
    check(weight_server_publish(server, &learner->model, 1, &one));
    assert_int_equal(one.bytes, (1024 * 900 + 7 * 11 + 4 * 11 + 7 * 4) * 4);
    assert_true(one.bytes > 3 * one.chunk_bytes);
    assert_int_equal(one.checksum, checksum_of(learner));
    int64_t vision_before = worker->model.vision_version;
    learner->model.vision_version = 41;
    fill_all(learner, 9); // a published version is not the model any more
    check(weights_pull(&one, &plain, "rollout-0", &worker->model, 10));
    assert_int_equal(checksum_of(worker), one.checksum);
    assert_int_equal(worker->model.version, 1);
    assert_int_equal(worker->model.vision_version, one.vision_version);
    assert_true(vision_before != 41);
    check(weight_server_publish(server, &learner->model, 2, &two));
    assert_int_equal(two.manifest, one.manifest);
    assert_true(two.checksum != one.checksum);
    check(weights_pull(&two, &plain, "rollout-0", &worker->model, 10)); // the same name again
    same_values(learner, worker);
    assert_int_equal(worker->model.version, 2);
    assert_int_equal(worker->model.vision_version, 41);
    size_t packed = device->table->packed_bytes(device, learner->parameter[0].value);
    if (packed) { // the packed form follows the values
        check(model_parameters_changed(&learner->model, NULL, 2));
        assert_memory_equal(learner->parameter[0].packed, worker->parameter[0].packed, packed);
    }
    // Two are kept.
    const void *bytes = NULL;
    size_t size = 0;
    check(weight_server_snapshot(server, 1, &bytes, &size));
    assert_int_equal(XXH3_64bits(bytes, size), one.checksum);
    check(weight_server_publish(server, &learner->model, 3, &three));
    check_kind(weight_server_snapshot(server, 1, &bytes, &size), STATUS_INVALID, "not held");
    uint64_t before = checksum_of(worker);
    check_kind(weights_pull(&one, &plain, "rollout-0", &worker->model, 10), STATUS_PEER, "held are 2 .. 3");
    assert_int_equal(checksum_of(worker), before);
    message_weights_t again;
    check_kind(weight_server_publish(server, &learner->model, 3, &again), STATUS_FAILED, "after version 3");
    weight_server_close(server);
    check_kind(weights_pull(&three, &plain, "rollout-0", &worker->model, 0.4), STATUS_TIMEOUT, "pulling weights");
    free_toy(learner);
    free_toy(worker);
    device_close(device);
}

static void test_refused(void **state) {
    (void)state;
    device_t *device = open_device();
    toy_t *learner = make_toy(device, 900, 3), *worker = make_toy(device, 900, 50), *other = make_toy(device, 901, 50);
    weight_server_t *server = NULL;
    message_weights_t announced, lie;
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", 1, &server));
    check(weight_server_publish(server, &learner->model, 1, &announced));
    uint64_t before = checksum_of(worker);
    lie = announced;
    lie.checksum++;
    check_kind(weights_pull(&lie, &plain, "w", &worker->model, 10), STATUS_PEER, "checksum");
    lie = announced;
    lie.manifest++;
    check_kind(weights_pull(&lie, &plain, "w", &worker->model, 10), STATUS_PEER, "trained tensors");
    lie = announced;
    lie.chunk_bytes /= 2;
    check_kind(weights_pull(&lie, &plain, "w", &worker->model, 10), STATUS_PEER, "chunk 0");
    lie.chunk_bytes = 0;
    check_kind(weights_pull(&lie, &plain, "w", &worker->model, 10), STATUS_PEER, "0 bytes");
    check_kind(weights_pull(&announced, &plain, "w", &other->model, 10), STATUS_PEER, "trained tensors");
    assert_int_equal(checksum_of(worker), before);
    assert_int_equal(worker->model.version, 0);
    // The same shapes under another name are another set of tensors.
    worker->spec[0].name = (char *)(uintptr_t) "visual.z.weight";
    check_kind(weights_pull(&announced, &plain, "w", &worker->model, 10), STATUS_PEER, "trained tensors");
    // Something else than PULL gets its sender dropped, and nobody else.
    link_t *link = NULL;
    link_buffer_t hello = {0}, message = {0};
    check(memory_copy_string("?", (char **)&hello.data));
    check(link_open(announced.endpoint, "odd", hello, 5, &plain, &link));
    check(memory_copy_string("\x80", (char **)&message.data));
    message.size = 1;
    check(link_send(link, message, 1));
    check_kind(link_receive(link, 5, &message), STATUS_PEER, "schema");
    link_close(link);
    worker->spec[0].name = (char *)(uintptr_t)names[0];
    check(weights_pull(&announced, &plain, "w", &worker->model, 10));
    weight_server_close(server);
    check_kind(weight_server_open(&plain, "tcp://127.0.0.1:*", 0, &server), STATUS_INVALID, "at least one");
    free_toy(learner);
    free_toy(worker);
    free_toy(other);
    device_close(device);
}

static void test_restore(void **state) {
    (void)state;
    device_t *device = open_device();
    toy_t *learner = make_toy(device, 30, 3), *worker = make_toy(device, 30, 50);
    weight_server_t *server = NULL;
    message_weights_t first, restored;
    const void *bytes = NULL;
    size_t size = 0;
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", 2, &server));
    check(weight_server_publish(server, &learner->model, 5, &first));
    check(weight_server_snapshot(server, 5, &bytes, &size));
    void *saved = malloc(size), *wrong = malloc(size);
    memcpy(saved, bytes, size);
    weight_server_close(server);
    fill_all(learner, 100);
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", 2, &server));
    check_kind(weight_server_restore(server, &learner->model, 5, wrong, size - 4, &restored), STATUS_INVALID, "resume");
    check(weight_server_restore(server, &learner->model, 5, saved, size, &restored));
    assert_int_equal(restored.checksum, first.checksum);
    assert_int_equal(restored.manifest, first.manifest);
    check(weights_pull(&restored, &plain, "w", &worker->model, 10));
    assert_int_equal(checksum_of(worker), first.checksum);
    weight_server_close(server);
    // A model that trains nothing has a version too.
    for (int i = 0; i < PARAMETERS; i++) learner->parameter[i].sink.sum = worker->parameter[i].sink.sum = NULL;
    learner->adapters[2] = worker->adapters[2] = NULL;
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", 2, &server));
    check(weight_server_publish(server, &learner->model, 6, &first));
    assert_int_equal(first.bytes, 0);
    check(weights_pull(&first, &plain, "w", &worker->model, 10));
    assert_int_equal(worker->model.version, 6);
    weight_server_close(server);
    free_toy(learner);
    free_toy(worker);
    device_close(device);
}

// ---- several workers pull while the learner goes on publishing ----

typedef struct puller {
    message_weights_t announced;
    char name[32];
    atomic_int failed;
} puller_t;

static void *pull_thread(void *argument) {
    puller_t *puller = argument;
    device_t *device = NULL;
    status_t status = device_open("cpu", 1, &device);
    if (status) {
        status_print(status, stderr, -1, true);
        status_free(status);
        puller->failed = 1;
        return NULL;
    }
    toy_t *toy = make_toy(device, 900, 1);
    status = weights_pull(&puller->announced, &plain, puller->name, &toy->model, 20);
    if (status || checksum_of(toy) != puller->announced.checksum) puller->failed = 1;
    if (status) status_print(status, stderr, -1, true);
    status_free(status);
    free_toy(toy);
    device_close(device);
    return NULL;
}

static void test_many(void **state) {
    (void)state;
    enum { PULLERS = 4 };
    device_t *device = open_device();
    toy_t *learner = make_toy(device, 900, 3);
    weight_server_t *server = NULL;
    puller_t puller[PULLERS] = {0};
    pthread_t thread[PULLERS];
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", PULLERS + 1, &server));
    for (int i = 0; i < PULLERS; i++) {
        fill_all(learner, (float)(100 * i));
        check(weight_server_publish(server, &learner->model, i + 1, &puller[i].announced));
        snprintf(puller[i].name, sizeof(puller[i].name), "rollout-%d", i);
        pthread_create(&thread[i], NULL, pull_thread, &puller[i]);
    }
    message_weights_t last;
    check(weight_server_publish(server, &learner->model, PULLERS + 1, &last));
    for (int i = 0; i < PULLERS; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(puller[i].failed, 0);
    }
    weight_server_close(server);
    free_toy(learner);
    device_close(device);
}

// A peer that asks and never takes is dropped before its answers fill the memory; others are served.
static void test_greedy(void **state) {
    (void)state;
    device_t *device = open_device();
    toy_t *learner = make_toy(device, 900, 3), *worker = make_toy(device, 900, 1);
    weight_server_t *server = NULL;
    message_weights_t announced;
    check(weight_server_open(&plain, "tcp://127.0.0.1:*", 1, &server));
    check(weight_server_publish(server, &learner->model, 1, &announced));
    message_t message = {.type = MESSAGE_HELLO};
    link_buffer_t buffer;
    link_t *greedy;
    check(message_pack(&message, &buffer));
    check(link_open(announced.endpoint, "greedy", buffer, 20, &plain, &greedy));
    message = (message_t){.type = MESSAGE_PULL, .pull = {.version = 1}};
    status_t status = STATUS_OK;
    int asked = 0;
    for (; !status && asked < 2000; asked++) {
        check(message_pack(&message, &buffer));
        status = link_send(greedy, buffer, 20);
    }
    check_kind(status, STATUS_PEER, "more chunks than it takes");
    link_close(greedy);
    check(weights_pull(&announced, &plain, "modest", &worker->model, 20));
    weight_server_close(server);
    free_toy(learner);
    free_toy(worker);
    device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_publish_and_pull), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_restore),          cmocka_unit_test(test_many),
        cmocka_unit_test(test_greedy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
