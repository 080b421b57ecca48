#include "kernels/ledger.h"

#include "kernels/streams.h"
#include <stdlib.h>

typedef struct ledger_entry {
    void *memory;
    size_t bytes;
    ledger_part_t part;
} ledger_entry_t;

struct ledger {
    ledger_entry_t *entry; // what is taken, in order of taking
    size_t count, capacity;
    uint64_t taken[LEDGER_PARTS], planned[LEDGER_PARTS];
    int64_t host[LEDGER_PARTS];
};

// What a part is called, and what makes it smaller.
static const struct {
    const char *name, *advice;
} parts[LEDGER_PARTS] = {
    [LEDGER_WEIGHTS] = {"weights", "set precision: bf16 or take a smaller model; grpo.kl: 0 keeps no second copy"},
    [LEDGER_OPTIMIZER] = {"masters and moments", "train on more GPUs, fewer parts (train.*), or adapters (lora.rank)"},
    [LEDGER_SUMS] = {"gradient sums", "train fewer parts (train.*), or adapters (lora.rank)"},
    [LEDGER_VALUES] = {"values kept for backward",
                       "set recompute: block, or lower launch_leaves, sft.pack_tokens or grpo.max_new_tokens"},
    [LEDGER_GRADIENTS] = {"gradients of activations", "lower launch_leaves, sft.pack_tokens or grpo.max_new_tokens"},
    [LEDGER_CACHE] = {"KV cache", "lower rollout.pages"},
    [LEDGER_FEATURES] = {"image features", "lower rollout.feature_cache_mb"},
    [LEDGER_STEP] = {"a step of the engine", "lower rollout.batch_rows and rollout.prefill_chunk"},
    [LEDGER_WORKSPACE] = {"scratch of kernels", "lower launch_leaves, sft.pack_tokens or rollout.batch_rows"},
    [LEDGER_IMAGES] = {"preprocessed images (at most)", "lower data.patch_cache_mb"},
    [LEDGER_OTHER] = {"other", "take a larger GPU"},
};

const char *ledger_part_name(ledger_part_t part) {
    return parts[part].name;
}

status_t ledger_open(device_t *device) {
    return ALLOCATE(&device->ledger, 1);
}

void ledger_close(device_t *device) {
    if (device->ledger) free(device->ledger->entry);
    free(device->ledger);
    device->ledger = NULL;
}

void ledger_plan(device_t *device, ledger_part_t part, size_t bytes) {
    device->ledger->planned[part] = bytes;
}

void ledger_note_host(device_t *device, ledger_part_t part, int64_t bytes) {
    device->ledger->host[part] += bytes;
}

void ledger_read(device_t *device, ledger_report_t *out) {
    const struct ledger *ledger = device->ledger;
    const device_streams_t *streams = device->table->streams;
    *out = (ledger_report_t){0};
    for (int i = 0; i < LEDGER_PARTS; i++) {
        uint64_t bytes = ledger->taken[i] > ledger->planned[i] ? ledger->taken[i] : ledger->planned[i];
        if (device->table->host_memory)
            out->row[i].host = bytes;
        else
            out->row[i].device = bytes;
        out->row[i].host += (uint64_t)ledger->host[i];
        out->taken += device->table->host_memory ? 0 : ledger->taken[i];
    }
    if (device->table->host_memory || !streams) return;
    size_t left = 0, total = 0;
    status_t status = streams->memory(device, &left, &total, out->place, sizeof(out->place));
    out->free = left;
    out->total = status ? 0 : total;
    status_free(status);
}

uint64_t ledger_sum(const ledger_report_t *report) {
    uint64_t sum = 0;
    for (int i = 0; i < LEDGER_PARTS; i++) sum += report->row[i].device;
    return sum;
}

static double mib(uint64_t bytes) {
    return (double)bytes / (double)(1 << 20);
}

