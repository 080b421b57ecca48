#include "common/wire/message_fields.h"

#include <stddef.h>

// A member name cannot stand in parentheses. NOLINTBEGIN(bugprone-macro-parentheses)
#define AT(member) offsetof(message_t, member)
#define INT32(n, m, l, h)                                                                                              \
    { .name = n, .kind = FIELD_I32, .offset = AT(m), .low = (l), .high = (h) }
#define INT64(n, m, l)                                                                                                 \
    { .name = n, .kind = FIELD_I64, .offset = AT(m), .low = (l), .high = INT64_MAX }
#define UINT64(n, m)                                                                                                   \
    { .name = n, .kind = FIELD_U64, .offset = AT(m) }
#define REAL32(n, m)                                                                                                   \
    { .name = n, .kind = FIELD_F32, .offset = AT(m) }
#define REAL64(n, m)                                                                                                   \
    { .name = n, .kind = FIELD_F64, .offset = AT(m) }
#define TRUTH(n, m)                                                                                                    \
    { .name = n, .kind = FIELD_BOOL, .offset = AT(m) }
#define TEXT(n, m)                                                                                                     \
    { .name = n, .kind = FIELD_TEXT, .offset = AT(m), .extra = sizeof(((message_t *)0)->m) }
#define STRING(n, m)                                                                                                   \
    { .name = n, .kind = FIELD_STRING, .offset = AT(m) }
#define ARRAY(n, m, c)                                                                                                 \
    { .name = n, .kind = FIELD_ARRAY, .offset = AT(m), .extra = sizeof(*((message_t *)0)->m), .count = AT(c) }
#define TABLE(n, fields)                                                                                               \
    { (n), (fields), (int)(sizeof(fields) / sizeof(*(fields))) }

// NOLINTEND(bugprone-macro-parentheses)

static const field_t hello[] = {
    TEXT("role", hello.role),
    INT32("world_rank", hello.world_rank, -1, INT32_MAX),
    INT32("role_index", hello.role_index, -1, INT32_MAX),
    UINT64("fingerprint", hello.fingerprint),
    UINT64("data_hash", hello.data_hash),
    INT32("credits", hello.credits, 0, 1 << 20),
    INT64("step", hello.step, 0),
};
static const field_t work[] = {
    UINT64("serial", work.serial),
    INT64("sample", work.sample, 0),
    UINT64("seed", work.seed),
    INT64("version", work.version, 0),
    INT32("completions", work.completions, 1, MESSAGE_MAX_COMPLETIONS),
    INT32("max_new_tokens", work.max_new_tokens, 1, INT32_MAX),
    REAL32("temperature", work.temperature),
};
static const field_t completion[] = {
    UINT64("serial", completion.serial),
    INT32("index", completion.index, 0, MESSAGE_MAX_COMPLETIONS - 1),
    INT64("version", completion.version, 0),
    UINT64("checksum", completion.checksum),
    INT32("length", completion.length, 0, INT32_MAX),
    ARRAY("tokens", completion.tokens, completion.length),
    ARRAY("logprobs", completion.logprobs, completion.length),
    ARRAY("entropy", completion.entropy, completion.length),
    STRING("text", completion.text),
    TRUTH("truncated", completion.truncated),
    REAL64("seconds", completion.seconds),
};
static const field_t plan[] = {
    INT64("step", plan.step, 0),
    INT32("groups", plan.groups, 0, INT32_MAX),
    ARRAY("serial", plan.serial, plan.groups),
    ARRAY("owner", plan.owner, plan.groups),
    ARRAY("tokens", plan.tokens, plan.groups),
    INT64("sequences", plan.sequences, 0),
    INT64("completion_tokens", plan.completion_tokens, 0),
    INT64("spreadless", plan.spreadless, 0),
    INT64("excluded", plan.excluded, 0),
    INT64("timeouts", plan.timeouts, 0),
    REAL64("generate_s", plan.generate_s),
    REAL64("reward_s", plan.reward_s),
};
static const field_t fetch[] = {
    INT32("count", fetch.count, 0, INT32_MAX),
    ARRAY("serial", fetch.serial, fetch.count),
};

