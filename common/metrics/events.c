#include "common/metrics/events.h"

#include "event.pb-c.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 12, TAIL_BYTES = 4, RECORD_LIMIT = 64 << 20 };
static const char prefix[] = "events.out.tfevents.";

struct events {
    int file;
    char *path;
    uint8_t *record; // [capacity]
    size_t capacity;
};

uint32_t events_crc32c(const void *data, size_t size) {
    const uint8_t *bytes = data;
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

uint32_t events_mask(uint32_t crc) {
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static status_t write_all(const events_t *events, const uint8_t *data, size_t size) {
    off_t start = lseek(events->file, 0, SEEK_END);
    while (size) {
        ssize_t written = write(events->file, data, size);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            // A torn record in the middle would hide all that follow it.
            int why = errno;
            if (start >= 0 && ftruncate(events->file, start) != 0) why = errno;
            FAIL(STATUS_IO, "cannot write %s: %s", events->path, strerror(why));
        }
        data += written;
        size -= (size_t)written;
    }
    return STATUS_OK;
}

// One record: length (8 bytes), its masked checksum (4), the event, its masked checksum (4).
static status_t write_event(events_t *events, const Poise__Events__Event *event) {
    size_t size = poise__events__event__get_packed_size(event);
    TRY(memory_grow((void **)&events->record, &events->capacity, size + HEAD_BYTES + TAIL_BYTES, 1));
    put(events->record, size, 8);
    put(events->record + 8, events_mask(events_crc32c(events->record, 8)), 4);
    poise__events__event__pack(event, events->record + HEAD_BYTES);
    put(events->record + HEAD_BYTES + size, events_mask(events_crc32c(events->record + HEAD_BYTES, size)), 4);
    return write_all(events, events->record, size + HEAD_BYTES + TAIL_BYTES);
}

status_t events_write(events_t *events, double time, int64_t step, const event_value_t *values, size_t count) {
    Poise__Events__Summary__Value *value = NULL, **list = NULL;
    status_t status = STATUS_OK;
    TRY_GOTO(status, done, ALLOCATE(&value, count));
    TRY_GOTO(status, done, memory_allocate(count, sizeof(void *), (void **)&list));
    for (size_t i = 0; i < count; i++) {
        poise__events__summary__value__init(&value[i]);
        value[i].tag = (char *)(uintptr_t)values[i].tag; // only read
        value[i].value_case = POISE__EVENTS__SUMMARY__VALUE__VALUE_SIMPLE_VALUE;
        value[i].simple_value = values[i].value;
        list[i] = &value[i];
    }
    Poise__Events__Summary summary;
    poise__events__summary__init(&summary);
    summary.n_value = count;
    summary.value = list;
    Poise__Events__Event event;
    poise__events__event__init(&event);
    event.wall_time = time;
    event.step = step;
    event.summary = &summary;
    TRY_GOTO(status, done, write_event(events, &event));
done:
    free(value);
    free(list);
    return status;
}

// How many bytes of a file are whole events of steps up to last_step. Steps ascend in a file.
static status_t whole_bytes(const char *path, FILE *file, int64_t last_step, off_t *out) {
    uint8_t *record = NULL, head[HEAD_BYTES];
    size_t capacity = 0;
    status_t status = STATUS_OK;
    struct stat information;
    *out = 0;
    if (fstat(fileno(file), &information) != 0) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    while (!status && fread(head, 1, HEAD_BYTES, file) == HEAD_BYTES) {
        uint64_t size = get(head, 8);
        if (events_mask(events_crc32c(head, 8)) != get(head + 8, 4) || size > RECORD_LIMIT ||
            (off_t)size > information.st_size - *out - HEAD_BYTES)
            break;
        status = memory_grow((void **)&record, &capacity, (size_t)size + TAIL_BYTES, 1);
        if (status || fread(record, 1, (size_t)size + TAIL_BYTES, file) != size + TAIL_BYTES) break;
        if (events_mask(events_crc32c(record, (size_t)size)) != get(record + size, 4)) break;
        Poise__Events__Event *event = poise__events__event__unpack(NULL, (size_t)size, record);
        bool keep = event && event->step <= last_step;
        if (event) poise__events__event__free_unpacked(event, NULL);
        if (!keep) break;
        *out += (off_t)(HEAD_BYTES + size + TAIL_BYTES);
    }
    free(record);
    return status;
}

// Cuts one file; one with nothing left (or, when last_step < 0, every one) is removed.
static status_t cut_file(const char *path, int64_t last_step, bool *kept) {
    off_t whole = 0;
    *kept = false;
    FILE *file = last_step >= 0 ? fopen(path, "rbe") : NULL;
    if (last_step >= 0 && !file) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    status_t status = file ? whole_bytes(path, file, last_step, &whole) : STATUS_OK;
    if (file) fclose(file);
    TRY(status);
    *kept = whole > 0;
    if ((*kept ? truncate(path, whole) : unlink(path)) != 0)
        FAIL(STATUS_IO, "cannot cut %s to step %lld: %s", path, (long long)last_step, strerror(errno));
    return STATUS_OK;
}

// Cuts all event files of the directory; *newest is the last one in name order, or NULL.
static status_t cut_files(const char *directory, int64_t last_step, char **newest) {
    *newest = NULL;
    DIR *folder = opendir(directory);
    if (!folder) FAIL(STATUS_IO, "cannot read the folder %s: %s", directory, strerror(errno));
    status_t status = STATUS_OK;
    for (struct dirent *entry; !status && (entry = readdir(folder));) {
        char *path = NULL;
        bool kept = false;
        if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0) continue;
        if (asprintf(&path, "%s/%s", directory, entry->d_name) < 0) {
            status = STATUS_NEW(STATUS_MEMORY, "out of memory");
            break;
        }
        status = cut_file(path, last_step, &kept);
        if (!status && kept && (!*newest || strcmp(path, *newest) > 0)) {
            free(*newest);
            *newest = path;
            path = NULL;
        }
        free(path);
    }
    closedir(folder);
    return status;
}

