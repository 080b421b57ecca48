// The device table of the simulator: the kernels of kernels/cuda on a CPU, for tests. Members that have no kernel there
// are NULL. Open it with device_open_table; its kernel sets are the orders in which threads and blocks take turns:
// "forward" (also ""), "reverse" and "shuffled:SEED".
#ifndef KERNELS_SIM_SIM_DEVICE_H
#define KERNELS_SIM_SIM_DEVICE_H

#include "kernels/device.h"

extern const device_table_t device_sim_table;

#endif
