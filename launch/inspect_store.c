// Poise's HDF5 files: which one it is; checkpoints and trajectories.
#include "common/store/store.h"
#include "launch/inspect_parts.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

enum { HASH_BLOCK = 1 << 16 };

// ---- checkpoints ----

static status_t hash_dataset(store_t *store, const char *name, dtype_t dtype, crypto_hash_sha256_state *state,
                             int64_t *elements) {
    unsigned char *block;
    TRY(store_count(store, name, elements));
    TRY(ALLOCATE(&block, HASH_BLOCK * dtype_bytes(dtype)));
    status_t status = STATUS_OK;
    for (int64_t first = 0; !status && first < *elements; first += HASH_BLOCK) {
        int64_t count = *elements - first < HASH_BLOCK ? *elements - first : HASH_BLOCK;
        status = store_read(store, name, dtype, first, count, block);
        if (!status) crypto_hash_sha256_update(state, block, (size_t)count * dtype_bytes(dtype));
    }
    free(block);
    return status;
}

typedef struct part {
    const char *prefix; // of names; NULL ends a list
    dtype_t dtype;
} part_t;

// One hash over the datasets whose names begin with one of the prefixes, in the order of their names.
static status_t print_hash(store_t *store, const char *key, const part_t *parts, int64_t *datasets, int64_t *elements) {
    crypto_hash_sha256_state state;
    unsigned char digest[crypto_hash_sha256_BYTES];
    char hex[2 * crypto_hash_sha256_BYTES + 1];
    if (sodium_init() < 0) FAIL(STATUS_UNAVAILABLE, "libsodium could not be initialised");
    crypto_hash_sha256_init(&state);
    for (size_t i = 0; i < store_names(store); i++) {
        const char *name = store_name(store, i);
        const part_t *part = parts;
        while (name && part->prefix && strncmp(name, part->prefix, strlen(part->prefix)) != 0) part++;
        if (!name || !part->prefix) continue;
        int64_t count;
        TRY(hash_dataset(store, name, part->dtype, &state, &count));
        *elements += count;
        ++*datasets;
    }
    crypto_hash_sha256_final(&state, digest);
    sodium_bin2hex(hex, sizeof(hex), digest, sizeof(digest));
    inspect_line(key, "%s", hex);
    return STATUS_OK;
}

static status_t print_text(store_t *store, const char *key, const char *name) {
    char *text;
    if (!store_has(store, name)) return STATUS_OK;
    TRY(store_read_string(store, name, &text));
    inspect_line(key, "%s", text);
    free(text);
    return STATUS_OK;
}

static status_t print_number(store_t *store, const char *key, const char *name) {
    int64_t value;
    if (!store_has(store, name)) return STATUS_OK;
    TRY(store_read_number(store, name, &value));
    inspect_line(key, "%" PRId64, value);
    return STATUS_OK;
}

static status_t print_tensors(store_t *store) {
    static const char prefix[] = "optimizer/master/";
    static const part_t masters[] = {{prefix, DTYPE_F32}, {0}};
    static const part_t all[] = {{"optimizer/scales", DTYPE_I64},        {prefix, DTYPE_F32},
                                 {"optimizer/first_moment/", DTYPE_F32}, {"optimizer/second_moment/", DTYPE_F32},
                                 {"weights/version-", DTYPE_U8},         {0}};
    int64_t sum = 0, tensors = 0, datasets = 0, everything = 0;
    // Equal for two runs that go on alike, whatever their ranks.
    TRY(print_hash(store, "SHA-256 of the masters", masters, &tensors, &sum));
    TRY(print_hash(store, "SHA-256 of the state", all, &datasets, &everything));
    inspect_line("trained tensors", "%" PRId64 " with %" PRId64 " elements, each with two moments", tensors, sum);
    for (size_t i = 0; i < store_names(store); i++) {
        int64_t elements;
        const char *name = store_name(store, i);
        if (!name || strncmp(name, prefix, strlen(prefix)) != 0) continue;
        TRY(store_count(store, name, &elements));
        printf("    %s %" PRId64 "\n", name + strlen(prefix), elements);
    }
    return STATUS_OK;
}

static status_t print_checkpoint(store_t *store) {
    static const char *const parts[] = {"vision", "projector", "language", "head"};
    TRY(print_text(store, "command", "kind"));
    TRY(print_number(store, "completed steps", "step"));
    TRY(print_number(store, "optimizer updates", "optimizer/updates"));
    TRY(print_number(store, "weights version", "optimizer/version"));
    TRY(print_text(store, "configuration hash", "training_hash"));
    TRY(print_text(store, "data hash", "data_hash"));
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char trainable[64], frozen[64];
        int64_t count[2];
        snprintf(trainable, sizeof(trainable), "counts/%s_trainable", parts[i]);
        snprintf(frozen, sizeof(frozen), "counts/%s_frozen", parts[i]);
        if (!store_has(store, trainable) || !store_has(store, frozen)) continue;
        TRY(store_read_number(store, trainable, &count[0]));
        TRY(store_read_number(store, frozen, &count[1]));
        inspect_line(parts[i], "%" PRId64 " trainable, %" PRId64 " frozen parameters", count[0], count[1]);
    }
    int versions = 0;
    for (size_t i = 0; i < store_names(store); i++)
        versions += store_name(store, i) && !strncmp(store_name(store, i), "weights/version-", 16);
    if (versions) inspect_line("older versions kept", "%d", versions);
    return print_tensors(store);
}

// ---- trajectories ----

