#include "common/wire/stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_BURST = 4, REORDER_TOLERANCE = 3, HEAL_HEARTBEATS = 4 };
static const double retry_first_s = 0.25, retry_longest_s = 2.0, fast_retry_s = 0.02;
// A slow network still delivers this much a second: what is on the wire may take so long before it counts as lost.
static const double slowest_bytes_s = 8e6;

status_t stream_open(stream_t *stream, size_t window, double heartbeat_s) {
    memset(stream, 0, sizeof(*stream));
    stream->window = window;
    stream->heartbeat_s = heartbeat_s;
    stream->retry = retry_first_s;
    stream->advertised = window;
    return ALLOCATE(&stream->slot, window);
}

void stream_close(stream_t *stream) {
    for (size_t i = 0; i < stream->count; i++) link_buffer_free(&stream->queue[stream->head + i].buffer);
    for (size_t i = 0; stream->slot && i < stream->window; i++) link_buffer_free(&stream->slot[i]);
    free(stream->queue);
    free(stream->slot);
    memset(stream, 0, sizeof(*stream));
}

status_t stream_queue(stream_t *stream, link_buffer_t message) {
    if (stream->head && stream->head + stream->count == stream->capacity) {
        memmove(stream->queue, stream->queue + stream->head, stream->count * sizeof(*stream->queue));
        stream->head = 0;
    }
    status_t status = memory_grow((void **)&stream->queue, &stream->capacity, stream->head + stream->count + 1,
                                  sizeof(*stream->queue));
    if (status) {
        link_buffer_free(&message);
        return status;
    }
    stream->queue[stream->head + stream->count++] = (outgoing_t){.buffer = message};
    return STATUS_OK;
}

// The number of the last message that may be on the wire.
static uint64_t send_limit(const stream_t *stream) {
    uint64_t own = stream->acknowledged + stream->window;
    return own < stream->peer_limit ? own : stream->peer_limit;
}

bool stream_has_room(const stream_t *stream) {
    return stream->acknowledged + stream->count < send_limit(stream);
}

bool stream_is_flushed(const stream_t *stream) {
    return stream->count == 0;
}

static link_buffer_t *slot_of(const stream_t *stream, uint64_t sequence) {
    return &stream->slot[sequence % stream->window];
}

void stream_stamp(stream_t *stream, envelope_t *envelope) {
    envelope->received = stream->received;
    envelope->beyond = 0;
    for (uint64_t i = 0; i < 64 && i + 2 <= stream->window; i++)
        if (slot_of(stream, stream->received + 2 + i)->data) envelope->beyond |= (uint64_t)1 << i;
    stream->advertised = envelope->limit = stream->consumed + stream->window;
    stream->acknowledge = false;
}

static void mark_again(stream_t *stream, outgoing_t *item) {
    stream->repeats += !item->again;
    item->again = true;
}

static outgoing_t *flying(stream_t *stream, uint64_t sequence) {
    return &stream->queue[stream->head + (size_t)(sequence - stream->acknowledged - 1)];
}

bool stream_acknowledged(stream_t *stream, const envelope_t *envelope, double now) {
    if (envelope->received > stream->transmitted) return false;
    if (envelope->limit > stream->peer_limit) stream->peer_limit = envelope->limit;
    if (envelope->received < stream->acknowledged) return true; // an old frame, overtaken
    if (envelope->received > stream->acknowledged) {
        stream->moved = now;
        stream->retry = retry_first_s;
    }
    while (stream->acknowledged < envelope->received) {
        outgoing_t *first = &stream->queue[stream->head++];
        stream->flying_bytes -= first->buffer.size;
        stream->repeats -= first->again;
        link_buffer_free(&first->buffer);
        stream->count--;
        stream->acknowledged++;
    }
    if (!stream->count) stream->head = 0;
    int later = 0; // arrived messages after the one looked at
    for (int i = 63; i >= -1; i--) {
        uint64_t sequence = stream->acknowledged + 2 + (uint64_t)(int64_t)i;
        if (sequence > stream->transmitted) continue;
        outgoing_t *item = flying(stream, sequence);
        if (i >= 0 && envelope->beyond >> i & 1) {
            item->arrived = true;
            later++;
        } else if (!item->arrived && later >= REORDER_TOLERANCE && now - item->sent > fast_retry_s) {
            mark_again(stream, item);
        }
    }
    return true;
}

