// The stand-ins of the CUDA runtime: what a GPU does late, they do late, and misuse that a GPU may forgive fails with a
// message. Each case of misuse also shows that the right use passes.
#include "kernels/cuda/cuda_device.h"
#include "kernels/device.h"
#include "kernels/sim/sim_runtime.h"
#include "kernels/streams.h"
#include "tests/sim/faults.h"
#include "tests/sim/sim.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { NUMBERS = 1024, BYTES = NUMBERS * (int)sizeof(float) };

static void good(cudaError_t error) {
    if (error != cudaSuccess) fail_msg("%s", cudaGetErrorString(error));
}

static void bad(cudaError_t error, const char *what) {
    if (error == cudaSuccess) fail_msg("it should fail with '%s'", what);
    if (!strstr(cudaGetErrorString(error), what))
        fail_msg("the message should say '%s': %s", what, cudaGetErrorString(error));
}

static void launched(status_t status) {
    if (status) fail_msg("%s", status_message(status));
}

static cudaStream_t open_stream(void) {
    cudaStream_t stream;
    sim_runtime_reset();
    good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static void *device_numbers(cudaStream_t stream) {
    void *out;
    float host[NUMBERS];
    for (int i = 0; i < NUMBERS; i++) host[i] = (float)i;
    good(cudaMalloc(&out, BYTES));
    good(cudaMemcpyAsync(out, host, BYTES, cudaMemcpyHostToDevice, stream));
    memset(host, 0, sizeof(host)); // pageable memory has been read when the call returns
    return out;
}

// Nothing happens before somebody waits.
void test_runtime_deferred(void **state) {
    (void)state;
    cudaStream_t stream = open_stream();
    void *in = device_numbers(stream), *out, *pinned;
    good(cudaMalloc(&out, BYTES));
    good(cudaMallocHost(&pinned, BYTES));
    launched(fault_run("sum", (fault_args_t){.out = out, .in = in, .stream = stream}));
    good(cudaMemcpyAsync(pinned, out, BYTES, cudaMemcpyDeviceToHost, stream));
    const unsigned char *early = pinned;
    for (int i = 0; i < BYTES; i++) assert_int_equal(early[i], 0xff);
    assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
    good(cudaStreamSynchronize(stream));
    good(cudaStreamQuery(stream));
    assert_true(*(float *)pinned == 2016.0f);                 // 0 + 1 + ... + 63
    assert_true(((float *)pinned)[64] == 6112.0f);            // 64 + ... + 127
    assert_int_equal(((uint32_t *)pinned)[128], 0xffffffffu); // new memory holds 0xff
    good(cudaFree(in));
    good(cudaFree(out));
    good(cudaFreeHost(pinned));
    good(cudaStreamDestroy(stream));
}

// A copy from pinned memory reads late: its source has to stay as it is.
void test_runtime_pinned(void **state) {
    (void)state;
    cudaStream_t stream = open_stream();
    void *memory, *pinned;
    float back[4];
    good(cudaMalloc(&memory, BYTES));
    good(cudaMallocHost(&pinned, BYTES));
    for (int early = 0; early < 2; early++) {
        for (int i = 0; i < NUMBERS; i++) ((float *)pinned)[i] = 3.0f;
        good(cudaMemcpyAsync(memory, pinned, BYTES, cudaMemcpyHostToDevice, stream));
        if (early) ((float *)pinned)[NUMBERS - 1] = 4.0f;
        if (early)
            bad(cudaStreamSynchronize(stream), "was changed before the copy ran");
        else
            good(cudaStreamSynchronize(stream));
    }
    bad(cudaMemcpyAsync(back, memory, sizeof(back), cudaMemcpyDeviceToHost, stream), "was changed"); // it stays
    sim_runtime_reset();
    good(cudaMemcpyAsync(back, memory, sizeof(back), cudaMemcpyDeviceToHost, stream)); // pageable: whole at once
    assert_true(back[0] == 3.0f);
    good(cudaFree(memory));
    good(cudaFreeHost(pinned));
    good(cudaStreamDestroy(stream));
}

// Streams know nothing of each other but by events.
void test_runtime_events(void **state) {
    (void)state;
    cudaStream_t first = open_stream(), second;
    cudaEvent_t event;
    void *memory, *seen;
    good(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    good(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    good(cudaMalloc(&memory, 4));
    good(cudaMallocHost(&seen, 4));
    for (int waits = 0; waits < 2; waits++) {
        good(cudaMemsetAsync(memory, 1, 4, first));
        good(cudaStreamSynchronize(first));
        good(cudaMemsetAsync(memory, 2, 4, first));
        good(cudaEventRecord(event, first));
        good(cudaMemsetAsync(memory, 3, 4, first));
        assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
        if (waits) good(cudaStreamWaitEvent(second, event, 0));
        good(cudaMemcpyAsync(seen, memory, 4, cudaMemcpyDeviceToHost, second));
        good(cudaStreamSynchronize(second));
        assert_int_equal(*(unsigned char *)seen, waits ? 2 : 1);
        good(cudaEventSynchronize(event));
        good(cudaEventQuery(event));
        assert_int_equal(cudaStreamQuery(first), cudaErrorNotReady); // what follows the event still waits
        good(cudaDeviceSynchronize());
    }
    good(cudaFree(memory));
    good(cudaFreeHost(seen));
    good(cudaEventDestroy(event));
    good(cudaStreamDestroy(first));
    good(cudaStreamDestroy(second));
}

// Times lie between records that have been come to, of events that were made to have them.
void test_runtime_event_times(void **state) {
    (void)state;
    cudaStream_t stream;
    cudaEvent_t from, to, untimed;
    float milliseconds = -1.0f;
    good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    good(cudaEventCreateWithFlags(&from, cudaEventDefault));
    good(cudaEventCreateWithFlags(&to, cudaEventDefault));
    good(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
    good(cudaEventRecord(from, stream));
    assert_int_equal(cudaEventElapsedTime(&milliseconds, from, to), SIM_CUDA_INVALID_HANDLE); // `to` was never recorded
    good(cudaEventRecord(to, stream));
    good(cudaEventRecord(untimed, stream));
    assert_int_equal(cudaEventElapsedTime(&milliseconds, from, to), cudaErrorNotReady);
    good(cudaStreamSynchronize(stream));
    good(cudaEventElapsedTime(&milliseconds, from, to));
    assert_true(milliseconds >= 0.0f);
    assert_int_equal(cudaEventElapsedTime(&milliseconds, from, untimed), SIM_CUDA_INVALID_HANDLE);
    good(cudaEventDestroy(from));
    good(cudaEventDestroy(to));
    good(cudaEventDestroy(untimed));
    good(cudaStreamDestroy(stream));
}

// The launch fails when it is waited for, says `what` and names the line.
static void caught(cudaStream_t stream, const char *mark, const char *what) {
    char place[64];
    snprintf(place, sizeof(place), "faults.cu:%d", line_of(mark));
    bad(cudaStreamSynchronize(stream), what);
    printf("  %s\n", cudaGetErrorString(cudaErrorIllegalAddress));
    bad(cudaStreamSynchronize(stream), place);
    bad(cudaMemsetAsync(NULL, 0, 4, stream), place); // every later call fails
    sim_runtime_reset();
}

void test_runtime_kernels(void **state) {
    (void)state;
    cudaStream_t stream = open_stream();
    void *in = device_numbers(stream), *large, *exact;
    float host[NUMBERS + 1];
    good(cudaMalloc(&large, BYTES + 4));
    good(cudaMalloc(&exact, BYTES));
    launched(fault_run("heap", (fault_args_t){.out = large, .stream = stream})); // element 1024
    launched(fault_run("copy, right", (fault_args_t){.out = exact, .in = in, .stream = stream}));
    good(cudaStreamSynchronize(stream));
    launched(fault_run("heap", (fault_args_t){.out = exact, .stream = stream}));
    caught(stream, "heap", "writes 4 bytes of byte 4096 of an allocation of 4096 bytes");
    launched(fault_run("heap", (fault_args_t){.out = host, .stream = stream}));
    caught(stream, "heap", "of host memory");
    launched(fault_run("removed barrier", (fault_args_t){.out = exact, .in = host, .stream = stream}));
    bad(cudaStreamSynchronize(stream), "reads 4 bytes of host memory");
    sim_runtime_reset();
    good(cudaFree(large));
    launched(fault_run("heap", (fault_args_t){.out = large, .stream = stream}));
    caught(stream, "heap", "of a freed allocation of 4100 bytes");
    launched(fault_run("copy, right", (fault_args_t){.out = exact, .in = large, .stream = stream}));
    bad(cudaStreamSynchronize(stream), "reads 16 bytes of byte 0 of a freed allocation"); // by cp.async
    sim_runtime_reset();
    status_t status = fault_run("large block", (fault_args_t){.out = exact, .stream = stream});
    assert_non_null(status); // at the launch
    status_free(status);
    good(cudaFree(in));
    good(cudaFree(exact));
    good(cudaStreamDestroy(stream));
}

void test_runtime_copies(void **state) {
    (void)state;
    cudaStream_t stream = open_stream();
    void *memory, *other;
    static char host[BYTES];
    good(cudaMalloc(&memory, BYTES));
    bad(cudaMemcpyAsync(memory, host, BYTES + 1, cudaMemcpyHostToDevice, stream), "do not fit its target");
    bad(cudaMemcpyAsync((char *)memory + 8, host, BYTES, cudaMemcpyHostToDevice, stream), "do not fit its target");
    bad(cudaMemcpyAsync(host, memory, BYTES, cudaMemcpyHostToDevice, stream), "host memory");
    bad(cudaMemcpyAsync(host, host, BYTES, cudaMemcpyDeviceToHost, stream), "its source, which is host memory");
    bad(cudaMemcpyAsync(memory, memory, 8, cudaMemcpyHostToDevice, stream), "says that the source is host memory");
    bad(cudaMemsetAsync(host, 0, 8, stream), "host memory");
    bad(cudaMemsetAsync(memory, 0, BYTES + 1, stream), "byte 0 of an allocation of 4096 bytes");
    bad(cudaFree(host), "host memory");
    bad(cudaFree((char *)memory + 8), "byte 8 of an allocation");
    bad(cudaFreeHost(host), "did not give");
    good(cudaMemsetAsync(memory, 7, BYTES, stream));
    good(cudaMemcpyAsync(host, memory, BYTES, cudaMemcpyDefault, stream));
    assert_int_equal(host[BYTES - 1], 7);
    good(cudaFree(memory));
    bad(cudaFree(memory), "a freed allocation");
    bad(cudaMemcpyAsync(host, memory, 8, cudaMemcpyDeviceToHost, stream), "a freed allocation");
    sim_runtime_set_memory(1 << 20);
    bad(cudaMalloc(&other, (1 << 20) + 1), "out of memory");
    sim_runtime_set_memory((size_t)16 << 30);
    good(cudaStreamDestroy(stream));
    bad(cudaStreamSynchronize(stream), "no stream");
}

// A child reads through a device pointer: it dies of it, and says of what.
void test_runtime_host_access(void **state) {
    (void)state;
    cudaStream_t stream = open_stream();
    void *memory = device_numbers(stream);
    char said[512] = "";
    int ends[2], code = 0;
    good(cudaStreamSynchronize(stream));
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        sim_runtime_end_plainly(); // cmocka's handler would go on with its tests
        dup2(ends[1], STDERR_FILENO);
        _exit((int)((volatile float *)memory)[3]);
    }
    close(ends[1]);
    ssize_t length = read(ends[0], said, sizeof(said) - 1);
    close(ends[0]);
    assert_int_equal(waitpid(child, &code, 0), child);
    if (!WIFSIGNALED(code) || WTERMSIG(code) != SIGSEGV) fail_msg("the host may read device memory (%d)", code);
    if (length < 1 || !strstr(said, "the host touches byte 12 of an allocation of 4096 bytes"))
        fail_msg("the message is '%s'", said);
    good(cudaFree(memory));
    good(cudaStreamDestroy(stream));
}

void test_runtime_leaks(void **state) {
    (void)state;
    cudaStream_t stream = open_stream();
    void *memory = device_numbers(stream), *pinned;
    good(cudaMallocHost(&pinned, 8));
    good(cudaStreamDestroy(stream));
    assert_int_equal(sim_runtime_leaks(), 2);
    good(cudaFree(memory));
    good(cudaFreeHost(pinned));
    stream = open_stream();
    good(cudaStreamDestroy(stream));
    assert_int_equal(sim_runtime_leaks(), 0);
}

// Uploads in the stream of copies: an op called after one sees it though nobody has waited, and what is under way keeps
// what it had.
void test_runtime_beside(void **state) {
    (void)state;
    enum { ROWS = 5, COLUMNS = 1 << 17 };
    device_t *device;
    void *table_memory, *more, *token, *out;
    sim_runtime_reset();
    launched(device_open_table(&device_sim_table, "", 1, &device));
    const device_table_t *table = device->table;
    size_t bytes = (size_t)ROWS * COLUMNS * sizeof(float);
    float *host = malloc(bytes);
    assert_non_null(host);
    launched(table->allocate(device, bytes, &table_memory));
    launched(table->allocate(device, bytes, &more));
    launched(table->allocate(device, 2 * sizeof(int32_t), &token));
    launched(table->allocate(device, 2 * COLUMNS * sizeof(float), &out));
    assert_false(table->streams->idle(device));
    launched(table->synchronize(device));
    assert_true(table->streams->idle(device));
    int32_t index[2] = {ROWS - 1, 1}; // the last row is under way when the op is called
    for (int i = 0; i < ROWS * COLUMNS; i++) host[i] = (float)i;
    launched(table->streams->upload(device, token, index, sizeof(index)));
    assert_false(table->streams->idle(device));
    launched(table->streams->upload(device, table_memory, host, bytes));
    embedding_args_t args = {.token = token,
                             .table = matrix_view(table_memory, DTYPE_F32, ROWS, COLUMNS),
                             .scale = 1.0f,
                             .y = matrix_view(out, DTYPE_F32, 2, COLUMNS)};
    launched(table->embedding(device, &args));
    memset(host, 0, bytes); // the source is the caller's again
    for (int turn = 0; turn < 2; turn++) {
        launched(table->download(device, host, out, 2 * COLUMNS * sizeof(float)));
        assert_true(table->streams->idle(device));
        for (int i = 0; i < 2 * COLUMNS; i++)
            if (host[i] != (float)(index[i / COLUMNS] * COLUMNS + i % COLUMNS)) fail_msg("number %d is %g", i, host[i]);
        // Once more, with other memory filled beside the op.
        launched(table->embedding(device, &args));
        launched(table->streams->upload(device, more, host, bytes));
    }
    void *memory[] = {table_memory, more, token, out};
    for (int i = 0; i < 4; i++) table->release(device, memory[i]);
    free(host);
    device_close(device);
    assert_int_equal(sim_runtime_leaks(), 0);
}

// The member's host side: uploads of more than its pinned memory, an index out of range, and nothing left behind.
void test_runtime_device(void **state) {
    (void)state;
    enum { LARGE = 9 << 20 };
    device_t *device;
    void *memory, *token;
    sim_runtime_reset();
    status_t status = device_open_table(&device_sim_table, "sideways", 1, &device);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "sim:sideways"));
    status_free(status);
    launched(device_open_table(&device_sim_table, "", 1, &device));
    const device_table_t *table = device->table;
    uint32_t *host = malloc(LARGE);
    assert_non_null(host);
    launched(table->allocate(device, LARGE, &memory));
    launched(table->download(device, host, memory, LARGE));
    for (int i = 0; i < LARGE / 4; i++) assert_int_equal(host[i], 0);
    for (uint32_t i = 0; i < LARGE / 4; i++) host[i] = i;
    launched(table->upload(device, memory, host, LARGE));
    memset(host, 0, LARGE);
    launched(table->download(device, host, memory, LARGE));
    for (uint32_t i = 0; i < LARGE / 4; i++) assert_int_equal(host[i], i);
    int32_t wrong = 5, right = 4;
    launched(table->allocate(device, 4, &token));
    embedding_args_t args = {.token = token,
                             .table = matrix_view(memory, DTYPE_F32, 5, 8),
                             .scale = 1.0f,
                             .y = matrix_view((float *)memory + 64, DTYPE_F32, 1, 8)};
    launched(table->upload(device, token, &wrong, 4));
    launched(table->embedding(device, &args));
    status = table->synchronize(device);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "embedding: an index is out of range"));
    status_free(status);
    launched(table->upload(device, token, &right, 4));
    launched(table->embedding(device, &args));
    launched(table->download(device, host, (float *)memory + 64, 32));
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(host[i], 32 + i);
    // A fault of a kernel is told as what it is, not as memory that is short.
    launched(fault_run("heap", (fault_args_t){.out = (float *)host, .stream = cuda_stream(device)}));
    status = table->synchronize(device);
    assert_non_null(status);
    status_free(status);
    void *other = memory;
    status = table->allocate(device, 64, &other);
    assert_non_null(status);
    assert_null(other);
    assert_int_equal(status_kind(status), STATUS_FAILED);
    assert_non_null(strstr(status_message(status), "of host memory"));
    status_free(status);
    sim_runtime_reset();
    table->release(device, token);
    table->release(device, memory);
    free(host);
    device_close(device);
    assert_int_equal(sim_runtime_leaks(), 0);
    assert_int_equal(sim_runtime_live(), 0);
}