typedef struct logged {
    float *reward, *tag, *answer, *advantage;
    int32_t *flags;
    int64_t *version, *start;
    int64_t groups, completions, starts, count;
} logged_t;

static status_t read_column(store_t *store, const char *name, dtype_t dtype, void **out, int64_t expected) {
    int64_t count;
    TRY(store_read_all(store, name, dtype, out, &count));
    if (count != expected)
        FAIL(STATUS_INVALID, "the dataset %s has %" PRId64 " entries where %" PRId64 " fit the others", name, count,
             expected);
    return STATUS_OK;
}

static status_t read_logged(store_t *store, logged_t *log) {
    TRY(store_read_all(store, "groups/version", DTYPE_I64, (void **)&log->version, &log->groups));
    TRY(store_read_all(store, "completions/reward", DTYPE_F32, (void **)&log->reward, &log->completions));
    TRY(read_column(store, "completions/reward_tag", DTYPE_F32, (void **)&log->tag, log->completions));
    TRY(read_column(store, "completions/reward_answer", DTYPE_F32, (void **)&log->answer, log->completions));
    TRY(read_column(store, "completions/flags", DTYPE_I32, (void **)&log->flags, log->completions));
    return read_column(store, "completions/token_start", DTYPE_I64, (void **)&log->start, log->completions + 1);
}

static double mean_of(const float *value, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)value[i];
    return count ? sum / (double)count : 0;
}

static status_t print_trajectory(store_t *store) {
    logged_t log = {0};
    status_t status = print_number(store, "step", "step");
    if (!status) status = print_text(store, "data hash", "data_hash");
    if (!status) status = read_logged(store, &log);
    if (!status) {
        int64_t truncated = 0, excluded = 0, low = INT64_MAX, high = INT64_MIN;
        for (int64_t i = 0; i < log.completions; i++) {
            truncated += log.flags[i] & 1;
            excluded += log.flags[i] >> 1 & 1;
        }
        for (int64_t i = 0; i < log.groups; i++) {
            if (log.version[i] < low) low = log.version[i];
            if (log.version[i] > high) high = log.version[i];
        }
        int64_t tokens = log.start[log.completions];
        inspect_line("groups", "%" PRId64 " with %" PRId64 " completions", log.groups, log.completions);
        if (log.groups) inspect_line("weights versions", "%" PRId64 " to %" PRId64, low, high);
        inspect_line("tokens", "%" PRId64 ", %.1f a completion", tokens,
                     log.completions ? (double)tokens / (double)log.completions : 0);
        inspect_line("mean reward", "%.4f (tag %.4f, answer %.4f)", mean_of(log.reward, log.completions),
                     mean_of(log.tag, log.completions), mean_of(log.answer, log.completions));
        inspect_line("cut off, excluded", "%" PRId64 ", %" PRId64, truncated, excluded);
    }
    free(log.reward), free(log.tag), free(log.answer), free(log.flags), free(log.version), free(log.start);
    return status;
}

typedef enum content { CONTENT_PACKED, CONTENT_CHECKPOINT, CONTENT_TRAJECTORY, CONTENT_OTHER } content_t;

static status_t recognise(const char *path, content_t *out) {
    store_t *store;
    TRY(store_open(path, &store));
    *out = store_has(store, "sample_start")        ? CONTENT_PACKED
           : store_has(store, "optimizer/updates") ? CONTENT_CHECKPOINT
           : store_has(store, "groups/serial")     ? CONTENT_TRAJECTORY
                                                   : CONTENT_OTHER;
    store_close(store);
    return STATUS_OK;
}

static status_t inspect_checkpoint(const char *path) {
    store_t *store;
    TRY(store_open(path, &store));
    printf("%s: a checkpoint\n", path);
    status_t status = print_checkpoint(store);
    store_close(store);
    return status;
}

// All but the configuration, which says how many ranks there were.
static status_t print_contents_hash(store_t *store) {
    static const part_t parts[] = {{"groups/", DTYPE_I64},           {"exact/", DTYPE_I64},
                                   {"updates/", DTYPE_I64},          {"tensors/before", DTYPE_I64},
                                   {"tensors/after", DTYPE_I64},     {"completions/token_start", DTYPE_I64},
                                   {"completions/index", DTYPE_I32}, {"completions/flags", DTYPE_I32},
                                   {"completions/", DTYPE_F32},      {"tokens", DTYPE_I32},
                                   {"logprobs", DTYPE_F32},          {0}};
    int64_t datasets = 0, elements = 0;
    return print_hash(store, "SHA-256 of the contents", parts, &datasets, &elements);
}

static status_t inspect_trajectory(const char *path) {
    store_t *store;
    TRY(store_open(path, &store));
    printf("%s: trajectories of a step\n", path);
    status_t status = print_trajectory(store);
    if (!status) status = print_contents_hash(store);
    store_close(store);
    return status;
}

status_t inspect_store(const char *path, const char *model, int64_t sample) {
    content_t content = CONTENT_OTHER;
    TRY(recognise(path, &content));
    if (content == CONTENT_PACKED) return inspect_packed(path, model, sample);
    if (sample >= 0) FAIL(STATUS_INVALID, "--sample is for packed data; %s is none", path);
    if (content == CONTENT_CHECKPOINT) return inspect_checkpoint(path);
    if (content == CONTENT_TRAJECTORY) return inspect_trajectory(path);
    FAIL(STATUS_INVALID, "%s is an HDF5 file, but not one that Poise wrote", path);
}
