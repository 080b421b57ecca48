// The clock of every deadline and duration.
#ifndef COMMON_COMM_CLOCK_H
#define COMMON_COMM_CLOCK_H

// Seconds since some fixed moment (CLOCK_MONOTONIC).
double clock_seconds(void);

#endif
