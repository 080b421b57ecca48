// Shared memory of the simulated block: where it lies, who may touch it, and who touched it since when.
//
// The .cu files are compiled with -fsanitize=thread, but linked with the hooks at the end of this file instead of that
// sanitizer's library: so every load and store of a kernel passes here, whatever pointer it goes through. Each byte
// (each word, where it is accessed whole) remembers its last writer and its readers; two accesses by different threads,
// one of them a write, must be ordered by barriers between them (vector clocks; a barrier of the whole block empties
// the record).
#include "kernels/sim/state.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

enum { WORD = 4 };
extern const char __executable_start[]; // the linker's name

status_t sim_shared_open(sim_state_t *sim) {
    TRY(ALLOCATE(&sim->arena, SIM_ARENA_BYTES));
    TRY(ALLOCATE(&sim->words, SIM_ARENA_BYTES / WORD));
    TRY(ALLOCATE(&sim->bytes, SIM_ARENA_BYTES));
    TRY(ALLOCATE(&sim->floor, SIM_BLOCK_THREADS));
    TRY(ALLOCATE(&sim->rows, (size_t)SIM_BLOCK_THREADS * SIM_BLOCK_THREADS));
    return STATUS_OK;
}

void sim_shared_close(sim_state_t *sim) {
    free(sim->arena);
    free(sim->words);
    free(sim->bytes);
    free(sim->floor);
    free(sim->rows);
    free(sim->reads);
}

static void forget_accesses(sim_state_t *sim) {
    sim->generation++;
    sim->read_count = 0;
}

// Rows are zeros but for what the last launch wrote.
void sim_shared_launch(sim_state_t *sim) {
    size_t threads = (size_t)sim->threads;
    memset(sim->rows, 0, sim->rows_used * sizeof(*sim->rows));
    sim->rows_used = 0;
    for (size_t i = 0; i < threads; i++) sim->thread[i].seen = sim->rows + i * threads;
}

static sim_variable_t *add_variable(sim_state_t *sim, const void *key, size_t bytes, size_t alignment,
                                    const char *name) {
    size_t offset = sim->arena_used + SIM_RED_ZONE;
    uintptr_t at = (uintptr_t)(sim->arena + offset);
    offset += (alignment - at % alignment) % alignment;
    if (sim->variable_count == SIM_VARIABLES || offset + bytes + SIM_RED_ZONE > SIM_ARENA_BYTES) return NULL;
    sim_variable_t *v = &sim->variables[sim->variable_count++];
    *v = (sim_variable_t){.key = key, .name = name, .offset = offset, .bytes = bytes};
    sim->arena_used = offset + bytes;
    sim->shared_used += bytes;
    memset(sim->arena + offset, 0xff, bytes); // NaN in f32, bf16, f16 and f64
    return v;
}

void sim_shared_block(sim_state_t *sim) {
    size_t threads = (size_t)sim->threads;
    forget_accesses(sim);
    sim->variable_count = sim->last_variable = 0;
    sim->arena_used = sim->shared_used = 0;
    memset(sim->floor, 0, threads * sizeof(*sim->floor));
    memset(sim->rows, 0, sim->rows_used * sizeof(*sim->rows));
    sim->rows_used = 0;
    for (size_t i = 0; i < threads; i++) sim->thread[i].time = 1;
    if (sim->launch->shared_bytes)
        add_variable(sim, &sim->launch->shared_bytes, sim->launch->shared_bytes, 128, "dynamic shared memory");
}

void *sim_shared_take(const void *key, size_t bytes, size_t alignment, const char *name, const char *file, int line) {
    sim_state_t *sim = sim_now;
    for (int i = 0; i < sim->variable_count; i++)
        if (sim->variables[i].key == key) return sim->arena + sim->variables[i].offset;
    if (sim->shared_used + bytes > SIM_SHARED_BYTES)
        sim_fault(file, line, "'%s' would bring the block to %zu bytes of shared memory; %d is the most", name,
                  sim->shared_used + bytes, SIM_SHARED_BYTES);
    const sim_variable_t *v = add_variable(sim, key, bytes, alignment < 16 ? 16 : alignment, name);
    if (!v) sim_fault(file, line, "'%s' is one shared variable too many", name);
    return sim->arena + v->offset;
}

void *sim_shared_dynamic(void) {
    sim_state_t *sim = sim_now;
    if (!sim->launch->shared_bytes) sim_fault(NULL, 0, "it uses dynamic shared memory, but was launched with none");
    return sim->arena + sim->variables[0].offset;
}

// ---- order ----