// more: beside what the reports say, wanted for `part`.
static status_t check(const ledger_report_t *reports, int count, const char *place, uint64_t more, ledger_part_t part) {
    uint64_t need = more, taken = 0, left = UINT64_MAX, total = 0, biggest = 0;
    uint64_t of_part[LEDGER_PARTS] = {0};
    int ranks = 0, which = 0;
    of_part[part] = more;
    for (int r = 0; r < count; r++) {
        if (!reports[r].total || strcmp(reports[r].place, place) != 0) continue;
        ranks++;
        need += ledger_sum(&reports[r]);
        taken += reports[r].taken;
        total = reports[r].total;
        // What each has seen free; the least is what was seen last.
        if (reports[r].free < left) left = reports[r].free;
        for (int i = 0; i < LEDGER_PARTS; i++) of_part[i] += reports[r].row[i].device;
    }
    if (!ranks || need - taken <= left) return STATUS_OK;
    for (int i = 0; i < LEDGER_PARTS; i++) {
        if (of_part[i] <= biggest) continue;
        biggest = of_part[i];
        which = i;
    }
    char who[48] = "this rank needs";
    if (ranks > 1) snprintf(who, sizeof(who), "the %d ranks on one GPU need", ranks);
    FAIL(STATUS_MEMORY,
         "%s %.1f MiB of the memory of %s or more, and %.1f MiB of its %.1f are free for it; the biggest part is %s "
         "(%.1f MiB): %s",
         who, mib(need), place, mib(left + taken), mib(total), parts[which].name, mib(biggest), parts[which].advice);
}

status_t ledger_check_shared(const ledger_report_t *reports, int count, const char *place) {
    return check(reports, count, place, 0, LEDGER_OTHER);
}

status_t ledger_check(device_t *device) {
    ledger_report_t report;
    ledger_read(device, &report);
    return report.total ? ledger_check_shared(&report, 1, report.place) : STATUS_OK;
}

// The device has refused: the sentence, with what was asked for.
static status_t refused(device_t *device, ledger_part_t part, size_t bytes, status_t status) {
    ledger_report_t report;
    const struct ledger *ledger = device->ledger;
    ledger_read(device, &report);
    uint64_t known = ledger->taken[part] + bytes, planned = ledger->planned[part];
    status_t told = report.total && status_kind(status) == STATUS_MEMORY
                        ? check(&report, 1, report.place, known > planned ? known - planned : 0, part)
                        : STATUS_OK;
    if (!told) return status_context(status, "%s", parts[part].name);
    status_free(status);
    return told;
}

status_t ledger_take(device_t *device, ledger_part_t part, size_t bytes, void **out) {
    struct ledger *ledger = device->ledger;
    *out = NULL;
    TRY(memory_grow((void **)&ledger->entry, &ledger->capacity, ledger->count + 1, sizeof(*ledger->entry)));
    status_t status = device->table->allocate(device, bytes, out);
    if (status) return refused(device, part, bytes, status);
    ledger->entry[ledger->count++] = (ledger_entry_t){*out, bytes, part};
    ledger->taken[part] += bytes;
    return STATUS_OK;
}

void ledger_give(device_t *device, void *memory) {
    if (!memory) return; // what failed to open may have no device yet
    struct ledger *ledger = device->ledger;
    size_t at = ledger->count;
    while (at > 0 && ledger->entry[at - 1].memory != memory) at--;
    if (at) {
        ledger->taken[ledger->entry[at - 1].part] -= ledger->entry[at - 1].bytes;
        memmove(&ledger->entry[at - 1], &ledger->entry[at], (ledger->count - at) * sizeof(*ledger->entry));
        ledger->count--;
    }
    device->table->release(device, memory);
}

void ledger_print(const ledger_report_t *report, FILE *stream) {
    bool split = report->place[0] != 0;
    ledger_row_t sum = {0};
    if (split) fprintf(stream, "  %-34s %14s %14s\n", "", "device MiB", "host MiB");
    for (int i = 0; i < LEDGER_PARTS; i++) {
        const ledger_row_t *row = &report->row[i];
        sum.device += row->device;
        sum.host += row->host;
        if (!row->device && !row->host) continue;
        if (split)
            fprintf(stream, "  %-34s %14.1f %14.1f\n", parts[i].name, mib(row->device), mib(row->host));
        else
            fprintf(stream, "  %-34s %10.1f MiB\n", parts[i].name, mib(row->host));
    }
    if (!split) {
        fprintf(stream, "  %-34s %10.1f MiB\n", "sum", mib(sum.host));
        return;
    }
    fprintf(stream, "  %-34s %14.1f %14.1f\n", "sum", mib(sum.device), mib(sum.host));
    if (report->total)
        fprintf(stream, "  %s has %.1f MiB, of them %.1f free for this rank\n", report->place, mib(report->total),
                mib(report->free + report->taken));
}
