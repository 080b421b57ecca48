// What the parts of `poise doctor` share.
#ifndef LAUNCH_DOCTOR_H
#define LAUNCH_DOCTOR_H

#include "common/comm/comm.h"

typedef enum verdict { VERDICT_OK, VERDICT_WARNING, VERDICT_PROBLEM } verdict_t;

typedef struct doctor {
    int warnings, problems;
} doctor_t;

// One line; `mend` (NULL when all is well) follows after a semicolon.
void doctor_say(doctor_t *doctor, verdict_t verdict, const char *what, const char *mend, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void doctor_check_cuda(doctor_t *doctor);
void doctor_check_simulator(doctor_t *doctor);
// Collective over the world.
void doctor_check_places(doctor_t *doctor, comm_t *world);

#endif
