// Streams, events and copies of the simulated device. Each stream is a list of what is still to be done; nothing of it
// happens before somebody waits. One lock guards all: one host thread at a time is inside.
#include "kernels/sim/memory.h"
#include "kernels/sim/sim_runtime.h"
#include "kernels/sim/state.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FILLED_BYTES = 65536 }; // of new pinned memory hold 0xff

typedef enum task_kind { TASK_LAUNCH, TASK_COPY, TASK_SET, TASK_RECORD, TASK_WAIT, TASK_STEP } task_kind_t;

typedef struct task {
    struct task *next;
    task_kind_t kind;
    sim_launch_t launch;
    void *to;
    const void *from;
    size_t bytes;
    int value;
    uint64_t check; // of what lies at `from`, where that is pinned memory
    bool checked;
    struct sim_cuda_event *event;
    uint64_t serial; // of the event's record
    sim_step_t step;
    void *context;
    size_t data_bytes;
    max_align_t data[]; // the launch's arguments, or what is copied from pageable memory
} task_t;

struct sim_cuda_graph {
    task_t *first, **last;
    bool invalid; // something that cannot be captured was called meanwhile
};

struct sim_cuda_stream {
    struct sim_cuda_stream *next;
    task_t *first, **last;
    struct sim_cuda_graph *capture; // what is put into the stream goes here
    pthread_t capturer;
    sim_order_t order;
    uint64_t seed;
    bool runs; // one of its tasks is under way
};

struct sim_cuda_event {
    struct sim_cuda_event *next;
    struct sim_cuda_stream *stream; // where it was last recorded, or NULL
    uint64_t recorded, reached;
    uint64_t asked; // the record that cudaEventQuery has said once is not there yet
    unsigned flags;
    double at; // seconds, when it was reached
};

typedef struct pinned {
    struct pinned *next;
    size_t bytes;
    max_align_t memory[];
} pinned_t;

static struct {
    pthread_mutex_t lock;
    struct sim_cuda_stream *streams;
    struct sim_cuda_event *events;
    pinned_t *pinned;
    size_t pinned_count, leaks, allocations, graphs, launched_graphs, most_bytes;
    uint64_t serial;
    char *fault; // the first one; stays
    int depth;   // of run_until
    bool opened; // kernels may use device memory
} runtime = {.lock = PTHREAD_MUTEX_INITIALIZER};
static __thread char said[1024];
static __thread sim_cuda_error_t last_error;
static __thread int chosen; // device

// ---- errors ----

