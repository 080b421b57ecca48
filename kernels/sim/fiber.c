#include "kernels/sim/fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// The System V registers that a call keeps; about ten times faster than swapcontext, which asks the kernel for signals.
void sim_fiber_jump(void **save, void *load);
__asm__(".text\n.globl sim_fiber_jump\n.type sim_fiber_jump,@function\nsim_fiber_jump:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
        ".size sim_fiber_jump, .-sim_fiber_jump\n");
static void fiber_jump(fiber_t *from, fiber_t *to) {
    sim_fiber_jump(&from->context, to->context);
}
static void fiber_make(fiber_t *fiber, void (*entry)(void)) {
    uintptr_t top = ((uintptr_t)fiber->stack + fiber->bytes) & ~(uintptr_t)15;
    void **at = (void **)(top - 16); // entry finds the stack as after a call: 8 more than a multiple of 16
    *at = (void *)(uintptr_t)entry;
    at -= 6;
    memset(at, 0, 6 * sizeof(*at));
    fiber->context = at;
}
#else
#include <ucontext.h>
// Each context lies at the bottom of its stack; the scheduler's, which has no stack here, on the heap.
static void fiber_jump(fiber_t *from, fiber_t *to) {
    ucontext_t here;
    from->context = &here;
    swapcontext(&here, to->context);
}
static void fiber_make(fiber_t *fiber, void (*entry)(void)) {
    ucontext_t *context = (ucontext_t *)(void *)fiber->stack;
    size_t used = (sizeof(*context) + 63) / 64 * 64;
    getcontext(context);
    context->uc_stack.ss_sp = fiber->stack + used;
    context->uc_stack.ss_size = fiber->bytes - used;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
    fiber->context = context;
}
#endif

status_t fiber_stacks_open(fiber_t *fibers, int count, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), each = bytes + page;
    char *memory = mmap(NULL, (size_t)count * each, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        FAIL(STATUS_MEMORY, "cannot map %zu bytes of stacks for the simulated threads", count * each);
    for (int i = 0; i < count; i++) {
        char *stack = memory + (size_t)i * each;
        fibers[i] = (fiber_t){.stack = stack + page, .bytes = bytes};
        if (!mprotect(stack, page, PROT_NONE)) continue;
        munmap(memory, (size_t)count * each);
        FAIL(STATUS_MEMORY, "cannot protect the stacks of %d simulated threads; use smaller blocks", count);
    }
    return STATUS_OK;
}

void fiber_stacks_close(fiber_t *fibers, int count) {
    if (count <= 0) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(fibers[0].stack - page, (size_t)count * (fibers[0].bytes + page));
}

void fiber_prepare(fiber_t *fiber, void (*entry)(void)) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fiber->stack, fiber->bytes); // what an abandoned run left there
    fiber->fake_stack = NULL;
#endif
    fiber_make(fiber, entry);
}

void fiber_switch(fiber_t *from, fiber_t *to, bool last) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake_stack, to->stack, to->bytes);
#else
    (void)last;
#endif
    fiber_jump(from, to);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

// Learns the bounds of the starter's stack, which is the host thread's own.
void fiber_started(fiber_t *self, fiber_t *starter) {
    (void)self;
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &bytes);
    starter->stack = (char *)(uintptr_t)bottom;
    starter->bytes = bytes;
#else
    (void)starter;
#endif
}
