// A peer that may say anything: envelopes and routing ids of any bytes, and a stream whose other end numbers,
// acknowledges and limits as the bytes tell it to. What the owner gets stays in order and whole; nothing is kept beyond
// the window.
#include "common/wire/stream.h"
#include "common/wire/transport.h"
#include "tests/fuzz/fuzz.h"

enum { WINDOW = 8 };

typedef struct state {
    stream_t stream;
    double now;
    uint64_t queued, taken;
} state_t;

static uint64_t number(fuzz_bytes_t *bytes, uint64_t near) {
    // Near what is right, or anything.
    uint8_t how = (uint8_t)fuzz_take(bytes, 1);
    return how < 240 ? near + how % 80 - 8 : fuzz_take(bytes, 8);
}

static void queue_one(state_t *state) {
    link_buffer_t buffer = {.size = 8};
    status_t status = memory_allocate(8, 1, (void **)&buffer.data);
    if (state->queued - state->stream.acknowledged > 64) {
        link_buffer_free(&buffer);
        return;
    }
    FUZZ_CHECK(!status);
    FUZZ_CHECK(!stream_queue(&state->stream, buffer));
    state->queued++;
}

static void arrive(state_t *state, fuzz_bytes_t *bytes) {
    uint64_t sequence = number(bytes, state->stream.received + 1);
    stream_arrival_t arrival;
    FUZZ_CHECK(!stream_arrived(&state->stream, sequence, &sequence, sizeof(sequence), state->now, &arrival));
    link_buffer_t message;
    while (stream_take(&state->stream, &message, state->now)) {
        uint64_t got;
        FUZZ_CHECK(message.size == sizeof(got));
        memcpy(&got, message.data, sizeof(got));
        FUZZ_CHECK(got == ++state->taken);
        link_buffer_free(&message);
    }
}

static void acknowledge(state_t *state, fuzz_bytes_t *bytes) {
    envelope_t envelope = {.kind = ENVELOPE_ACK, .received = number(bytes, state->stream.acknowledged)};
    envelope.beyond = fuzz_take(bytes, 8);
    envelope.limit = number(bytes, state->stream.acknowledged + WINDOW);
    uint64_t before = state->stream.acknowledged;
    bool good = stream_acknowledged(&state->stream, &envelope, state->now);
    FUZZ_CHECK(good == (envelope.received <= state->stream.transmitted));
    FUZZ_CHECK(state->stream.acknowledged >= before);
}

static void send_some(state_t *state) {
    uint64_t sequence;
    bool again;
    for (int i = 0; i < 4 * WINDOW; i++) {
        const outgoing_t *item = stream_next(&state->stream, state->now, &sequence, &again);
        if (!item) return;
        FUZZ_CHECK(sequence > state->stream.acknowledged && sequence <= state->stream.acknowledged + WINDOW);
    }
}

static void check(const state_t *state) {
    const stream_t *stream = &state->stream;
    FUZZ_CHECK(stream->acknowledged <= stream->transmitted && stream->transmitted <= state->queued);
    FUZZ_CHECK(stream->acknowledged + stream->count == state->queued);
    FUZZ_CHECK(stream->early <= WINDOW && stream->repeats <= stream->transmitted - stream->acknowledged);
    FUZZ_CHECK(stream->flying_bytes == 8 * (stream->transmitted - stream->acknowledged));
}

static void act(state_t *state, fuzz_bytes_t *bytes) {
    envelope_t stamp = {0};
    char reason[96];
    switch (fuzz_take(bytes, 1) % 8) {
    case 0:
        queue_one(state);
        break;
    case 1:
        arrive(state, bytes);
        break;
    case 2:
        acknowledge(state, bytes);
        break;
    case 3:
        send_some(state);
        break;
    case 4:
        stream_reconnected(&state->stream);
        break;
    case 5:
        stream_stamp(&state->stream, &stamp);
        break;
    case 6:
        if (state->stream.consumed < state->taken) (void)stream_consumed(&state->stream);
        break;
    default:
        state->now += (double)fuzz_take(bytes, 1) / 100;
        (void)stream_is_healthy(&state->stream, state->now, reason, sizeof(reason));
    }
    check(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    envelope_t envelope;
    uint8_t encoded[ENVELOPE_BYTES];
    char name[TRANSPORT_MAX_NAME + 1], identity[TRANSPORT_MAX_IDENTITY + 1];
    uint64_t epoch;
    fuzz_allow(1 << 16, 64, size);
    if (envelope_decode(data, size, &envelope)) {
        envelope_encode(&envelope, encoded);
        FUZZ_CHECK(memcmp(encoded, data, ENVELOPE_BYTES) == 0);
    }
    if (transport_parse_identity(data, size, name, &epoch)) {
        FUZZ_CHECK(transport_identity(name, epoch, identity) == size && memcmp(identity, data, size) == 0);
    }
    state_t state = {.now = 1};
    fuzz_bytes_t bytes = {.at = data, .end = data + size};
    FUZZ_CHECK(!stream_open(&state.stream, WINDOW, 1.0));
    while (bytes.at < bytes.end) act(&state, &bytes);
    stream_close(&state.stream);
    return 0;
}
