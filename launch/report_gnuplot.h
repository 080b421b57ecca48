// Running gnuplot as a child process.
#ifndef LAUNCH_REPORT_GNUPLOT_H
#define LAUNCH_REPORT_GNUPLOT_H

#include "kernels/base/status.h"

// The line `gnuplot --version` prints (malloc'd), or NULL when there is no gnuplot here.
status_t gnuplot_version(char **out) STATUS_CHECKED;
// Runs gnuplot on a script, in `directory`. *complaint (malloc'd, may be NULL) gets the last line it printed when it
// failed, was killed by its deadline of a minute, or is missing; that is no error of the report.
status_t gnuplot_run(const char *directory, const char *script, char **complaint) STATUS_CHECKED;

#endif