#define ITEM(member) offsetof(message_group_item_t, member)
static const field_t group_item[] = {
    {.name = "index", .kind = FIELD_I32, .offset = ITEM(index), .high = MESSAGE_MAX_COMPLETIONS - 1},
    {.name = "length", .kind = FIELD_I32, .offset = ITEM(length), .high = INT32_MAX},
    {.name = "tokens", .kind = FIELD_ARRAY, .offset = ITEM(tokens), .extra = 4, .count = ITEM(length)},
    {.name = "logprobs", .kind = FIELD_ARRAY, .offset = ITEM(logprobs), .extra = 4, .count = ITEM(length)},
    {.name = "reward", .kind = FIELD_F64, .offset = ITEM(reward)},
    {.name = "reward_tag", .kind = FIELD_F64, .offset = ITEM(reward_tag)},
    {.name = "reward_answer", .kind = FIELD_F64, .offset = ITEM(reward_answer)},
    {.name = "advantage", .kind = FIELD_F64, .offset = ITEM(advantage)},
    {.name = "truncated", .kind = FIELD_BOOL, .offset = ITEM(truncated)},
    {.name = "excluded", .kind = FIELD_BOOL, .offset = ITEM(excluded)},
};
static const fields_t group_items = TABLE("item", group_item);
static const field_t group[] = {
    UINT64("serial", group.serial),
    INT64("sample", group.sample, 0),
    INT64("version", group.version, 0),
    INT32("count", group.count, 0, MESSAGE_MAX_COMPLETIONS),
    {.name = "item",
     .kind = FIELD_ITEMS,
     .offset = AT(group.item),
     .extra = sizeof(message_group_item_t),
     .count = AT(group.count),
     .items = &group_items},
};
static const field_t weights[] = {
    INT64("version", weights.version, 0),         UINT64("manifest", weights.manifest),
    UINT64("checksum", weights.checksum),         INT64("bytes", weights.bytes, 0),
    INT64("chunk_bytes", weights.chunk_bytes, 1), INT64("vision_version", weights.vision_version, 0),
    TEXT("endpoint", weights.endpoint),
};
static const field_t ready[] = {
    INT64("version", ready.version, 0),
    UINT64("checksum", ready.checksum),
};
static const field_t pull[] = {
    INT64("version", pull.version, 0),
    INT64("chunk", pull.chunk, 0),
};
static const field_t chunk[] = {
    INT64("version", chunk.version, 0),
    INT64("chunk", chunk.chunk, 0),
    {.name = "data", .kind = FIELD_BYTES, .offset = AT(chunk.data), .count = AT(chunk.size)},
};
// Counts that learners add up over workers: far from where a sum would overflow.
#define COUNT(n, m)                                                                                                    \
    { .name = n, .kind = FIELD_I64, .offset = AT(m), .high = (int64_t)1 << 44 }
static const field_t statistics_fields[] = {
    INT64("version", statistics.version, 0),
    COUNT("generated_tokens", statistics.generated_tokens),
    COUNT("prefill_tokens", statistics.prefill_tokens),
    COUNT("preemptions", statistics.preemptions),
    COUNT("pages_saved", statistics.pages_saved),
    COUNT("decode_steps", statistics.decode_steps),
    COUNT("decode_rows", statistics.decode_rows),
    REAL64("busy_s", statistics.busy_s),
    REAL64("idle_s", statistics.idle_s),
    REAL64("sync_s", statistics.sync_s),
};
static const field_t error_fields[] = {
    TEXT("sentence", error.sentence),
    INT32("world_rank", error.world_rank, -1, INT32_MAX),
};
static const field_t settings[] = {
    STRING("config", settings.config),
    UINT64("data_hash", settings.data_hash),
    INT32("world_rank", settings.world_rank, 0, INT32_MAX),
    INT32("role_index", settings.role_index, 0, INT32_MAX),
};
static const field_t refused[] = {
    TEXT("reason", refused.reason),
};
static const field_t stop[] = {
    TEXT("reason", stop.reason),
};

static const fields_t types[] = {
    [MESSAGE_HELLO] = TABLE("hello", hello),
    [MESSAGE_WORK] = TABLE("work", work),
    [MESSAGE_COMPLETION] = TABLE("completion", completion),
    [MESSAGE_PLAN] = TABLE("plan", plan),
    [MESSAGE_FETCH] = TABLE("fetch", fetch),
    [MESSAGE_GROUP] = TABLE("group", group),
    [MESSAGE_WEIGHTS] = TABLE("weights", weights),
    [MESSAGE_READY] = TABLE("ready", ready),
    [MESSAGE_PULL] = TABLE("pull", pull),
    [MESSAGE_CHUNK] = TABLE("chunk", chunk),
    [MESSAGE_STATISTICS] = TABLE("statistics", statistics_fields),
    [MESSAGE_ERROR] = TABLE("error", error_fields),
    [MESSAGE_SETTINGS] = TABLE("settings", settings),
    [MESSAGE_REFUSED] = TABLE("refused", refused),
    [MESSAGE_STOP] = TABLE("stop", stop),
};

const fields_t *message_fields(message_type_t type) {
    if ((int)type < MESSAGE_HELLO || (int)type >= (int)(sizeof(types) / sizeof(*types))) return NULL;
    return &types[type];
}

const char *message_type_name(message_type_t type) {
    const fields_t *fields = message_fields(type);
    return fields ? fields->name : "unknown";
}