// ---- capture ----

static cudaStream_t captured(void) {
    cudaStream_t stream = open_stream();
    good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    return stream;
}

// The capture that a forbidden call has spoilt leaves no graph, and the stream goes on as before.
static void spoilt(cudaStream_t stream) {
    cudaGraph_t graph;
    bad(cudaStreamEndCapture(stream, &graph), "spoilt");
    assert_null(graph);
    good(cudaStreamSynchronize(stream));
    good(cudaStreamDestroy(stream));
}

// Replays take what lies in memory when they run; what was captured has not run before.
static void captured_replays(void) {
    cudaStream_t stream = open_stream();
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    float *in = device_numbers(stream), *out, *pinned, host[NUMBERS];
    good(cudaMalloc((void **)&out, BYTES));
    good(cudaMemsetAsync(out, 0, BYTES, stream));
    good(cudaMallocHost((void **)&pinned, BYTES));
    good(cudaStreamSynchronize(stream));
    good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launched(fault_run("sum", (fault_args_t){.out = out, .in = in, .stream = stream}));
    good(cudaMemcpyAsync(pinned, out, BYTES, cudaMemcpyDeviceToHost, stream));
    good(cudaStreamEndCapture(stream, &graph));
    good(cudaGraphInstantiateWithFlags(&executable, graph, 0));
    good(cudaGraphDestroy(graph));
    good(cudaMemcpyAsync(host, out, BYTES, cudaMemcpyDeviceToHost, stream));
    assert_true(host[0] == 0.0f);
    good(cudaGraphLaunch(executable, stream));
    good(cudaStreamSynchronize(stream));
    assert_true(pinned[0] == 2016.0f);
    for (int i = 0; i < NUMBERS; i++) host[i] = 1.0f;
    good(cudaMemcpyAsync(in, host, BYTES, cudaMemcpyHostToDevice, stream));
    good(cudaGraphLaunch(executable, stream));
    good(cudaStreamSynchronize(stream));
    assert_true(pinned[0] == 64.0f);
    good(cudaFree(in)); // the graph still names it
    good(cudaGraphLaunch(executable, stream));
    bad(cudaStreamSynchronize(stream), "freed");
    sim_runtime_reset();
    good(cudaGraphExecDestroy(executable));
    good(cudaFree(out));
    good(cudaFreeHost(pinned));
    good(cudaStreamDestroy(stream));
}

