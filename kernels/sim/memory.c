// Device memory of the simulator: allocations with guard zones in a range of addresses that nothing else uses and that
// is never used twice, so that freed memory stays known as such. The range is closed to the host: what touches it
// outside of a launch or a copy ends the process.
#include "kernels/sim/memory.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GRANULE = 256, GUARD = 256 };
static const size_t range_bytes = (size_t)1 << 38;

typedef struct allocation {
    size_t offset, bytes;
    bool live;
} allocation_t;

static struct {
    char *range;
    size_t used;        // of the range: what is opened and closed
    uint32_t *owner;    // by granule: 0, or the number of the allocation, from 1
    allocation_t *list; // [count], in order of their offsets
    uint32_t count, capacity;
    size_t live, live_bytes, total;
    int open;
    struct sigaction before;
} memory = {.total = (size_t)16 << 30};

static const allocation_t *allocation_at(const void *address) {
    size_t offset = (size_t)((const char *)address - memory.range);
    uint32_t number = memory.owner[offset / GRANULE];
    return number ? &memory.list[number - 1] : NULL;
}

bool sim_memory_owns(const void *address) {
    return memory.range && (uintptr_t)address - (uintptr_t)memory.range < range_bytes;
}

static void describe(const void *address, char *out, size_t bytes) {
    size_t offset = (size_t)((const char *)address - memory.range);
    const allocation_t *a = allocation_at(address);
    for (size_t i = offset / GRANULE; !a && i > 0 && i + 2 * GUARD / GRANULE > offset / GRANULE; i--)
        if (memory.owner[i - 1]) a = &memory.list[memory.owner[i - 1] - 1]; // beyond its end
    if (!a && memory.owner[(offset + GUARD) / GRANULE]) a = &memory.list[memory.owner[(offset + GUARD) / GRANULE] - 1];
    if (!a)
        snprintf(out, bytes, "device memory that was never allocated");
    else
        snprintf(out, bytes, "byte %lld of %s of %zu bytes (number %u)", (long long)offset - (long long)a->offset,
                 a->live ? "an allocation" : "a freed allocation", a->bytes, (unsigned)(a - memory.list) + 1);
}

bool sim_memory_holds(const void *address, size_t bytes, char *why, size_t why_bytes) {
    if (!sim_memory_owns(address)) {
        snprintf(why, why_bytes, "host memory (%p)", address);
        return false;
    }
    const allocation_t *a = allocation_at(address);
    size_t offset = (size_t)((const char *)address - memory.range);
    if (a && a->live && offset - a->offset <= a->bytes && bytes <= a->bytes - (offset - a->offset)) return true;
    describe(address, why, why_bytes);
    return false;
}

// ---- the host's own accesses ----

// Says whose memory it was, then lets the signal do what it did before.
static void host_touched(int number, siginfo_t *info, void *context) {
    (void)context;
    if (sim_memory_owns(info->si_addr)) {
        char where[160], text[320];
        describe(info->si_addr, where, sizeof(where));
        int length =
            snprintf(text, sizeof(text),
                     "sim: the host touches %s; a GPU's memory is read with download and written with upload\n", where);
        if (length > 0 && write(STDERR_FILENO, text, (size_t)length) < 0) _exit(1);
    }
    sigaction(number, &memory.before, NULL); // returning repeats the access, now without this handler
}

static bool range_open(void) {
    void *range = mmap(NULL, range_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *owner = mmap(NULL, range_bytes / GRANULE * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED || owner == MAP_FAILED) {
        if (range != MAP_FAILED) munmap(range, range_bytes);
        return false;
    }
    madvise(range, range_bytes, MADV_DONTDUMP);
    madvise(owner, range_bytes / GRANULE * sizeof(uint32_t), MADV_DONTDUMP);
    memory.range = range;
    memory.owner = owner;
    memory.used = GUARD;
    struct sigaction action = {.sa_sigaction = host_touched, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &memory.before);
    return true;
}

static size_t pages(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void range_allow(int access) {
    if (!memory.range || !mprotect(memory.range, pages(memory.used), access)) return;
    perror("sim: the addresses of device memory cannot be opened or closed");
    _exit(1);
}

void sim_memory_unlock(void) {
    if (memory.open++ == 0) range_allow(PROT_READ | PROT_WRITE);
}

void sim_memory_lock(void) {
    if (--memory.open == 0) range_allow(PROT_NONE);
}

// ---- allocations ----

void *sim_memory_take(size_t bytes) {
    if (!memory.range && !range_open()) return NULL;
    size_t rounded = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    if (rounded < bytes || bytes > memory.total - memory.live_bytes || rounded + 2 * GUARD > range_bytes - memory.used)
        return NULL;
    if (memory.count == memory.capacity) {
        uint32_t more = memory.capacity ? 2 * memory.capacity : 1024;
        allocation_t *grown = realloc(memory.list, more * sizeof(*grown));
        if (!grown) return NULL;
        memory.list = grown;
        memory.capacity = more;
    }
    allocation_t *a = &memory.list[memory.count++];
    *a = (allocation_t){.offset = memory.used, .bytes = bytes, .live = true};
    for (size_t i = 0; i < (rounded ? rounded : GRANULE) / GRANULE; i++)
        memory.owner[a->offset / GRANULE + i] = memory.count;
    memory.used += (rounded ? rounded : GRANULE) + GUARD;
    memory.live++;
    memory.live_bytes += bytes;
    sim_memory_unlock();
    memset(memory.range + a->offset, 0xff, bytes);
    sim_memory_lock();
    return memory.range + a->offset;
}

bool sim_memory_free(void *address, char *why, size_t why_bytes) {
    const allocation_t *found = sim_memory_owns(address) ? allocation_at(address) : NULL;
    if (!found || !found->live || memory.range + found->offset != (char *)address) {
        if (!sim_memory_owns(address))
            snprintf(why, why_bytes, "host memory (%p)", address);
        else
            describe(address, why, why_bytes);
        return false;
    }
    allocation_t *a = &memory.list[found - memory.list];
    a->live = false;
    memory.live--;
    memory.live_bytes -= a->bytes;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), first = pages(a->offset), last = (a->offset + a->bytes) / page * page;
    if (first < last) madvise(memory.range + first, last - first, MADV_DONTNEED);
    return true;
}

size_t sim_memory_live(size_t *bytes) {
    *bytes = memory.live_bytes;
    return memory.live;
}

size_t sim_memory_total(void) {
    return memory.total;
}

void sim_memory_set_total(size_t bytes) {
    memory.total = bytes > memory.live_bytes ? bytes : memory.live_bytes;
}

void sim_memory_report(void) {
    for (uint32_t i = 0, said = 0; i < memory.count && said < 8; i++) {
        if (!memory.list[i].live) continue;
        fprintf(stderr, "sim: allocation %u of %zu bytes was never freed\n", i + 1, memory.list[i].bytes);
        said++;
    }
}