void stream_reconnected(stream_t *stream) {
    for (uint64_t s = stream->acknowledged + 1; s <= stream->transmitted; s++)
        if (!flying(stream, s)->arrived) mark_again(stream, flying(stream, s));
}

static double retry_time(const stream_t *stream) {
    if (stream->transmitted == stream->acknowledged) return INFINITY;
    double from = stream->moved > stream->retried ? stream->moved : stream->retried;
    return from + stream->retry + (double)stream->flying_bytes / slowest_bytes_s;
}

// The timeout ran out: marks the oldest messages the peer does not have.
static void mark_oldest(stream_t *stream, double now) {
    int marked = 0;
    for (uint64_t s = stream->acknowledged + 1; s <= stream->transmitted && marked < RETRY_BURST; s++) {
        if (flying(stream, s)->arrived) continue;
        mark_again(stream, flying(stream, s));
        marked++;
    }
    stream->retried = now;
    stream->retry = stream->retry * 2 < retry_longest_s ? stream->retry * 2 : retry_longest_s;
}

const outgoing_t *stream_next(stream_t *stream, double now, uint64_t *sequence, bool *again) {
    if (now >= retry_time(stream)) mark_oldest(stream, now);
    for (uint64_t s = stream->acknowledged + 1; stream->repeats && s <= stream->transmitted; s++) {
        outgoing_t *item = flying(stream, s);
        if (!item->again) continue;
        item->again = false;
        stream->repeats--;
        item->sent = now;
        *sequence = s;
        *again = true;
        return item;
    }
    if (stream->transmitted >= send_limit(stream) || stream->transmitted == stream->acknowledged + stream->count)
        return NULL;
    if (stream->transmitted == stream->acknowledged) {
        stream->moved = now;
        stream->retry = retry_first_s;
    }
    outgoing_t *item = flying(stream, ++stream->transmitted);
    stream->flying_bytes += item->buffer.size;
    item->sent = now;
    *sequence = stream->transmitted;
    *again = false;
    return item;
}

double stream_wake(const stream_t *stream) {
    return retry_time(stream);
}

status_t stream_arrived(stream_t *stream, uint64_t sequence, const void *data, size_t size, double now,
                        stream_arrival_t *arrival) {
    stream->acknowledge = true; // also a duplicate is answered: its acknowledgement may be what was lost
    *arrival = ARRIVAL_BEYOND;
    if (sequence > stream->consumed + stream->window) return STATUS_OK;
    *arrival = ARRIVAL_DUPLICATE;
    if (sequence <= stream->received || slot_of(stream, sequence)->data) return STATUS_OK;
    *arrival = ARRIVAL_NEW;
    link_buffer_t *slot = slot_of(stream, sequence);
    TRY(memory_copy_bytes(data, size, (char **)&slot->data));
    slot->size = size;
    stream->early++;
    if (sequence != stream->received + 1 && stream->gap_since == 0) stream->gap_since = now;
    return STATUS_OK;
}

bool stream_take(stream_t *stream, link_buffer_t *out, double now) {
    link_buffer_t *slot = slot_of(stream, stream->received + 1);
    if (!slot->data) return false;
    *out = *slot;
    *slot = (link_buffer_t){0};
    stream->received++;
    stream->gap_since = --stream->early ? now : 0; // until the next one is taken too
    return true;
}

bool stream_consumed(stream_t *stream) {
    stream->consumed++;
    return stream->consumed + stream->window - stream->advertised >= (stream->window + 1) / 2;
}

bool stream_is_healthy(const stream_t *stream, double now, char *reason, size_t bytes) {
    double patience = HEAL_HEARTBEATS * stream->heartbeat_s;
    if (stream->gap_since > 0 && now - stream->gap_since > patience) {
        snprintf(reason, bytes, "message %llu did not arrive within %.1f s of those after it",
                 (unsigned long long)stream->received + 1, patience);
        return false;
    }
    double flight = patience + (double)stream->flying_bytes / slowest_bytes_s;
    if (stream->transmitted > stream->acknowledged && now - stream->moved > flight) {
        snprintf(reason, bytes, "message %llu was not acknowledged for %.1f s",
                 (unsigned long long)stream->acknowledged + 1, flight);
        return false;
    }
    return true;
}
