// What -fsanitize=thread makes the compiler call before each load and store of a .cu file (see shared.c). Code outside
// a launch, and memory other than the block's shared memory, passes; under the address sanitizer it is asked about the
// rest.
#include "kernels/sim/state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static void other_memory(void *address, size_t bytes, bool writes, const void *at) {
    char here[256];
    if (!__asan_region_is_poisoned(address, bytes)) return;
    sim_source_of(at, here, sizeof(here));
    sim_fault(NULL, 0, "it %s %zu bytes of memory that it may not use (%p) at %s", writes ? "writes" : "reads", bytes,
              address, here);
}
#else
static void other_memory(void *address, size_t bytes, bool writes, const void *at) {
    (void)address, (void)bytes, (void)writes, (void)at;
}
#endif

static inline void hook(void *address, size_t bytes, bool aligned, bool writes, const void *at) {
    const sim_state_t *sim = sim_now;
    if (!sim) return;
    if (aligned && (uintptr_t)address % bytes) {
        char here[256];
        sim_source_of(at, here, sizeof(here));
        sim_fault(NULL, 0, "it %s %zu bytes at an address that is no multiple of them (%p) at %s",
                  writes ? "writes" : "reads", bytes, address, here);
    }
    if ((uintptr_t)address - (uintptr_t)sim->arena < SIM_ARENA_BYTES)
        sim_shared_access(address, bytes, writes, at);
    else
        other_memory(address, bytes, writes, at);
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