void sim_shared_meet(sim_state_t *sim, const int *list, int count, bool full) {
    if (full) {
        for (int i = 0; i < count; i++) sim->floor[list[i]] = sim->thread[list[i]].time++;
        forget_accesses(sim);
        return;
    }
    size_t threads = (size_t)sim->threads;
    uint32_t *joined = sim->thread[list[0]].seen;
    sim->rows_used = threads * threads;
    for (int i = 0; i < count; i++) {
        const uint32_t *row = sim->thread[list[i]].seen;
        for (size_t t = 0; t < threads; t++) joined[t] = joined[t] > row[t] ? joined[t] : row[t];
    }
    for (int i = 0; i < count; i++) joined[list[i]] = sim->thread[list[i]].time++;
    for (int i = 1; i < count; i++) memcpy(sim->thread[list[i]].seen, joined, threads * sizeof(*joined));
}

static bool is_after(const sim_state_t *sim, int thread, uint32_t time) {
    const sim_thread_t *self = sim->running;
    return self->number == thread || sim->floor[thread] >= time || self->seen[thread] >= time;
}

// ---- accesses ----

void sim_source_of(const void *at, char *out, size_t bytes) {
    Dl_info info;
    char command[512];
    snprintf(out, bytes, "%p", at);
    if (!at || !dladdr(at, &info) || !info.dli_fname) return;
    uintptr_t offset = (uintptr_t)at - (uintptr_t)info.dli_fbase - 1; // within the call, which the address follows
    snprintf(command, sizeof(command), "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname, (size_t)offset);
    FILE *pipe = popen(command, "r");
    char line[512] = "";
    if (!pipe) return;
    if (!fgets(line, sizeof(line), pipe)) line[0] = 0;
    pclose(pipe);
    line[strcspn(line, "\n ")] = 0; // without "(discriminator N)"
    if (line[0] && line[0] != '?') snprintf(out, bytes, "%s", line);
}

static const sim_variable_t *variable_at(const sim_state_t *sim, size_t offset, size_t *distance) {
    const sim_variable_t *nearest = NULL;
    *distance = SIZE_MAX;
    for (int i = 0; i < sim->variable_count; i++) {
        const sim_variable_t *v = &sim->variables[i];
        size_t away = offset < v->offset               ? v->offset - offset
                      : offset >= v->offset + v->bytes ? offset - v->offset - v->bytes + 1
                                                       : 0;
        if (away >= *distance) continue;
        *distance = away;
        nearest = v;
    }
    return nearest;
}

__attribute__((noreturn)) static void stop_race(const sim_state_t *sim, size_t offset, bool writes, const void *at,
                                                bool other_wrote, int other, const void *other_at) {
    char here[256], there[256];
    size_t distance;
    const sim_variable_t *v = variable_at(sim, offset, &distance);
    sim_source_of(at, here, sizeof(here));
    sim_source_of(other_at, there, sizeof(there));
    sim_fault(
        NULL, 0, "race: it %s byte %zu of the shared '%s' at %s, which thread %d %s at %s with no barrier between",
        writes ? "writes" : "reads", offset - v->offset, v->name, here, other, other_wrote ? "wrote" : "read", there);
}

__attribute__((noreturn)) static void stop_bounds(const sim_state_t *sim, size_t offset, size_t bytes, bool writes,
                                                  const void *at) {
    char here[256];
    size_t distance;
    const sim_variable_t *v = variable_at(sim, offset, &distance);
    sim_source_of(at, here, sizeof(here));
    if (!v) sim_fault(NULL, 0, "it %s shared memory it does not have at %s", writes ? "writes" : "reads", here);
    long long place = (long long)offset - (long long)v->offset;
    sim_fault(NULL, 0, "out of bounds: it %s %zu bytes at byte %lld of the shared '%s', which has %zu, at %s",
              writes ? "writes" : "reads", bytes, place, v->name, v->bytes, here);
}

static uint32_t code_place(const void *at) {
    return (uint32_t)((uintptr_t)at - (uintptr_t)__executable_start);
}
static const void *code_at(uint32_t place) {
    return (const void *)((uintptr_t)__executable_start + place);
}

// The latest reader is kept in the cell: who reads on is found there. One that comes back after others is noted twice,
// which changes nothing.
static void cell_read(sim_state_t *sim, sim_cell_t *cell, uint32_t at) {
    int self = sim->running->number;
    if (cell->reader >= 0 && cell->reader != self) {
        if ((size_t)sim->read_count == sim->read_capacity) {
            size_t more = sim->read_capacity ? 2 * sim->read_capacity : 4096;
            sim_read_t *grown = realloc(sim->reads, more * sizeof(*grown));
            if (!grown) sim_fault(NULL, 0, "no memory is left to record who reads");
            sim->reads = grown;
            sim->read_capacity = more;
        }
        sim->reads[sim->read_count] =
            (sim_read_t){.next = cell->reads, .time = cell->reader_time, .at = cell->reader_at, .thread = cell->reader};
        cell->reads = sim->read_count++;
    }
    cell->reader = (int16_t)self;
    cell->reader_time = sim->running->time;
    cell->reader_at = at;
}

static inline void cell_access(sim_state_t *sim, sim_cell_t *cell, size_t offset, bool writes, uint32_t at) {
    if (cell->writer >= 0 && !is_after(sim, cell->writer, cell->writer_time))
        stop_race(sim, offset, writes, code_at(at), true, cell->writer, code_at(cell->writer_at));
    if (!writes) {
        cell_read(sim, cell, at);
        return;
    }
    if (cell->reader >= 0) {
        if (!is_after(sim, cell->reader, cell->reader_time))
            stop_race(sim, offset, true, code_at(at), false, cell->reader, code_at(cell->reader_at));
        for (int r = cell->reads; r >= 0; r = sim->reads[r].next)
            if (!is_after(sim, sim->reads[r].thread, sim->reads[r].time))
                stop_race(sim, offset, true, code_at(at), false, sim->reads[r].thread, code_at(sim->reads[r].at));
    }
    cell->reads = cell->reader = -1;
    cell->writer = (int16_t)sim->running->number;
    cell->writer_time = sim->running->time;
    cell->writer_at = at;
}

static const sim_variable_t *variable_of(sim_state_t *sim, size_t offset, size_t bytes) {
    const sim_variable_t *v = &sim->variables[sim->last_variable];
    size_t distance;
    if (sim->last_variable < sim->variable_count && offset >= v->offset && offset + bytes <= v->offset + v->bytes)
        return v;
    v = variable_at(sim, offset, &distance);
    if (!v || distance || offset + bytes > v->offset + v->bytes) return NULL;
    sim->last_variable = (int)(v - sim->variables);
    return v;
}

void sim_shared_access(const void *address, size_t bytes, bool writes, const void *at) {
    sim_state_t *sim = sim_now;
    size_t first = (size_t)((const unsigned char *)address - sim->arena), end = first + bytes;
    uint32_t place = code_place(at);
    if (!variable_of(sim, first, bytes)) stop_bounds(sim, first, bytes, writes, at);
    for (size_t i = first; i < end;) {
        sim_cell_t *word = &sim->words[i / WORD];
        if (word->generation != sim->generation)
            *word = (sim_cell_t){.generation = sim->generation, .writer = -1, .reader = -1, .reads = -1};
        bool whole = i % WORD == 0 && end - i >= WORD;
        if (!word->split && whole) {
            cell_access(sim, word, i, writes, place);
            i += WORD;
            continue;
        }
        if (!word->split) {
            for (size_t b = 0; b < WORD; b++) sim->bytes[i / WORD * WORD + b] = *word;
            word->split = true;
        }
        for (size_t last = i / WORD * WORD + WORD; i < last && i < end; i++)
            cell_access(sim, &sim->bytes[i], i, writes, place);
    }
}

// ---- cp.async ----

void sim_copy_async(void *to, const void *from, int bytes, int from_bytes, const char *file, int line) {
    sim_thread_t *self = sim_now->running;
    if ((uintptr_t)to % (size_t)bytes || (uintptr_t)from % (size_t)bytes)
        sim_fault(file, line, "an asynchronous copy of %d bytes is not aligned to them", bytes);
    if (self->copy_count == SIM_COPIES) sim_fault(file, line, "more than %d asynchronous copies in flight", SIM_COPIES);
    self->copies[self->copy_count++] =
        (sim_copy_t){.to = to, .from = from, .bytes = bytes, .from_bytes = from_bytes, .group = self->copy_group};
    if (from_bytes) sim_global_access(from, (size_t)from_bytes, false, __builtin_return_address(0));
    // The hardware may write at once.
    sim_shared_access(to, (size_t)bytes, true, __builtin_return_address(0));
}

void sim_copy_commit(void) {
    sim_now->running->copy_group++;
}

void sim_copy_wait(int groups_left, const char *file, int line) {
    sim_thread_t *self = sim_now->running;
    int kept = 0;
    (void)file, (void)line;
    for (int i = 0; i < self->copy_count; i++) {
        sim_copy_t *copy = &self->copies[i];
        if (copy->group >= self->copy_group - groups_left) {
            self->copies[kept++] = *copy;
            continue;
        }
        sim_shared_access(copy->to, (size_t)copy->bytes, true, __builtin_return_address(0));
        memset(copy->to, 0, (size_t)copy->bytes);
        memcpy(copy->to, copy->from, (size_t)copy->from_bytes);
    }
    self->copy_count = kept;
}

// ---- atomics ----

uint32_t sim_atomic_u32(uint32_t *at, uint32_t (*step)(uint32_t old, uint32_t operand), uint32_t operand) {
    sim_global_access(at, sizeof(*at), true, __builtin_return_address(0));
    uint32_t old = *at;
    *at = step(old, operand);
    return old;
}

uint64_t sim_atomic_add_u64(uint64_t *at, uint64_t operand) {
    sim_global_access(at, sizeof(*at), true, __builtin_return_address(0));
    uint64_t old = *at;
    *at = old + operand;
    return old;
}