static status_t create_file(const char *directory, events_t *events) {
    char host[128] = "localhost";
    gethostname(host, sizeof(host) - 1);
    for (int attempt = 0; attempt < 1000; attempt++) {
        free(events->path);
        if (asprintf(&events->path, "%s/%s%010lld.%s.%d.%d", directory, prefix, (long long)time(NULL), host,
                     (int)getpid(), attempt) < 0) {
            events->path = NULL;
            FAIL(STATUS_MEMORY, "out of memory");
        }
        events->file = open(events->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (events->file >= 0 || errno != EEXIST) break;
    }
    if (events->file < 0) FAIL(STATUS_IO, "cannot create %s: %s", events->path, strerror(errno));
    Poise__Events__Event event;
    poise__events__event__init(&event);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    char version[] = "brain.Event:2";
    event.wall_time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    event.file_version = version;
    return write_event(events, &event);
}

status_t events_open(const char *directory, int64_t last_step, events_t **out) {
    *out = NULL;
    events_t *events = NULL;
    TRY(ALLOCATE(&events, 1));
    events->file = -1;
    status_t status = cut_files(directory, last_step, &events->path);
    if (!status && events->path) {
        events->file = open(events->path, O_WRONLY | O_APPEND | O_CLOEXEC);
        if (events->file < 0) status = STATUS_NEW(STATUS_IO, "cannot open %s: %s", events->path, strerror(errno));
    } else if (!status) {
        status = create_file(directory, events);
    }
    if (status) {
        events_close(events);
        PASS_ON(status);
    }
    *out = events;
    return STATUS_OK;
}

void events_close(events_t *events) {
    if (!events) return;
    if (events->file >= 0) close(events->file);
    free(events->path);
    free(events->record);
    free(events);
}
