// The simulated GPU: runs the kernels of kernels/cuda/*.cu, compiled as C++, on the CPU. See docs/gpu.md.
//
// A block's threads are fibers of one host thread; blocks run one after another. What a kernel does wrong (a stuck or
// divergent barrier, a shuffle with a wrong mask, a race on shared memory, an access outside it) ends the launch with a
// STATUS_FAILED whose message names the kernel, the block, the threads and the source lines.
//
// The .cu files know this header only through kernels/cuda/cuda_shim.h. Simulator state is one per host thread.
#ifndef KERNELS_SIM_SIM_H
#define KERNELS_SIM_SIM_H

#include "kernels/base/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SIM_BLOCK_THREADS = 1024,
    SIM_WARP = 32,
    SIM_SHARED_BYTES = 163 * 1024, // what a block of sm_80 may have
    SIM_PLAIN_BYTES = 48 * 1024,   // of dynamic shared memory without sim_grant_shared
    SIM_BARRIERS = 16,
    SIM_PACKET = 64 // bytes that a lane gives to one warp exchange
};

typedef struct sim_dim {
    unsigned x, y, z;
} sim_dim_t;

// The order in which runnable threads get their turn, and blocks run.
typedef enum sim_order { SIM_FORWARD, SIM_REVERSE, SIM_SHUFFLED } sim_order_t;
void sim_set_order(sim_order_t order, uint64_t seed); // of the calling thread; a stream keeps it from its creation on
void sim_get_order(sim_order_t *order, uint64_t *seed);

typedef struct sim_launch {
    const char *kernel;   // the function that launches it, for messages
    const void *function; // the kernel itself
    sim_dim_t grid, block;
    size_t shared_bytes; // dynamic
    void (*body)(void *context);
    void *context;
    size_t context_bytes;
    bool guarded; // global memory is the device's (kernels/sim/sim_runtime.h): a host pointer is a fault
} sim_launch_t;
// Lets a kernel have so many bytes of dynamic shared memory from now on, as cudaFuncSetAttribute does.
status_t sim_grant_shared(const void *function, size_t bytes, const char *launcher) STATUS_CHECKED;
// STATUS_INVALID for a grid, a block or shared memory that no GPU has, or shared memory that the kernel was not
// granted.
status_t sim_launch_check(const sim_launch_t *launch) STATUS_CHECKED;
// What a launch in a .cu file does: it joins the stream, with a copy of the context, and runs guarded when somebody
// waits. Without a stream it runs at once, unguarded: for tests of the simulator itself.
status_t sim_enqueue(const sim_launch_t *launch, size_t context_bytes, void *stream) STATUS_CHECKED;
// Runs every thread of every block; returns when all have ended, or at the first fault.
status_t sim_run(const sim_launch_t *launch) STATUS_CHECKED;

// What the running thread is.
typedef struct sim_self {
    sim_dim_t thread_index, block_index, block_size, grid_size;
} sim_self_t;
extern __thread const sim_self_t *sim_self;

// ---- called by running threads ----
// Memory of the block: the same address for the same key. Filled with NaN when the block first asks.
void *sim_shared_take(const void *key, size_t bytes, size_t alignment, const char *name, const char *file, int line);
void *sim_shared_dynamic(void);
// Barrier 0 is __syncthreads and waits for every thread of the block; 1 to 15 wait for `threads` threads.
void sim_barrier(int barrier, int threads, const char *file, int line);
// Gives `bytes` bytes and gets those of all lanes in `mask` (SIM_PACKET apart, by lane), valid until this thread's next
// call. All lanes of the mask must make the same call from the same line. orders: also orders memory (__syncwarp).
const unsigned char *sim_warp_exchange(const char *what, uint32_t mask, const void *packet, size_t bytes, bool orders,
                                       const char *file, int line);
int sim_lane(void);
// Tensor-core instructions of a whole warp; what they are is told in kernels/sim/sim_cuda.h.
typedef struct sim_words {
    uint32_t at[4];
} sim_words_t;
typedef struct sim_floats {
    float at[4];
} sim_floats_t;
sim_words_t sim_load_matrices(const void *row, bool transposed, const char *file, int line);
sim_floats_t sim_mma(sim_words_t a, uint64_t b, sim_floats_t d, const char *file, int line);
// Ends the launch with this message (and where).
__attribute__((format(printf, 3, 4), noreturn)) void sim_fault(const char *file, int line, const char *format, ...);
// cp.async: copies when waited for; the target counts as written from the call on.
void sim_copy_async(void *to, const void *from, int bytes, int from_bytes, const char *file, int line);
void sim_copy_commit(void);
void sim_copy_wait(int groups_left, const char *file, int line);
// Integer atomics: one simulated thread runs at a time, so they only need to be known as no race.
uint32_t sim_atomic_u32(uint32_t *at, uint32_t (*step)(uint32_t old, uint32_t operand), uint32_t operand);
uint64_t sim_atomic_add_u64(uint64_t *at, uint64_t operand);

#ifdef __cplusplus
}
#endif
#endif