void test_runtime_capture(void **state) {
    (void)state;
    void *memory = NULL;
    float host[4] = {0};
    cudaEvent_t event;
    cudaStream_t stream = open_stream();
    void *device = device_numbers(stream);
    good(cudaStreamSynchronize(stream));
    captured_replays();
    good(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    cudaStream_t one = captured();
    bad(cudaMalloc(&memory, 64), "cudaMalloc while a stream is captured");
    spoilt(one);
    one = captured();
    bad(cudaMallocHost(&memory, 64), "cudaMallocHost while");
    spoilt(one);
    one = captured();
    bad(cudaFree(device), "cudaFree while");
    spoilt(one);
    one = captured();
    bad(cudaStreamSynchronize(one), "cudaStreamSynchronize while");
    spoilt(one);
    one = captured();
    bad(cudaDeviceSynchronize(), "cudaDeviceSynchronize while");
    spoilt(one);
    one = captured();
    bad(cudaEventQuery(event), "cudaEventQuery while");
    spoilt(one);
    one = captured();
    bad(cudaMemcpyAsync(device, host, sizeof(host), cudaMemcpyHostToDevice, one), "pageable memory while");
    spoilt(one);
    one = captured();
    bad(cudaMemcpyAsync(host, device, sizeof(host), cudaMemcpyDeviceToHost, one), "pageable memory while");
    spoilt(one);
    one = captured();
    bad(cudaMemsetAsync(device, 0, 4, NULL), "default stream");
    cudaGraph_t graph;
    good(cudaStreamEndCapture(one, &graph));
    good(cudaGraphDestroy(graph));
    good(cudaStreamDestroy(one));
    good(cudaEventDestroy(event));
    good(cudaFree(device));
    good(cudaStreamDestroy(stream));
}