static sim_cuda_error_t fail(sim_cuda_error_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
static sim_cuda_error_t fail(sim_cuda_error_t error, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(said, sizeof(said), format, list);
    va_end(list);
    return last_error = error;
}

static sim_cuda_error_t enter(void) {
    pthread_mutex_lock(&runtime.lock);
    return runtime.fault ? fail(SIM_CUDA_ILLEGAL_ADDRESS, "%s", runtime.fault) : SIM_CUDA_SUCCESS;
}

static sim_cuda_error_t leave(sim_cuda_error_t error) {
    pthread_mutex_unlock(&runtime.lock);
    return error;
}

static void fault(const char *text) {
    if (!runtime.fault) runtime.fault = strdup(text);
}

sim_cuda_error_t sim_cuda_get_last_error(void) {
    sim_cuda_error_t error = last_error;
    last_error = SIM_CUDA_SUCCESS;
    return error;
}

const char *sim_cuda_get_error_string(sim_cuda_error_t error) {
    return error == SIM_CUDA_SUCCESS ? "no error" : error == SIM_CUDA_NOT_READY ? "not ready" : said;
}

// ---- running what waits ----

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// FNV-1a, of words as far as there are any.
static uint64_t check_of(const void *memory, size_t bytes) {
    const unsigned char *at = memory;
    uint64_t hash = 0xcbf29ce484222325u, word;
    size_t i = 0;
    for (; i + sizeof(word) <= bytes; i += sizeof(word)) {
        memcpy(&word, at + i, sizeof(word));
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    for (; i < bytes; i++) hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

static void run_until(struct sim_cuda_stream *stream, const struct sim_cuda_event *event, uint64_t serial, bool waits);

// False: it is not done yet, and `waits` says that nobody waits for it.
static bool task_run(struct sim_cuda_stream *stream, task_t *task, bool waits) {
    status_t status = STATUS_OK;
    bool done = true;
    switch (task->kind) {
    case TASK_LAUNCH:
        sim_set_order(stream->order, stream->seed);
        if (!runtime.opened) sim_memory_unlock(); // until everything that is asked for has run
        runtime.opened = true;
        status = sim_run(&task->launch);
        break;
    case TASK_COPY:
        if (task->checked && check_of(task->from, task->bytes) != task->check)
            status = STATUS_NEW(STATUS_FAILED,
                                "the source of an asynchronous copy of %zu bytes was changed before the copy ran",
                                task->bytes);
        else
            memmove(sim_memory_view(task->to), sim_memory_view(task->from), task->bytes);
        break;
    case TASK_SET:
        memset(sim_memory_view(task->to), task->value, task->bytes);
        break;
    case TASK_RECORD:
        if (task->event->reached < task->serial) task->event->reached = task->serial;
        task->event->at = seconds_now();
        break;
    case TASK_WAIT:
        if (task->event->reached < task->serial && task->event->stream)
            run_until(task->event->stream, task->event, task->serial, waits);
        done = task->event->reached >= task->serial || !task->event->stream || task->event->stream->runs;
        break;
    case TASK_STEP:
        do {
            status = task->step(task->context, &done);
        } while (!status && !done && waits);
        break;
    }
    if (status) fault(status_message(status));
    done = done || status;
    status_free(status);
    return done;
}

// Runs a stream's tasks up to the event's record, or (NULL) all of them. After a fault they are dropped. waits: until
// they are done, not only as far as they go.
static void run_until(struct sim_cuda_stream *stream, const struct sim_cuda_event *event, uint64_t serial, bool waits) {
    if (stream->runs) return; // two streams that wait for each other's past
    runtime.depth++;
    while (stream->first && (!event || event->reached < serial)) {
        task_t *task = stream->first;
        stream->runs = true;
        bool done = runtime.fault || task_run(stream, task, waits);
        stream->runs = false;
        if (!done) break;
        stream->first = task->next;
        if (!stream->first) stream->last = &stream->first;
        if (runtime.fault && task->kind == TASK_RECORD) task->event->reached = task->serial;
        free(task);
    }
    if (--runtime.depth || !runtime.opened) return;
    runtime.opened = false;
    sim_memory_lock();
}

static sim_cuda_error_t run_all(void) {
    for (struct sim_cuda_stream *s = runtime.streams; s; s = s->next) run_until(s, NULL, 0, true);
    return runtime.fault ? fail(SIM_CUDA_ILLEGAL_ADDRESS, "%s", runtime.fault) : SIM_CUDA_SUCCESS;
}

// ---- handles ----

static bool has_stream(const struct sim_cuda_stream *stream) {
    for (const struct sim_cuda_stream *s = runtime.streams; s; s = s->next)
        if (s == stream) return true;
    fail(SIM_CUDA_INVALID_HANDLE, "that is no stream (the default stream is not used here)");
    return false;
}

static bool has_event(const struct sim_cuda_event *event) {
    for (const struct sim_cuda_event *e = runtime.events; e; e = e->next)
        if (e == event) return true;
    fail(SIM_CUDA_INVALID_HANDLE, "that is no event");
    return false;
}

static task_t *task_add(struct sim_cuda_stream *stream, task_kind_t kind, size_t data) {
    task_t *task = calloc(1, sizeof(*task) + data);
    if (!task) {
        fail(SIM_CUDA_MEMORY_ALLOCATION, "the host has no memory left for what a stream keeps");
        return NULL;
    }
    task_t ***last = stream->capture ? &stream->capture->last : &stream->last;
    task->kind = kind;
    task->data_bytes = data;
    **last = task;
    *last = &task->next;
    return task;
}

// While this thread captures a stream: what a graph cannot hold, or what waits. It spoils the capture. `stream` NULL:
// whatever stream it is.
static sim_cuda_error_t uncaptured(const struct sim_cuda_stream *stream, const char *what) {
    for (struct sim_cuda_stream *s = runtime.streams; s; s = s->next) {
        if (!s->capture || (stream && s != stream) || !pthread_equal(s->capturer, pthread_self())) continue;
        s->capture->invalid = true;
        return fail(SIM_CUDA_CAPTURE_UNSUPPORTED, "%s while a stream is captured: a graph cannot hold it", what);
    }
    return SIM_CUDA_SUCCESS;
}

status_t sim_enqueue(const sim_launch_t *launch, size_t context_bytes, void *stream) {
    TRY(sim_launch_check(launch));
    if (!stream) return sim_run(launch);
    sim_cuda_error_t error = enter();
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    task_t *task = error ? NULL : task_add(stream, TASK_LAUNCH, context_bytes);
    if (task) {
        task->launch = *launch;
        task->launch.context = memcpy(task->data, launch->context, context_bytes);
        task->launch.context_bytes = context_bytes;
        task->launch.guarded = true;
    }
    leave(error);
    if (!task) FAIL(STATUS_FAILED, "the kernel of %s cannot be launched: %s", launch->kernel, said);
    return STATUS_OK;
}

status_t sim_stream_put(void *stream, sim_step_t step, void *context) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(stream, "work of another library");
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    task_t *task = error ? NULL : task_add(stream, TASK_STEP, 0);
    if (task) {
        task->step = step;
        task->context = context;
    }
    leave(error);
    if (!task) FAIL(STATUS_FAILED, "%s", said);
    return STATUS_OK;
}

status_t sim_stream_put_copy(void *stream, sim_step_t step, const void *context, size_t bytes) {
    sim_cuda_error_t error = enter();
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    task_t *task = error ? NULL : task_add(stream, TASK_STEP, bytes);
    if (task) {
        task->step = step;
        task->context = memcpy(task->data, context, bytes);
    }
    leave(error);
    if (!task) FAIL(STATUS_FAILED, "%s", said);
    return STATUS_OK;
}

sim_cuda_error_t sim_cuda_stream_create(sim_cuda_stream_t *out, unsigned flags) {
    (void)flags;
    sim_cuda_error_t error = enter();
    struct sim_cuda_stream *stream = error ? NULL : calloc(1, sizeof(*stream));
    *out = stream;
    if (!error && !stream) error = fail(SIM_CUDA_MEMORY_ALLOCATION, "the host has no memory left for a stream");
    if (error) return leave(error);
    stream->last = &stream->first;
    sim_get_order(&stream->order, &stream->seed);
    stream->next = runtime.streams;
    runtime.streams = stream;
    return leave(SIM_CUDA_SUCCESS);
}

static void graph_free(struct sim_cuda_graph *graph) {
    if (!graph) return;
    for (task_t *task = graph->first, *next; task; task = next) {
        next = task->next;
        free(task);
    }
    free(graph);
    runtime.graphs--;
}

static void look_for_leaks(void) {
    size_t bytes;
    if (getenv("POISE_SIM_REPORT"))
        fprintf(stderr, "simulated device: at most %zu bytes of its memory were in use, in %zu allocations\n",
                runtime.most_bytes, runtime.allocations);
    runtime.leaks = sim_memory_live(&bytes) + runtime.pinned_count + runtime.graphs;
    if (!runtime.leaks) {
        sim_memory_forget();
        return;
    }
    fprintf(stderr,
            "sim: the last stream is destroyed, and %zu allocations (%zu bytes of them on the device) live on\n",
            runtime.leaks, bytes);
    sim_memory_report();
}

sim_cuda_error_t sim_cuda_stream_destroy(sim_cuda_stream_t stream) {
    sim_cuda_error_t error = enter();
    if (!has_stream(stream)) return leave(SIM_CUDA_INVALID_HANDLE);
    run_until(stream, NULL, 0, true);
    for (struct sim_cuda_event *e = runtime.events; e; e = e->next)
        if (e->stream == stream) e->stream = NULL;
    struct sim_cuda_stream **at = &runtime.streams;
    while (*at != stream) at = &(*at)->next;
    *at = stream->next;
    graph_free(stream->capture);
    free(stream);
    if (!runtime.streams) look_for_leaks();
    return leave(error);
}

sim_cuda_error_t sim_cuda_stream_synchronize(sim_cuda_stream_t stream) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(stream, "cudaStreamSynchronize");
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    if (!error) {
        run_until(stream, NULL, 0, true);
        if (runtime.fault) error = fail(SIM_CUDA_ILLEGAL_ADDRESS, "%s", runtime.fault);
    }
    return leave(error);
}

sim_cuda_error_t sim_cuda_stream_query(sim_cuda_stream_t stream) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(stream, "cudaStreamQuery");
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    return leave(!error && stream->first ? SIM_CUDA_NOT_READY : error);
}

