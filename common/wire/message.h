// Messages of the stream (docs/wire-protocol.md): msgpack maps {"schema": 1, "type": ..., ...}.
//
// Packing never fails but for memory; unpacking refuses what does not fit (unknown type, missing or surplus keys, wrong
// types, sizes beyond the frame) with STATUS_PEER and a sentence. Arrays of numbers travel as little-endian `bin`.
#ifndef COMMON_WIRE_MESSAGE_H
#define COMMON_WIRE_MESSAGE_H

#include "common/wire/link.h"

enum { MESSAGE_SCHEMA = 1, MESSAGE_MAX_COMPLETIONS = 1024 };

typedef enum message_type {
    MESSAGE_HELLO = 1,  // peer -> reward rank
    MESSAGE_WORK,       // reward rank -> worker: generate a group
    MESSAGE_COMPLETION, // worker -> reward rank, each as it finishes
    MESSAGE_PLAN,       // reward rank -> learner: the groups of a step, and which are yours
    MESSAGE_FETCH,      // learner -> reward rank: send me these groups
    MESSAGE_GROUP,      // reward rank -> learner
    MESSAGE_WEIGHTS,    // learner 0 -> reward rank -> workers: version v can be pulled
    MESSAGE_READY,      // worker -> reward rank: I hold version v (checksum)
    MESSAGE_PULL,       // worker -> weight server: chunk c of version v
    MESSAGE_CHUNK,      // weight server -> worker
    MESSAGE_STATISTICS, // worker -> reward rank -> learner 0: engine counters of a step
    MESSAGE_ERROR,      // any -> reward rank: this rank failed (sentence); the run ends
    MESSAGE_SETTINGS,   // reward rank -> rollout pool, in answer to its hello: what to run, and as which rank
    MESSAGE_REFUSED,    // reward rank -> peer: it cannot take part (reason)
    MESSAGE_STOP,       // reward rank -> all: end (reason)
} message_type_t;

typedef struct message_hello {
    char role[16]; // "learner", "rollout"; "pool": asks for the settings, and joins as "rollout" afterwards
    int32_t world_rank, role_index;
    uint64_t fingerprint; // device_fingerprint
    uint64_t data_hash;   // of the packed file this rank opened
    int32_t credits;      // groups a worker takes at once
    int64_t step;         // learners: completed steps (where a resumed run goes on); workers: 0
} message_hello_t;
typedef struct message_work {
    uint64_t serial; // counts groups ever issued
    int64_t sample;  // index in the packed file
    uint64_t seed;
    int64_t version; // weights to sample from
    int32_t completions, max_new_tokens;
    float temperature;
} message_work_t;
typedef struct message_completion {
    uint64_t serial;
    int32_t index; // 0 .. G-1
    int64_t version;
    uint64_t checksum; // of the weights the worker holds
    int32_t length;
    int32_t *tokens; // [length] as sampled, end-of-turn token included when it came
    float *logprobs; // [length] at the sampling temperature, over the full vocabulary
    float *entropy;  // [length]
    char *text;      // decoded, special tokens left out
    bool truncated;  // stopped by the budget
    double seconds;  // spent generating
} message_completion_t;
typedef struct message_group_item {
    int32_t index, length;
    int32_t *tokens;
    float *logprobs;
    double reward, reward_tag, reward_answer, advantage;
    bool truncated, excluded; // excluded: its scorer failed; advantage 0, not counted
} message_group_item_t;
typedef struct message_group {
    uint64_t serial;
    int64_t sample, version;
    int32_t count;
    message_group_item_t *item;
} message_group_t;
typedef struct message_plan {
    int64_t step;
    int32_t groups;   // of the whole step
    uint64_t *serial; // [groups] in order
    int32_t *owner;   // [groups] learner index
    int64_t *tokens;  // [groups] completion tokens
    // Step totals that every learner needs before its first launch:
    int64_t sequences, completion_tokens; // counted (not excluded)
    int64_t spreadless, excluded;         // groups without spread; excluded completions
    int64_t timeouts;                     // of the excluded: not scored in time (the others: errors)
    double generate_s, reward_s;          // wall time of the phases
} message_plan_t;
typedef struct message_weights {
    int64_t version;
    uint64_t manifest; // hash over names and shapes of the trained tensors
    uint64_t checksum; // XXH3-64 over their bytes in order
    int64_t bytes, chunk_bytes;
    int64_t vision_version;
    char endpoint[128]; // of the weight server
} message_weights_t;
typedef struct message_chunk {
    int64_t version, chunk;
    uint8_t *data;
    int64_t size;
} message_chunk_t;
typedef struct message_statistics {
    int64_t version, generated_tokens, prefill_tokens, preemptions, pages_saved, decode_steps, decode_rows;
    double busy_s, idle_s, sync_s;
} message_statistics_t;

// One unpacked message. Pointers inside are owned by it: free by message_free.
typedef struct message {
    message_type_t type;
    union {
        message_hello_t hello;
        message_work_t work;
        message_completion_t completion;
        message_plan_t plan;
        struct {
            int32_t count;
            uint64_t *serial;
        } fetch;
        message_group_t group;
        message_weights_t weights;
        struct {
            int64_t version;
            uint64_t checksum;
        } ready;
        struct {
            int64_t version, chunk;
        } pull;
        message_chunk_t chunk;
        message_statistics_t statistics;
        struct {
            char sentence[512];
            int32_t world_rank;
        } error;
        struct {
            char *config;                   // YAML, every key; paths are absolute
            uint64_t data_hash;             // of the packed file the job trains on
            int32_t world_rank, role_index; // what to be called: behind the job's own ranks
        } settings;
        struct {
            char reason[512];
        } refused;
        struct {
            char reason[256];
        } stop;
    };
} message_t;

status_t message_pack(const message_t *message, link_buffer_t *out) STATUS_CHECKED;
status_t message_unpack(const void *data, size_t size, message_t *out) STATUS_CHECKED;
void message_free(message_t *message);
const char *message_type_name(message_type_t type);

#endif
