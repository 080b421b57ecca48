#include "common/comm/clock.h"
#include "common/metrics/metrics.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR_CELLS = 24, DEFAULT_COLUMNS = 80 };
static const double line_every_s = 5, bar_every_s = 0.1;

void progress_start(progress_t *progress, const char *label, int64_t total) {
    *progress = (progress_t){.label = label, .total = total, .started = clock_seconds()};
    progress->terminal = isatty(STDERR_FILENO) == 1;
    progress->shown = progress->terminal ? 0 : progress->started;
}

// "1:02:03" or "2:03".
static void format_time(double seconds, char out[32]) {
    long whole = seconds > 0 && seconds < 1e9 ? (long)(seconds + 0.5) : 0;
    if (whole >= 3600)
        snprintf(out, 32, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(out, 32, "%ld:%02ld", whole / 60, whole % 60);
}

void progress_show(progress_t *progress, int64_t done, const char *detail) {
    double now = clock_seconds(), spent = now - progress->started;
    bool last = done >= progress->total;
    double every = progress->terminal ? bar_every_s : line_every_s;
    if (!last && now - progress->shown < every) return;
    progress->shown = now;
    char line[512], left[32] = "-:--", took[32];
    double share = progress->total > 0 ? (double)done / (double)progress->total : 1;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    format_time(spent, took);
    if (done > 0) format_time(spent * (double)(progress->total - done) / (double)done, left);
    if (!progress->terminal) {
        fprintf(stderr, "%s %lld/%lld, %s spent, %s left%s%s\n", progress->label, (long long)done,
                (long long)progress->total, took, left, detail[0] ? ", " : "", detail);
        return;
    }
    char bar[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++) bar[i] = i < (int)(share * BAR_CELLS) ? '#' : '-';
    bar[BAR_CELLS] = 0;
    snprintf(line, sizeof(line), "%s [%s] %lld/%lld %s left %s", progress->label, bar, (long long)done,
             (long long)progress->total, left, detail);
    struct winsize window = {0};
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col ? window.ws_col : DEFAULT_COLUMNS;
    // A line longer than the terminal would wrap and never be overwritten.
    fprintf(stderr, "\r%.*s\033[K", columns - 1, line);
    fflush(stderr);
}

void progress_end(progress_t *progress) {
    char took[32];
    format_time(clock_seconds() - progress->started, took);
    if (progress->terminal) fprintf(stderr, "\r%s: done in %s\033[K\n", progress->label, took);
}