sim_cuda_error_t sim_cuda_device_synchronize(void) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(NULL, "cudaDeviceSynchronize");
    return leave(error ? error : run_all());
}

// ---- events ----

sim_cuda_error_t sim_cuda_event_create(sim_cuda_event_t *out, unsigned flags) {
    sim_cuda_error_t error = enter();
    struct sim_cuda_event *event = error ? NULL : calloc(1, sizeof(*event));
    *out = event;
    if (!error && !event) error = fail(SIM_CUDA_MEMORY_ALLOCATION, "the host has no memory left for an event");
    if (error) return leave(error);
    event->flags = flags;
    event->next = runtime.events;
    runtime.events = event;
    return leave(SIM_CUDA_SUCCESS);
}

// What waits for the event or records it has to run first.
sim_cuda_error_t sim_cuda_event_destroy(sim_cuda_event_t event) {
    sim_cuda_error_t error = enter();
    if (!has_event(event)) return leave(SIM_CUDA_INVALID_HANDLE);
    (void)run_all();
    struct sim_cuda_event **at = &runtime.events;
    while (*at != event) at = &(*at)->next;
    *at = event->next;
    free(event);
    return leave(error);
}

sim_cuda_error_t sim_cuda_event_record(sim_cuda_event_t event, sim_cuda_stream_t stream) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(stream, "cudaEventRecord (which these stand-ins do not capture)");
    if (!error && (!has_event(event) || !has_stream(stream))) error = SIM_CUDA_INVALID_HANDLE;
    task_t *task = error ? NULL : task_add(stream, TASK_RECORD, 0);
    if (!error && !task) error = SIM_CUDA_MEMORY_ALLOCATION;
    if (task) {
        task->event = event;
        task->serial = event->recorded = ++runtime.serial;
        event->stream = stream;
    }
    return leave(error);
}

