// What -fsanitize=thread makes the compiler call before each load and store of a .cu file (see shared.c). Code outside
// a launch passes. A guarded launch may touch its block's shared memory, live allocations of the device, its own stack
// and the program's constants; under the address sanitizer other launches' memory is asked about too.
#include "kernels/sim/memory.h"
#include "kernels/sim/state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// The program's code and constants lie between these (the linker's and the C library's names).
extern const char __executable_start[], __data_start[];

static bool within(const void *address, const void *start, size_t bytes) {
    return (uintptr_t)address - (uintptr_t)start < bytes;
}

// What the compiler's own code reads: the launch's arguments, the thread's numbers, what other lanes gave.
static bool own_memory(const sim_state_t *sim, const void *address, bool writes) {
    const fiber_t *fiber = &sim->running->fiber;
    size_t warps = (size_t)(sim->threads + SIM_WARP - 1) / SIM_WARP;
    if (within(address, fiber->stack, fiber->bytes)) return true;
    if (writes) return false;
    return within(address, sim->launch->context, sim->launch->context_bytes) ||
           within(address, sim->thread, (size_t)sim->threads * sizeof(*sim->thread)) ||
           within(address, sim->exchanges, warps * SIM_EXCHANGES * sizeof(*sim->exchanges)) ||
           within(address, &sim_self, sizeof(sim_self)) ||
           within(address, __executable_start, (size_t)(__data_start - __executable_start));
}

__attribute__((noreturn, noinline)) static void stop_access(const void *address, size_t bytes, bool writes,
                                                            const void *at, const char *what) {
    char here[256];
    sim_source_of(at, here, sizeof(here));
    sim_fault(NULL, 0, "it %s %zu bytes of %s at %s%s", writes ? "writes" : "reads", bytes, what, here,
              sim_memory_owns(address) ? "" : "; a kernel is given device memory only");
}

static void other_memory(const sim_state_t *sim, const void *address, size_t bytes, bool writes, const void *at) {
    char what[256];
    if (sim->launch->guarded) {
        bool device = sim_memory_owns(address);
        if (!device && own_memory(sim, address, writes)) return;
        if (!sim_memory_holds(address, bytes, what, sizeof(what))) stop_access(address, bytes, writes, at, what);
        return;
    }
#if defined(__SANITIZE_ADDRESS__)
    if (!__asan_region_is_poisoned((void *)(uintptr_t)address, bytes)) return;
    sim_source_of(at, what, sizeof(what));
    sim_fault(NULL, 0, "it %s %zu bytes of memory that it may not use (%p) at %s", writes ? "writes" : "reads", bytes,
              address, what);
#endif
}

void sim_access(const void *address, size_t bytes, bool writes, const void *at) {
    const sim_state_t *sim = sim_now;
    if (within(address, sim->arena, SIM_ARENA_BYTES))
        sim_shared_access(address, bytes, writes, at);
    else
        other_memory(sim, address, bytes, writes, at);
}

void sim_global_access(const void *address, size_t bytes, bool writes, const void *at) {
    const sim_state_t *sim = sim_now;
    if (!within(address, sim->arena, SIM_ARENA_BYTES)) other_memory(sim, address, bytes, writes, at);
}

static inline void hook(void *address, size_t bytes, bool aligned, bool writes, const void *at) {
    const sim_state_t *sim = sim_now;
    if (!sim) return;
    if (aligned && (uintptr_t)address % bytes) {
        char here[256];
        sim_source_of(at, here, sizeof(here));
        sim_fault(NULL, 0, "it %s %zu bytes at an address that is no multiple of them (%p) at %s",
                  writes ? "writes" : "reads", bytes, address, here);
    }
    sim_access(address, bytes, writes, at);
}

#define HOOK(name, bytes, aligned, writes)                                                                             \
    void name(void *address);                                                                                          \
    void name(void *address) {                                                                                         \
        hook(address, bytes, aligned, writes, __builtin_return_address(0));                                            \
    }
HOOK(__tsan_read1, 1, true, false)
HOOK(__tsan_read2, 2, true, false)
HOOK(__tsan_read4, 4, true, false)
HOOK(__tsan_read8, 8, true, false)
HOOK(__tsan_read16, 16, true, false)
HOOK(__tsan_write1, 1, true, true)
HOOK(__tsan_write2, 2, true, true)
HOOK(__tsan_write4, 4, true, true)
HOOK(__tsan_write8, 8, true, true)
HOOK(__tsan_write16, 16, true, true)
HOOK(__tsan_unaligned_read2, 2, false, false)
HOOK(__tsan_unaligned_read4, 4, false, false)
HOOK(__tsan_unaligned_read8, 8, false, false)
HOOK(__tsan_unaligned_read16, 16, false, false)
HOOK(__tsan_unaligned_write2, 2, false, true)
HOOK(__tsan_unaligned_write4, 4, false, true)
HOOK(__tsan_unaligned_write8, 8, false, true)
HOOK(__tsan_unaligned_write16, 16, false, true)

void __tsan_read_range(void *address, unsigned long bytes);
void __tsan_read_range(void *address, unsigned long bytes) {
    if (bytes) hook(address, bytes, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void *address, unsigned long bytes);
void __tsan_write_range(void *address, unsigned long bytes) {
    if (bytes) hook(address, bytes, false, true, __builtin_return_address(0));
}
void __tsan_init(void);
void __tsan_init(void) {
}
void __tsan_func_entry(void *caller);
void __tsan_func_entry(void *caller) {
    (void)caller;
}
void __tsan_func_exit(void);
void __tsan_func_exit(void) {
}
void __tsan_vptr_update(void **at, void *value);
void __tsan_vptr_update(void **at, void *value) {
    (void)at, (void)value;
}
