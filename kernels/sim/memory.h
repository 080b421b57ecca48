// The simulated device's memory; the callers hold the lock of runtime.c. Not for others than kernels/sim.
#ifndef KERNELS_SIM_MEMORY_H
#define KERNELS_SIM_MEMORY_H

#include "kernels/base/status.h"
#include <stdbool.h>
#include <stddef.h>

// NULL: the device has no memory left, or the host has no addresses.
void *sim_memory_take(size_t bytes);
// False: it is not the start of a live allocation; *why says what it is.
bool sim_memory_free(void *memory, char *why, size_t why_bytes);
// Whether an address lies in the device's range at all.
bool sim_memory_owns(const void *address);
// Whether the bytes lie in one live allocation; else `why` says where they lie.
bool sim_memory_holds(const void *address, size_t bytes, char *why, size_t why_bytes);
// Where the runtime itself reads and writes what lies at an address, the device's or the host's.
void *sim_memory_view(const void *address);
// With no live allocation: the addresses may be used again.
void sim_memory_forget(void);
// Opens the range to this process while kernels run. Calls nest.
void sim_memory_unlock(void);
void sim_memory_lock(void);
size_t sim_memory_live(size_t *bytes);
size_t sim_memory_total(void);
void sim_memory_set_total(size_t bytes);
// Prints the live allocations.
void sim_memory_report(void);

#endif