sim_cuda_error_t sim_cuda_stream_wait_event(sim_cuda_stream_t stream, sim_cuda_event_t event, unsigned flags) {
    (void)flags;
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(stream, "cudaStreamWaitEvent (which these stand-ins do not capture)");
    if (!error && (!has_event(event) || !has_stream(stream))) error = SIM_CUDA_INVALID_HANDLE;
    if (error || event->reached >= event->recorded) return leave(error);
    task_t *task = task_add(stream, TASK_WAIT, 0);
    if (!task) return leave(SIM_CUDA_MEMORY_ALLOCATION);
    task->event = event;
    task->serial = event->recorded;
    return leave(SIM_CUDA_SUCCESS);
}

sim_cuda_error_t sim_cuda_event_synchronize(sim_cuda_event_t event) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(NULL, "cudaEventSynchronize");
    if (!error && !has_event(event)) error = SIM_CUDA_INVALID_HANDLE;
    if (error) return leave(error);
    if (event->reached < event->recorded && event->stream) run_until(event->stream, event, event->recorded, true);
    return leave(runtime.fault ? fail(SIM_CUDA_ILLEGAL_ADDRESS, "%s", runtime.fault) : SIM_CUDA_SUCCESS);
}

sim_cuda_error_t sim_cuda_event_query(sim_cuda_event_t event) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(NULL, "cudaEventQuery");
    if (!error && !has_event(event)) error = SIM_CUDA_INVALID_HANDLE;
    if (error || event->reached >= event->recorded) return leave(error);
    // Who asks again polls, and finds that the device has gone on meanwhile.
    bool again = event->asked == event->recorded;
    event->asked = event->recorded;
    if (again && event->stream) run_until(event->stream, event, event->recorded, false);
    if (runtime.fault) return leave(fail(SIM_CUDA_ILLEGAL_ADDRESS, "%s", runtime.fault));
    return leave(event->reached < event->recorded ? SIM_CUDA_NOT_READY : SIM_CUDA_SUCCESS);
}

