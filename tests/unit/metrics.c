// Metrics: lines and event files, and what resuming cuts off them.
#include "common/metrics/metrics.h"
#include "common/metrics/events.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void check(status_t status) {
    if (status) status_print(status, stderr, -1, true);
    assert_null(status);
}

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *text = calloc(1, 1 << 20);
    *size = fread(text, 1, (1 << 20) - 1, file);
    fclose(file);
    return text;
}

// The one event file of a folder; fails when there are more.
static bool find_events(const char *directory, char out[600]) {
    int found = 0;
    DIR *folder = opendir(directory);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (strncmp(entry->d_name, "events.out.tfevents.", 20) != 0) continue;
        snprintf(out, 600, "%s/%s", directory, entry->d_name);
        found++;
    }
    closedir(folder);
    assert_true(found <= 1);
    return found == 1;
}

// ---- an event reader of its own: protobuf by hand ----

typedef struct scalar {
    int64_t step;
    char tag[64];
    float value;
} scalar_t;

static uint64_t varint(const uint8_t **at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return value;
    }
}

static void read_value(const uint8_t *at, const uint8_t *end, scalar_t *out) {
    while (at < end) {
        uint64_t key = varint(&at);
        if (key == (1 << 3 | 2)) {
            size_t length = (size_t)varint(&at);
            assert_true(length < sizeof(out->tag));
            memcpy(out->tag, at, length);
            out->tag[length] = 0;
            at += length;
        } else {
            assert_int_equal(key, 2 << 3 | 5);
            memcpy(&out->value, at, 4);
            at += 4;
        }
    }
}

static int read_event(const uint8_t *at, const uint8_t *end, scalar_t *out, bool *is_version) {
    int64_t step = 0;
    double time = 0;
    int count = 0;
    while (at < end) {
        uint64_t key = varint(&at);
        if (key == (1 << 3 | 1)) {
            memcpy(&time, at, 8);
            at += 8;
        } else if (key == (2 << 3 | 0)) {
            step = (int64_t)varint(&at);
        } else if (key == (3 << 3 | 2)) {
            size_t length = (size_t)varint(&at);
            assert_int_equal(length, 13);
            assert_memory_equal(at, "brain.Event:2", 13);
            *is_version = true;
            at += length;
        } else {
            assert_int_equal(key, 5 << 3 | 2);
            const uint8_t *summary_end = at;
            size_t length = (size_t)varint(&summary_end);
            at = summary_end;
            summary_end = at + length;
            while (at < summary_end) {
                assert_int_equal(varint(&at), 1 << 3 | 2);
                size_t value = (size_t)varint(&at);
                out[count] = (scalar_t){0};
                read_value(at, at + value, &out[count++]);
                at += value;
            }
        }
    }
    assert_true(time > 1.6e9);
    for (int i = 0; i < count; i++) out[i].step = step;
    return count;
}

static int read_events(const char *directory, scalar_t *out) {
    char path[600];
    size_t size = 0;
    int count = 0, versions = 0;
    assert_true(find_events(directory, path));
    char *data = read_file(path, &size);
    for (size_t at = 0; at < size;) {
        uint64_t length = 0;
        uint32_t crc = 0, tail = 0;
        memcpy(&length, data + at, 8);
        memcpy(&crc, data + at + 8, 4);
        assert_int_equal(crc, events_mask(events_crc32c(data + at, 8)));
        assert_true(length < size - at - 15);
        memcpy(&tail, data + at + 12 + length, 4);
        assert_int_equal(tail, events_mask(events_crc32c(data + at + 12, length)));
        bool is_version = false;
        const uint8_t *event = (const uint8_t *)data + at + 12;
        count += read_event(event, event + length, out + count, &is_version);
        assert_int_equal(is_version, at == 0);
        versions += is_version;
        at += 16 + length;
    }
    assert_int_equal(versions, 1);
    free(data);
    return count;
}

static void make_folder(char out[64]) {
    strcpy(out, "/tmp/poise-metrics-XXXXXX");
    assert_non_null(mkdtemp(out));
}

static void remove_folder(const char *directory) {
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    assert_int_equal(system(command), 0);
}

static void write_steps(const char *directory, int64_t resume, int first, int last) {
    metrics_t *metrics = NULL;
    check(metrics_open(directory, true, resume, &metrics));
    for (int step = first; step <= last; step++) {
        metrics_add(metrics, "loss/think", 1.0 / step);
        metrics_add(metrics, "loss/nan", NAN);
        metrics_add(metrics, "time/generate", 0.1 * step);
        metrics_add_text(metrics, "note", "a \"quoted\"\nline");
        check(metrics_write(metrics, step));
    }
    metrics_close(metrics);
}

static int count_lines(const char *directory, int64_t *last) {
    char path[100];
    size_t size = 0;
    snprintf(path, sizeof(path), "%s/metrics.jsonl", directory);
    char *text = read_file(path, &size);
    assert_non_null(text);
    int lines = 0;
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        assert_non_null(end);
        json_t *value = json_loadb(line, (size_t)(end - line), 0, NULL);
        assert_non_null(value);
        *last = json_integer_value(json_object_get(value, "step"));
        double loss = json_real_value(json_object_get(value, "loss/think"));
        assert_true(loss == 1.0 / (double)*last); // to the bit
        assert_true(json_is_null(json_object_get(value, "loss/nan")));
        assert_string_equal(json_string_value(json_object_get(value, "note")), "a \"quoted\"\nline");
        assert_true(json_real_value(json_object_get(value, "time")) > 1.6e9);
        json_decref(value);
        lines++;
    }
    free(text);
    return lines;
}

