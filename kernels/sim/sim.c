#include "kernels/sim/state.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

__thread const sim_self_t *sim_self = NULL;
__thread sim_state_t *sim_now = NULL;
static __thread sim_order_t chosen_order = SIM_FORWARD;
static __thread uint64_t chosen_seed = 0;

void sim_set_order(sim_order_t order, uint64_t seed) {
    chosen_order = order;
    chosen_seed = seed;
}

void sim_get_order(sim_order_t *order, uint64_t *seed) {
    *order = chosen_order;
    *seed = chosen_seed;
}

int sim_lane(void) {
    return sim_now->running->number % SIM_WARP;
}

// ---- faults ----

void sim_stop(char *message) {
    sim_state_t *sim = sim_now;
    if (!sim->fault)
        sim->fault = message;
    else
        free(message);
    fiber_switch(&sim->running->fiber, &sim->scheduler, true);
    __builtin_unreachable(); // the scheduler resumes nobody after a fault
}

static void text_add(char **text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void text_add(char **text, const char *format, ...) {
    char piece[1024], *longer = NULL;
    va_list list;
    va_start(list, format);
    vsnprintf(piece, sizeof(piece), format, list);
    va_end(list);
    size_t used = *text ? strlen(*text) : 0;
    longer = realloc(*text, used + strlen(piece) + 1);
    if (!longer) return; // the message stays shorter
    strcpy(longer + used, piece);
    *text = longer;
}

static void text_where(char **text, const sim_thread_t *thread) {
    sim_dim_t b = thread->self.block_index;
    text_add(text, "kernel of %s, block (%u, %u, %u): ", sim_now->launch->kernel, b.x, b.y, b.z);
}

void sim_fault(const char *file, int line, const char *format, ...) {
    char said[768], *text = NULL;
    va_list list;
    va_start(list, format);
    vsnprintf(said, sizeof(said), format, list);
    va_end(list);
    text_where(&text, sim_now->running);
    text_add(&text, "thread %d: %s", sim_now->running->number, said);
    if (file) text_add(&text, ", at %s:%d", file, line);
    sim_stop(text);
}

static bool same_place(const sim_thread_t *a, const sim_thread_t *b) {
    if (a->waits != b->waits) return false;
    if (a->waits == SIM_ENDED || a->waits == SIM_RUNS) return true;
    return a->line == b->line && a->barrier == b->barrier && a->mask == b->mask &&
           (a->file == b->file || !strcmp(a->file, b->file));
}

// "threads 0-15 wait in __syncthreads at f.cu:12; threads 16-31 have ended": every thread, in runs.
static void text_threads(char **text, const sim_state_t *sim) {
    for (int first = 0, last; first < sim->threads; first = last) {
        const sim_thread_t *t = &sim->thread[first];
        for (last = first + 1; last < sim->threads && same_place(t, &sim->thread[last]);) last++;
        text_add(text, last - first > 1 ? "%sthreads %d-%d " : "%sthread %d ", first ? "; " : "", first, last - 1);
        if (t->waits == SIM_ENDED)
            text_add(text, last - first > 1 ? "have ended" : "has ended");
        else if (t->waits == SIM_RUNS)
            text_add(text, "could go on");
        else if (t->waits == SIM_AT_WARP)
            text_add(text, "in %s with mask %08x at %s:%d", t->what, t->mask, t->file, t->line);
        else if (t->barrier)
            text_add(text, "in barrier %d of %d threads at %s:%d", t->barrier, t->barrier_threads, t->file, t->line);
        else
            text_add(text, "in __syncthreads at %s:%d", t->file, t->line);
    }
}

static void fault_threads(sim_state_t *sim, const char *what) {
    char *text = NULL;
    text_where(&text, &sim->thread[0]);
    text_add(&text, "%s: ", what);
    text_threads(&text, sim);
    if (!sim->fault)
        sim->fault = text;
    else
        free(text);
}

// ---- waiting ----

static void wait_here(sim_thread_t *self) {
    sim_state_t *sim = sim_now;
    fiber_switch(&self->fiber, &sim->scheduler, false);
}

static void drop_exchange(sim_thread_t *self) {
    if (self->exchange) self->exchange->readers--;
    self->exchange = NULL;
}

void sim_leave(void) {
    fiber_switch(&sim_now->running->fiber, &sim_now->scheduler, true);
}

static void stop_divergent(sim_state_t *sim, const char *what) {
    fault_threads(sim, what);
    sim_leave();
    __builtin_unreachable();
}

void sim_barrier(int barrier, int threads, const char *file, int line) {
    sim_state_t *sim = sim_now;
    sim_thread_t *self = sim->running;
    drop_exchange(self);
    if (barrier == 0) threads = sim->threads;
    if (barrier < 0 || barrier >= SIM_BARRIERS || threads < 1 || threads > sim->threads || threads % SIM_WARP)
        if (barrier)
            sim_fault(file, line, "barrier %d of %d threads: 1 to 15, whole warps of the block", barrier, threads);
    self->waits = SIM_AT_BARRIER;
    self->barrier = barrier;
    self->barrier_threads = threads;
    self->mask = 0;
    self->file = file;
    self->line = line;
    if (sim->barrier_waiting[barrier]++ == 0) sim->barrier_threads[barrier] = threads;
    if (sim->barrier_threads[barrier] != threads) stop_divergent(sim, "a barrier is called with two thread counts");
    if (sim->barrier_waiting[barrier] < threads) {
        wait_here(self);
        return;
    }
    int list[SIM_BLOCK_THREADS], count = 0;
    for (int i = 0; i < sim->threads; i++)
        if (sim->thread[i].waits == SIM_AT_BARRIER && sim->thread[i].barrier == barrier) list[count++] = i;
    sim->barrier_waiting[barrier] = 0;
    for (int i = 0; i < count; i++)
        if (!same_place(self, &sim->thread[list[i]])) stop_divergent(sim, "divergent barrier");
    for (int i = 0; i < count; i++) sim->thread[list[i]].waits = SIM_RUNS;
    sim_shared_meet(sim, list, count, count == sim->threads);
}

static sim_exchange_t *free_exchange(sim_state_t *sim, int warp) {
    sim_exchange_t *first = sim->exchanges + (size_t)warp * SIM_EXCHANGES;
    while (first->readers) first++;
    return first;
}

// Looks at every lane of the mask; stops where one came to something else.
static void warp_compare(sim_state_t *sim, const sim_thread_t *self, int first) {
    for (int lane = 0; lane < SIM_WARP; lane++) {
        if (!(self->mask >> lane & 1u)) continue;
        if (first + lane >= sim->threads) stop_divergent(sim, "a mask names lanes that the block does not have");
        const sim_thread_t *other = &sim->thread[first + lane];
        if (other->waits == SIM_ENDED) stop_divergent(sim, "a mask names a lane that has ended");
        if (other->waits != SIM_AT_WARP) continue;
        if (other->mask != self->mask) stop_divergent(sim, "lanes that name each other wait with different masks");
        if (other->line != self->line || strcmp(other->what, self->what) || strcmp(other->file, self->file))
            stop_divergent(sim, "lanes of one mask wait in different calls");
    }
}

// Whether every lane of the mask has come. As long as all lanes of the warp make one call none needs a closer look.
static bool warp_complete(sim_state_t *sim, const sim_thread_t *self, int first) {
    sim_gather_t *gather = &sim->gathers[first / SIM_WARP];
    uint32_t mask = self->mask, there = sim->threads - first < SIM_WARP ? (1u << (sim->threads - first)) - 1u : ~0u;
    if (!gather->waiting) {
        gather->alike = true;
        gather->mask = mask;
        gather->what = self->what;
        gather->file = self->file;
        gather->line = self->line;
    }
    gather->alike = gather->alike && gather->mask == mask && gather->line == self->line && gather->what == self->what &&
                    gather->file == self->file;
    gather->waiting |= 1u << self->number % SIM_WARP;
    if (!gather->alike || mask & (gather->ended | ~there)) warp_compare(sim, self, first);
    if (mask & ~gather->waiting) return false;
    gather->waiting &= ~mask;
    return true;
}

const unsigned char *sim_warp_exchange(const char *what, uint32_t mask, const void *packet, size_t bytes, bool orders,
                                       const char *file, int line) {
    sim_state_t *sim = sim_now;
    sim_thread_t *self = sim->running;
    int lane = self->number % SIM_WARP, first = self->number - lane, list[SIM_WARP], count = 0;
    drop_exchange(self);
    if (!(mask >> lane & 1u)) sim_fault(file, line, "%s with mask %08x, which lacks its own lane %d", what, mask, lane);
    self->what = what;
    self->waits = SIM_AT_WARP;
    self->barrier = 0;
    self->mask = mask;
    self->file = file;
    self->line = line;
    memcpy(self->packet, packet, bytes);
    self->packet_bytes = bytes;
    if (!warp_complete(sim, self, first)) {
        wait_here(self);
        return self->exchange->packet;
    }
    sim_exchange_t *exchange = free_exchange(sim, first / SIM_WARP);
    exchange->multiplied = false;
    if (mask != 0xffffffffu) memset(exchange->packet, 0xff, sizeof(exchange->packet)); // who gave nothing reads as NaN
    for (int i = 0; i < SIM_WARP; i++) {
        if (!(mask >> i & 1u)) continue;
        sim_thread_t *other = &sim->thread[first + i];
        memcpy(exchange->packet + i * SIM_PACKET, other->packet, other->packet_bytes);
        other->exchange = exchange;
        other->waits = SIM_RUNS;
        exchange->readers++;
        list[count++] = first + i;
    }
    if (orders) sim_shared_meet(sim, list, count, count == sim->threads);
    return exchange->packet;
}

// ---- running ----

static uint64_t random_next(sim_state_t *sim) { // splitmix64
    uint64_t z = sim->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void take_turns(sim_state_t *sim) {
    for (int i = 0; i < sim->threads; i++) sim->turn[i] = chosen_order == SIM_REVERSE ? sim->threads - 1 - i : i;
    for (int i = sim->threads - 1; chosen_order == SIM_SHUFFLED && i > 0; i--) {
        int j = (int)(random_next(sim) % (uint64_t)(i + 1)), kept = sim->turn[i];
        sim->turn[i] = sim->turn[j];
        sim->turn[j] = kept;
    }
}

static void thread_entry(void) {
    sim_state_t *sim = sim_now;
    sim_thread_t *self = sim->running;
    fiber_started(&self->fiber, &sim->scheduler);
    sim->launch->body(sim->launch->context);
    if (self->copy_count) sim_fault(NULL, 0, "it ends with copies in flight (cp.async without a wait)");
    drop_exchange(self);
    self->waits = SIM_ENDED;
    sim->gathers[self->number / SIM_WARP].ended |= 1u << self->number % SIM_WARP;
    sim_leave();
}

static void prepare_block(sim_state_t *sim, sim_dim_t index) {
    sim_dim_t size = sim->launch->block;
    sim_shared_block(sim);
    memset(sim->gathers, 0, sizeof(sim->gathers));
    memset(sim->barrier_waiting, 0, sizeof(sim->barrier_waiting));
    for (int i = 0; i < sim->threads; i++) {
        sim_thread_t *t = &sim->thread[i];
        unsigned n = (unsigned)i;
        t->self = (sim_self_t){.thread_index = {n % size.x, n / size.x % size.y, n / size.x / size.y},
                               .block_index = index,
                               .block_size = size,
                               .grid_size = sim->launch->grid};
        t->number = i;
        t->waits = SIM_RUNS;
        t->exchange = NULL;
        t->copy_count = t->copy_group = 0;
        fiber_prepare(&t->fiber, thread_entry);
    }
}

static void run_block(sim_state_t *sim, sim_dim_t index) {
    prepare_block(sim, index);
    for (int ended = 0; ended < sim->threads && !sim->fault;) {
        bool moved = false;
        take_turns(sim);
        for (int i = 0; i < sim->threads && !sim->fault; i++) {
            sim_thread_t *t = &sim->thread[sim->turn[i]];
            if (t->waits != SIM_RUNS) continue;
            sim->running = t;
            sim_self = &t->self;
            moved = true;
            fiber_switch(&sim->scheduler, &t->fiber, false);
            ended += t->waits == SIM_ENDED;
        }
        if (!moved) fault_threads(sim, "stuck: these threads wait for threads that do not come");
    }
}

// Everything is made for the largest block, once for each host thread, and kept: most of it is never touched.
static status_t state_fill(sim_state_t *sim) {
    TRY(ALLOCATE(&sim->thread, SIM_BLOCK_THREADS));
    TRY(ALLOCATE(&sim->turn, SIM_BLOCK_THREADS));
    TRY(ALLOCATE(&sim->exchanges, SIM_BLOCK_THREADS / SIM_WARP * SIM_EXCHANGES));
    TRY(sim_shared_open(sim));
    fiber_t *fibers;
    TRY(ALLOCATE(&fibers, SIM_BLOCK_THREADS));
    status_t status = fiber_stacks_open(fibers, SIM_BLOCK_THREADS, SIM_STACK_BYTES);
    for (int i = 0; !status && i < SIM_BLOCK_THREADS; i++) sim->thread[i].fiber = fibers[i];
    free(fibers);
    return status;
}

// All that are open, for tools that look for leaks: they may not see what belongs to a thread.
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static sim_state_t *all_states;

static void state_list(sim_state_t *sim, bool open) {
    pthread_mutex_lock(&all_lock);
    sim_state_t **at = &all_states;
    while (*at && *at != sim) at = &(*at)->next;
    if (open)
        *at = sim;
    else if (*at)
        *at = sim->next;
    pthread_mutex_unlock(&all_lock);
}

static void state_close(void *state) {
    sim_state_t *sim = state;
    state_list(sim, false);
    if (sim->thread && sim->thread[0].fiber.stack) {
        fiber_t first = sim->thread[0].fiber;
        fiber_stacks_close(&first, SIM_BLOCK_THREADS);
    }
    sim_shared_close(sim);
    free(sim->exchanges);
    free(sim->turn);
    free(sim->thread);
    free(sim);
}

static pthread_key_t kept_key; // closes a host thread's state when the thread ends
static pthread_once_t kept_once = PTHREAD_ONCE_INIT;
static __thread sim_state_t *kept;

static void make_key(void) {
    (void)pthread_key_create(&kept_key, state_close);
}

static status_t state_open(const sim_launch_t *launch, sim_state_t **out) {
    pthread_once(&kept_once, make_key);
    if (!kept) {
        sim_state_t *sim;
        TRY(ALLOCATE(&sim, 1));
        status_t status = state_fill(sim);
        if (status) {
            state_close(sim);
            PASS_ON(status);
        }
        kept = sim;
        state_list(sim, true);
        (void)pthread_setspecific(kept_key, sim);
    }
    kept->launch = launch;
    kept->threads = (int)(launch->block.x * launch->block.y * launch->block.z);
    kept->random = chosen_seed;
    int warps = (kept->threads + SIM_WARP - 1) / SIM_WARP;
    for (int i = 0; i < warps * SIM_EXCHANGES; i++) kept->exchanges[i].readers = 0;
    sim_shared_launch(kept);
    *out = kept;
    return STATUS_OK;
}

static void run_grid(sim_state_t *sim) {
    sim_dim_t grid = sim->launch->grid;
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z, step = 1, start = 0;
    // Shuffled blocks: a walk whose step has no divisor in common with their number.
    if (chosen_order == SIM_SHUFFLED && blocks > 2) {
        start = random_next(sim) % blocks;
        for (step = random_next(sim) % blocks | 1;; step++) {
            uint64_t a = blocks, b = step;
            while (b) {
                uint64_t rest = a % b;
                a = b;
                b = rest;
            }
            if (a == 1) break;
        }
    }
    for (uint64_t i = 0; i < blocks && !sim->fault; i++) {
        uint64_t n = chosen_order == SIM_REVERSE ? blocks - 1 - i : (start + i * step) % blocks;
        run_block(
            sim, (sim_dim_t){(unsigned)(n % grid.x), (unsigned)(n / grid.x % grid.y), (unsigned)(n / grid.x / grid.y)});
    }
}

static bool within(sim_dim_t d, unsigned x, unsigned y, unsigned z) {
    return d.x >= 1 && d.y >= 1 && d.z >= 1 && d.x <= x && d.y <= y && d.z <= z;
}

// ---- shared memory beyond what every kernel may have ----

enum { GRANTS = 256 };
static struct {
    pthread_mutex_t lock;
    int count;
    struct {
        const void *function;
        size_t bytes;
    } of[GRANTS];
} grants = {.lock = PTHREAD_MUTEX_INITIALIZER};

status_t sim_grant_shared(const void *function, size_t bytes, const char *launcher) {
    int i = 0;
    if (bytes <= SIM_PLAIN_BYTES) return STATUS_OK;
    if (bytes > SIM_SHARED_BYTES)
        FAIL(STATUS_FAILED, "the kernel of %s cannot have %zu bytes of shared memory; a block has at most %d", launcher,
             bytes, SIM_SHARED_BYTES);
    pthread_mutex_lock(&grants.lock);
    while (i < grants.count && grants.of[i].function != function) i++;
    if (i < GRANTS) {
        grants.of[i].function = function;
        grants.of[i].bytes = bytes;
        if (i == grants.count) grants.count++;
    }
    pthread_mutex_unlock(&grants.lock);
    if (i == GRANTS) FAIL(STATUS_FAILED, "more than %d kernels have large shared memory", (int)GRANTS);
    return STATUS_OK;
}

static size_t granted(const void *function) {
    size_t bytes = SIM_PLAIN_BYTES;
    pthread_mutex_lock(&grants.lock);
    for (int i = 0; i < grants.count; i++)
        if (grants.of[i].function == function) bytes = grants.of[i].bytes;
    pthread_mutex_unlock(&grants.lock);
    return bytes;
}

status_t sim_launch_check(const sim_launch_t *launch) {
    sim_dim_t g = launch->grid, b = launch->block;
    if (sim_now) FAIL(STATUS_INVALID, "the kernel of %s is launched by a kernel", launch->kernel);
    if (!within(b, 1024, 1024, 64) || (uint64_t)b.x * b.y * b.z > SIM_BLOCK_THREADS ||
        !within(g, 0x7fffffffu, 65535, 65535))
        FAIL(STATUS_INVALID, "the kernel of %s is launched with a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads",
             launch->kernel, g.x, g.y, g.z, b.x, b.y, b.z);
    if (launch->shared_bytes > SIM_SHARED_BYTES)
        FAIL(STATUS_INVALID, "the kernel of %s is launched with %zu bytes of shared memory; a block has at most %d",
             launch->kernel, launch->shared_bytes, SIM_SHARED_BYTES);
    if (launch->shared_bytes > SIM_PLAIN_BYTES && launch->shared_bytes > granted(launch->function))
        FAIL(STATUS_INVALID,
             "the kernel of %s is launched with %zu bytes of dynamic shared memory, and was not granted them: above %d "
             "CUDA_GRANT_SHARED comes first",
             launch->kernel, launch->shared_bytes, SIM_PLAIN_BYTES);
    return STATUS_OK;
}

status_t sim_run(const sim_launch_t *launch) {
    sim_state_t *sim = NULL;
    TRY(sim_launch_check(launch));
    TRY(state_open(launch, &sim));
    sim_now = sim;
    run_grid(sim);
    sim_now = NULL;
    sim_self = NULL;
    status_t status = sim->fault ? STATUS_NEW(STATUS_FAILED, "%s", sim->fault) : STATUS_OK;
    free(sim->fault);
    sim->fault = NULL;
    return status;
}