static bool is_pinned(const void *memory, size_t bytes) {
    for (const pinned_t *p = runtime.pinned; p; p = p->next) {
        uintptr_t offset = (uintptr_t)memory - (uintptr_t)p->memory;
        if (offset < p->bytes && bytes <= p->bytes - offset) return true;
    }
    return false;
}

// ---- graphs ----

static struct sim_cuda_graph *graph_make(void) {
    struct sim_cuda_graph *graph = calloc(1, sizeof(*graph));
    if (!graph) {
        fail(SIM_CUDA_MEMORY_ALLOCATION, "the host has no memory left for a graph");
        return NULL;
    }
    graph->last = &graph->first;
    runtime.graphs++;
    return graph;
}

sim_cuda_error_t sim_cuda_stream_begin_capture(sim_cuda_stream_t stream, unsigned mode) {
    (void)mode;
    sim_cuda_error_t error = enter();
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    if (!error && stream->capture) error = fail(SIM_CUDA_INVALID_VALUE, "the stream is captured already");
    if (error) return leave(error);
    stream->capture = graph_make();
    stream->capturer = pthread_self();
    return leave(stream->capture ? SIM_CUDA_SUCCESS : SIM_CUDA_MEMORY_ALLOCATION);
}

sim_cuda_error_t sim_cuda_stream_end_capture(sim_cuda_stream_t stream, sim_cuda_graph_t *out) {
    sim_cuda_error_t error = enter();
    *out = NULL;
    if (!has_stream(stream)) return leave(SIM_CUDA_INVALID_HANDLE);
    if (!stream->capture) return leave(fail(SIM_CUDA_INVALID_VALUE, "the stream is not captured"));
    if (!error && stream->capture->invalid)
        error = fail(SIM_CUDA_CAPTURE_INVALIDATED, "the capture was spoilt by an earlier call that failed");
    if (error)
        graph_free(stream->capture);
    else
        *out = stream->capture;
    stream->capture = NULL;
    return leave(error);
}

// Copies of the tasks from `first` on, behind *last.
static sim_cuda_error_t tasks_copy(const task_t *first, task_t ***last) {
    for (; first; first = first->next) {
        task_t *task = malloc(sizeof(*task) + first->data_bytes);
        if (!task) return fail(SIM_CUDA_MEMORY_ALLOCATION, "the host has no memory left for what a graph keeps");
        memcpy(task, first, sizeof(*task) + first->data_bytes);
        task->next = NULL;
        if (task->kind == TASK_LAUNCH) task->launch.context = task->data;
        if (task->kind == TASK_STEP) task->context = task->data;
        **last = task;
        *last = &task->next;
    }
    return SIM_CUDA_SUCCESS;
}

sim_cuda_error_t sim_cuda_graph_instantiate(sim_cuda_graph_t *out, sim_cuda_graph_t graph, unsigned long long flags) {
    (void)flags;
    sim_cuda_error_t error = enter();
    *out = error ? NULL : graph_make();
    if (error || !*out) return leave(error ? error : SIM_CUDA_MEMORY_ALLOCATION);
    return leave(tasks_copy(graph->first, &(*out)->last));
}

sim_cuda_error_t sim_cuda_graph_launch(sim_cuda_graph_t graph, sim_cuda_stream_t stream) {
    sim_cuda_error_t error = enter();
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    if (!error) error = uncaptured(stream, "cudaGraphLaunch (which these stand-ins do not capture)");
    if (error) return leave(error);
    runtime.launched_graphs++;
    for (const task_t *task = graph->first; task; task = task->next)
        if (task->kind == TASK_COPY && is_pinned(task->to, task->bytes)) memset(task->to, 0xff, task->bytes);
    return leave(tasks_copy(graph->first, &stream->last));
}