static void test_checksums(void **state) {
    (void)state;
    assert_int_equal(events_crc32c("123456789", 9), 0xe3069283); // the check value of CRC-32C
    assert_int_equal(events_crc32c("", 0), 0);
    uint8_t zeros[32] = {0};
    assert_int_equal(events_crc32c(zeros, 32), 0x8a9136aa); // RFC 3720
    assert_int_equal(events_mask(0), 0xa282ead8);
}

static void test_write_and_resume(void **state) {
    (void)state;
    char directory[64];
    scalar_t scalar[200];
    int64_t last = 0;
    make_folder(directory);
    write_steps(directory, -1, 1, 10);
    assert_int_equal(count_lines(directory, &last), 10);
    assert_int_equal(last, 10);
    assert_int_equal(read_events(directory, scalar), 20); // NaN and texts are not in there
    assert_string_equal(scalar[0].tag, "loss/think");
    assert_string_equal(scalar[19].tag, "time/generate");
    assert_int_equal(scalar[19].step, 10);
    assert_true(scalar[19].value == (float)(0.1 * 10));
    write_steps(directory, 6, 7, 8); // as after a crash at 10 with a checkpoint of 6
    assert_int_equal(count_lines(directory, &last), 8);
    assert_int_equal(last, 8);
    assert_int_equal(read_events(directory, scalar), 16);
    for (int i = 0; i < 16; i++) assert_int_equal(scalar[i].step, i / 2 + 1);
    write_steps(directory, 0, 1, 2); // resumed before any step
    assert_int_equal(count_lines(directory, &last), 2);
    assert_int_equal(read_events(directory, scalar), 4);
    write_steps(directory, -1, 1, 1);
    assert_int_equal(count_lines(directory, &last), 1);
    assert_int_equal(read_events(directory, scalar), 2);
    remove_folder(directory);
}

// A kill within a write leaves a torn end in both files.
static void test_torn(void **state) {
    (void)state;
    char directory[64], path[100], events[600];
    scalar_t scalar[200];
    int64_t last = 0;
    make_folder(directory);
    write_steps(directory, -1, 1, 5);
    snprintf(path, sizeof(path), "%s/metrics.jsonl", directory);
    struct stat information;
    assert_int_equal(stat(path, &information), 0);
    assert_int_equal(truncate(path, information.st_size - 3), 0);
    assert_true(find_events(directory, events));
    assert_int_equal(stat(events, &information), 0);
    assert_int_equal(truncate(events, information.st_size - 3), 0);
    write_steps(directory, 5, 6, 6);
    assert_int_equal(count_lines(directory, &last), 5); // 5 is lost, 6 is there
    assert_int_equal(last, 6);
    assert_int_equal(read_events(directory, scalar), 10);
    // A length that lies is no reason to reserve memory.
    FILE *file = fopen(events, "ab");
    uint8_t head[12] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f};
    uint32_t crc = events_mask(events_crc32c(head, 8));
    memcpy(head + 8, &crc, 4);
    fwrite(head, 1, 12, file);
    fclose(file);
    write_steps(directory, 6, 7, 7);
    assert_int_equal(read_events(directory, scalar), 12);
    remove_folder(directory);
}

static void test_plain_and_errors(void **state) {
    (void)state;
    char directory[64], inner[100], events[600];
    metrics_t *metrics = NULL;
    make_folder(directory);
    snprintf(inner, sizeof(inner), "%s/a/b", directory); // made
    check(metrics_open(inner, false, -1, &metrics));
    metrics_add(metrics, "x", 1);
    metrics_add(metrics, "x", 2);
    check(metrics_write(metrics, 1));
    check(metrics_write(metrics, 2)); // nothing is left from step 1
    metrics_close(metrics);
    assert_false(find_events(inner, events));
    char path[120];
    size_t size = 0;
    snprintf(path, sizeof(path), "%s/metrics.jsonl", inner);
    char *text = read_file(path, &size);
    assert_non_null(strstr(text, "\"x\":2.0}"));
    assert_null(strstr(strchr(text, '\n'), "\"x\""));
    free(text);
    status_t status = metrics_open("/proc/nothing/here", false, -1, &metrics);
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_IO);
    status_free(status);
    remove_folder(directory);
}

static void test_progress(void **state) {
    (void)state;
    char path[64] = "/tmp/poise-progress-XXXXXX";
    int file = mkstemp(path), before = dup(STDERR_FILENO);
    assert_true(file >= 0);
    fflush(stderr);
    dup2(file, STDERR_FILENO);
    progress_t progress;
    progress_start(&progress, "training", 10);
    progress_show(&progress, 1, ""); // too soon for a line
    progress_show(&progress, 10, "loss 0.5");
    progress_end(&progress);
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    close(before);
    close(file);
    size_t size = 0;
    char *text = read_file(path, &size);
    assert_string_equal(text, "training 10/10, 0:00 spent, 0:00 left, loss 0.5\n");
    free(text);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksums),        cmocka_unit_test(test_write_and_resume), cmocka_unit_test(test_torn),
        cmocka_unit_test(test_plain_and_errors), cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
