// Device memory of the simulator: allocations with guard zones in a range of addresses that nothing else uses and that
// is not used twice while a device is open, so that freed memory stays known as such. The range is closed to the host:
// what touches it outside of a launch ends the process. The runtime's copies go through a second view of the same
// pages.
#include "kernels/sim/memory.h"
#include "kernels/sim/sim_runtime.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GRANULE = 4096, GUARD = GRANULE }; // a page each
static const size_t range_bytes = (size_t)1 << 38;

typedef struct allocation {
    size_t offset, bytes;
    uint32_t before, after; // the live allocations beside it, by number; 0: none
    bool live;
} allocation_t;

static struct {
    char *range, *view; // the device's addresses, and the runtime's of the same pages
    int file;
    uint32_t first, last; // live
    size_t used;          // of the range: what is opened and closed
    uint32_t *owner;      // by granule: 0, or the number of the allocation, from 1
    allocation_t *list;   // [count], in order of their offsets
    uint32_t count, capacity;
    size_t live, live_bytes, total;
    int open;
    struct sigaction before;
} memory;
static const size_t usual_bytes = (size_t)16 << 30; // that the device has

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
    for (size_t i = offset / GRANULE; !a && i > 0 && i + 1 > offset / GRANULE; i--)
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

void sim_runtime_end_plainly(void) {
    memory.before = (struct sigaction){.sa_handler = SIG_DFL};
    struct sigaction action = {.sa_sigaction = host_touched, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, NULL);
}

static void *range_map(int file, size_t bytes, int access) {
    int flags = MAP_NORESERVE | (file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    void *out = mmap(NULL, bytes, access, flags, file, 0);
    if (out == MAP_FAILED) return NULL;
    madvise(out, bytes, MADV_DONTDUMP);
    return out;
}

static bool range_open(void) {
    size_t owners = range_bytes / GRANULE * sizeof(uint32_t);
    int file = memfd_create("poise simulated device", MFD_CLOEXEC);
    if (file < 0) return false;
    bool sized = !ftruncate(file, (off_t)range_bytes);
    void *range = sized ? range_map(file, range_bytes, PROT_NONE) : NULL;
    void *view = range ? range_map(file, range_bytes, PROT_READ | PROT_WRITE) : NULL;
    void *owner = view ? range_map(-1, owners, PROT_READ | PROT_WRITE) : NULL;
    if (!owner) {
        if (range) munmap(range, range_bytes);
        if (view) munmap(view, range_bytes);
        close(file);
        return false;
    }
    memory.file = file;
    memory.range = range;
    memory.view = view;
    memory.owner = owner;
    memory.used = GUARD;
    struct sigaction action = {.sa_sigaction = host_touched, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &memory.before);
    return true;
}

static size_t rounded_up(size_t bytes) {
    return bytes ? (bytes + GRANULE - 1) / GRANULE * GRANULE : GRANULE;
}

// Live allocations that follow each other are opened and closed at once.
static void range_allow(int access) {
    for (uint32_t first = memory.first, last; first; first = memory.list[last - 1].after) {
        for (last = first; memory.list[last - 1].after == last + 1;) last++;
        const allocation_t *a = &memory.list[first - 1], *b = &memory.list[last - 1];
        if (!mprotect(memory.range + a->offset, b->offset + rounded_up(b->bytes) - a->offset, access)) continue;
        perror("sim: the addresses of device memory cannot be opened or closed");
        _exit(1);
    }
}

void sim_memory_unlock(void) {
    if (memory.open++ == 0) range_allow(PROT_READ | PROT_WRITE);
}

void sim_memory_lock(void) {
    if (--memory.open == 0) range_allow(PROT_NONE);
}

void *sim_memory_view(const void *address) {
    if (!sim_memory_owns(address)) return (void *)(uintptr_t)address;
    return memory.view + ((const char *)address - memory.range);
}

static void give_pages(size_t offset, size_t bytes) {
    (void)fallocate(memory.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
}

// ---- allocations ----

void *sim_memory_take(size_t bytes) {
    if (!memory.range && !range_open()) return NULL;
    size_t rounded = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    if (rounded < bytes || bytes > sim_memory_total() - memory.live_bytes ||
        rounded + 2 * GUARD > range_bytes - memory.used)
        return NULL;
    if (memory.count == memory.capacity) {
        uint32_t more = memory.capacity ? 2 * memory.capacity : 1024;
        allocation_t *grown = realloc(memory.list, more * sizeof(*grown));
        if (!grown) return NULL;
        memory.list = grown;
        memory.capacity = more;
    }
    allocation_t *a = &memory.list[memory.count++];
    *a = (allocation_t){.offset = memory.used, .bytes = bytes, .live = true, .before = memory.last};
    if (memory.last)
        memory.list[memory.last - 1].after = memory.count;
    else
        memory.first = memory.count;
    memory.last = memory.count;
    for (size_t i = 0; i < rounded / GRANULE; i++) memory.owner[a->offset / GRANULE + i] = memory.count;
    memory.used += rounded + GUARD;
    memory.live++;
    memory.live_bytes += bytes;
    memset(memory.view + a->offset, 0xff, bytes);
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
    if (a->before)
        memory.list[a->before - 1].after = a->after;
    else
        memory.first = a->after;
    if (a->after)
        memory.list[a->after - 1].before = a->before;
    else
        memory.last = a->before;
    give_pages(a->offset, rounded_up(a->bytes));
    return true;
}

void sim_memory_forget(void) {
    if (memory.live || !memory.range) return;
    madvise(memory.owner, memory.used / GRANULE * sizeof(*memory.owner), MADV_DONTNEED);
    memory.used = GUARD;
    memory.count = 0;
}

size_t sim_memory_live(size_t *bytes) {
    *bytes = memory.live_bytes;
    return memory.live;
}

size_t sim_memory_total(void) {
    const char *own = getenv("POISE_SIM_MEMORY");
    double asked = own ? strtod(own, NULL) * (double)(1 << 20) : 0;
    if (!memory.total) memory.total = asked > 0 ? (size_t)asked : usual_bytes;
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