sim_cuda_error_t sim_cuda_graph_destroy(sim_cuda_graph_t graph) {
    sim_cuda_error_t error = enter();
    graph_free(graph);
    return leave(error);
}

sim_cuda_error_t sim_cuda_event_elapsed_time(float *milliseconds, sim_cuda_event_t from, sim_cuda_event_t to) {
    sim_cuda_error_t error = enter();
    *milliseconds = 0.0f;
    if (!error && (!has_event(from) || !has_event(to))) error = SIM_CUDA_INVALID_HANDLE;
    if (error) return leave(error);
    if ((from->flags | to->flags) & cudaEventDisableTiming || !from->recorded || !to->recorded)
        return leave(
            fail(SIM_CUDA_INVALID_HANDLE, "cudaEventElapsedTime: an event has no time, or was never recorded"));
    if (from->reached < from->recorded || to->reached < to->recorded) return leave(SIM_CUDA_NOT_READY);
    *milliseconds = (float)(1e3 * (to->at - from->at));
    return leave(SIM_CUDA_SUCCESS);
}

// ---- memory ----

sim_cuda_error_t sim_cuda_malloc(void **out, size_t bytes) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(NULL, "cudaMalloc");
    runtime.allocations++;
    *out = error ? NULL : sim_memory_take(bytes);
    if (!error && !*out)
        error =
            fail(SIM_CUDA_MEMORY_ALLOCATION, "out of memory: the simulated device has %zu bytes", sim_memory_total());
    size_t live;
    (void)sim_memory_live(&live);
    if (live > runtime.most_bytes) runtime.most_bytes = live;
    return leave(error);
}

sim_cuda_error_t sim_cuda_free(void *memory) {
    char why[256];
    sim_cuda_error_t error = enter();
    if (!memory) return leave(error);
    if (uncaptured(NULL, "cudaFree")) return leave(SIM_CUDA_CAPTURE_UNSUPPORTED);
    (void)run_all();
    if (!sim_memory_free(memory, why, sizeof(why))) error = fail(SIM_CUDA_INVALID_VALUE, "cudaFree of %s", why);
    return leave(error);
}

sim_cuda_error_t sim_cuda_malloc_host(void **out, size_t bytes) {
    sim_cuda_error_t error = enter();
    if (!error) error = uncaptured(NULL, "cudaMallocHost");
    runtime.allocations++;
    pinned_t *pinned = error ? NULL : malloc(sizeof(*pinned) + bytes);
    *out = NULL;
    if (!error && !pinned) error = fail(SIM_CUDA_MEMORY_ALLOCATION, "the host cannot pin %zu bytes", bytes);
    if (error) return leave(error);
    *pinned = (pinned_t){.next = runtime.pinned, .bytes = bytes};
    runtime.pinned = pinned;
    runtime.pinned_count++;
    *out = memset(pinned->memory, 0xff, bytes < FILLED_BYTES ? bytes : FILLED_BYTES);
    return leave(SIM_CUDA_SUCCESS);
}

sim_cuda_error_t sim_cuda_free_host(void *memory) {
    sim_cuda_error_t error = enter();
    if (!memory) return leave(error);
    if (uncaptured(NULL, "cudaFreeHost")) return leave(SIM_CUDA_CAPTURE_UNSUPPORTED);
    (void)run_all();
    pinned_t **at = &runtime.pinned;
    while (*at && (void *)(*at)->memory != memory) at = &(*at)->next;
    if (!*at) return leave(fail(SIM_CUDA_INVALID_VALUE, "cudaFreeHost of memory that cudaMallocHost did not give"));
    pinned_t *gone = *at;
    *at = gone->next;
    free(gone);
    runtime.pinned_count--;
    return leave(error);
}

// One side of a copy.
static bool side_right(const char *side, const void *memory, size_t bytes, bool device) {
    char why[256];
    if (!device && !sim_memory_owns(memory)) return true;
    if (!device) {
        fail(SIM_CUDA_INVALID_VALUE,
             "cudaMemcpyAsync: its kind says that the %s is host memory, and it is the device's", side);
        return false;
    }
    if (sim_memory_holds(memory, bytes, why, sizeof(why))) return true;
    fail(SIM_CUDA_INVALID_VALUE, "cudaMemcpyAsync: %zu bytes do not fit its %s, which is %s", bytes, side, why);
    return false;
}

sim_cuda_error_t sim_cuda_memcpy_async(void *to, const void *from, size_t bytes, sim_cuda_copy_t kind,
                                       sim_cuda_stream_t stream) {
    sim_cuda_error_t error = enter();
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    if (error || !bytes) return leave(error);
    bool to_device = kind == SIM_CUDA_HOST_TO_DEVICE || kind == SIM_CUDA_DEVICE_TO_DEVICE;
    bool from_device = kind == SIM_CUDA_DEVICE_TO_HOST || kind == SIM_CUDA_DEVICE_TO_DEVICE;
    if (kind == SIM_CUDA_DEFAULT) {
        to_device = sim_memory_owns(to);
        from_device = sim_memory_owns(from);
    }
    if (!side_right("target", to, bytes, to_device) || !side_right("source", from, bytes, from_device))
        return leave(SIM_CUDA_INVALID_VALUE);
    bool kept = !from_device && !is_pinned(from, bytes); // pageable memory may change when the call returns
    bool pageable = kept || (!to_device && !is_pinned(to, bytes));
    if (pageable && uncaptured(stream, "cudaMemcpyAsync from or to pageable memory"))
        return leave(SIM_CUDA_CAPTURE_UNSUPPORTED);
    task_t *task = task_add(stream, TASK_COPY, kept ? bytes : 0);
    if (!task) return leave(SIM_CUDA_MEMORY_ALLOCATION);
    task->to = to;
    task->bytes = bytes;
    task->from = kept ? memcpy(task->data, from, bytes) : from;
    if (!from_device && !kept && !stream->capture) { // a graph reads what lies there when it is launched
        task->check = check_of(from, bytes);
        task->checked = true;
    }
    if (to_device || stream->capture) return leave(SIM_CUDA_SUCCESS);
    if (is_pinned(to, bytes)) {
        memset(to, 0xff, bytes); // nobody may read it yet
        return leave(SIM_CUDA_SUCCESS);
    }
    run_until(stream, NULL, 0, true); // a copy to pageable memory has ended when the call returns
    return leave(runtime.fault ? fail(SIM_CUDA_ILLEGAL_ADDRESS, "%s", runtime.fault) : SIM_CUDA_SUCCESS);
}

sim_cuda_error_t sim_cuda_memset_async(void *to, int value, size_t bytes, sim_cuda_stream_t stream) {
    char why[256];
    sim_cuda_error_t error = enter();
    if (!error && !has_stream(stream)) error = SIM_CUDA_INVALID_HANDLE;
    if (error || !bytes) return leave(error);
    if (!sim_memory_holds(to, bytes, why, sizeof(why)))
        return leave(fail(SIM_CUDA_INVALID_VALUE, "cudaMemsetAsync of %zu bytes of %s", bytes, why));
    task_t *task = task_add(stream, TASK_SET, 0);
    if (!task) return leave(SIM_CUDA_MEMORY_ALLOCATION);
    task->to = to;
    task->value = value;
    task->bytes = bytes;
    return leave(SIM_CUDA_SUCCESS);
}

// ---- the device ----

// The GPU's own number: the device-th that CUDA_VISIBLE_DEVICES lists, where GPUs are pretended by number; as there, a
// list ends at the first that is none.
static int visible(int device) {
    const char *own = getenv("POISE_SIM_GPUS"), *list = getenv("CUDA_VISIBLE_DEVICES");
    int gpus = own && *own ? atoi(own) : 64;
    if (!own || !list) return device >= 0 && device < gpus ? device : -1;
    for (int i = 0;; i++) {
        char *end;
        long number = strtol(list, &end, 10);
        if (end == list || number < 0 || number >= gpus) return -1;
        if (i == device) return (int)number;
        if (*end != ',') return -1;
        list = end + 1;
    }
}

sim_cuda_error_t sim_cuda_get_device_count(int *out) {
    *out = 0;
    while (visible(*out) >= 0) ++*out;
    return *out ? SIM_CUDA_SUCCESS : fail(SIM_CUDA_NO_DEVICE, "no CUDA-capable device is detected");
}

sim_cuda_error_t sim_cuda_set_device(int device) {
    if (visible(device) < 0) return fail(SIM_CUDA_INVALID_DEVICE, "there is no device %d", device);
    chosen = device;
    return SIM_CUDA_SUCCESS;
}

sim_cuda_error_t sim_cuda_get_device(int *out) {
    *out = chosen;
    return SIM_CUDA_SUCCESS;
}

// "8.0"
static void capability(int *major, int *minor) {
    const char *own = getenv("POISE_SIM_CAPABILITY");
    *major = 8;
    *minor = 0;
    if (own && sscanf(own, "%d.%d", major, minor) != 2) *major = 8;
}

sim_cuda_error_t sim_cuda_get_device_properties(sim_cuda_properties_t *out, int device) {
    if (visible(device) < 0) return fail(SIM_CUDA_INVALID_DEVICE, "there is no device %d", device);
    *out = (sim_cuda_properties_t){.totalGlobalMem = sim_memory_total(), .multiProcessorCount = 108};
    snprintf(out->name, sizeof(out->name), "simulated GPU");
    capability(&out->major, &out->minor);
    return SIM_CUDA_SUCCESS;
}

enum { SIM_CUDA_VERSION = 12080 };

sim_cuda_error_t sim_cuda_driver_get_version(int *out) {
    const char *own = getenv("POISE_SIM_DRIVER");
    *out = own && *own ? atoi(own) : SIM_CUDA_VERSION;
    return SIM_CUDA_SUCCESS;
}

sim_cuda_error_t sim_cuda_runtime_get_version(int *out) {
    *out = SIM_CUDA_VERSION;
    return SIM_CUDA_SUCCESS;
}

sim_cuda_error_t sim_cuda_device_get_pci_bus_id(char *out, int bytes, int device) {
    if (visible(device) < 0) return fail(SIM_CUDA_INVALID_DEVICE, "there is no device %d", device);
    snprintf(out, (size_t)bytes, "0000:%02x:00.0", (unsigned)visible(device));
    return SIM_CUDA_SUCCESS;
}

sim_cuda_error_t sim_cuda_device_get_attribute(int *out, sim_cuda_attribute_t attribute, int device) {
    int major, minor;
    (void)device;
    capability(&major, &minor);
    *out = attribute == SIM_CUDA_MAJOR ? major : minor;
    return SIM_CUDA_SUCCESS;
}

sim_cuda_error_t sim_cuda_mem_get_info(size_t *free_bytes, size_t *total_bytes) {
    size_t bytes;
    sim_cuda_error_t error = enter();
    (void)sim_memory_live(&bytes);
    *total_bytes = sim_memory_total();
    *free_bytes = *total_bytes > bytes ? *total_bytes - bytes : 0;
    return leave(error);
}

// ---- for tests ----

void sim_runtime_reset(void) {
    pthread_mutex_lock(&runtime.lock);
    fault("reset");
    (void)run_all(); // drops what waits
    free(runtime.fault);
    runtime.fault = NULL;
    last_error = SIM_CUDA_SUCCESS;
    pthread_mutex_unlock(&runtime.lock);
}

size_t sim_runtime_live(void) {
    size_t bytes;
    pthread_mutex_lock(&runtime.lock);
    size_t live = sim_memory_live(&bytes) + runtime.pinned_count + runtime.graphs;
    pthread_mutex_unlock(&runtime.lock);
    return live;
}

size_t sim_runtime_leaks(void) {
    return runtime.leaks;
}

size_t sim_runtime_allocations(void) {
    return runtime.allocations;
}

void sim_runtime_bytes(size_t *now, size_t *most) {
    pthread_mutex_lock(&runtime.lock);
    (void)sim_memory_live(now);
    *most = runtime.most_bytes;
    pthread_mutex_unlock(&runtime.lock);
}

size_t sim_runtime_launched_graphs(void) {
    return runtime.launched_graphs;
}

void sim_runtime_set_memory(size_t bytes) {
    pthread_mutex_lock(&runtime.lock);
    sim_memory_set_total(bytes);
    pthread_mutex_unlock(&runtime.lock);
}
