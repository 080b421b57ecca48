// Any bytes as a message of the stream. What is accepted must pack to bytes that are accepted again and pack to the
// same bytes.
#include "common/wire/message.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    message_t message, again;
    link_buffer_t first = {0}, second = {0};
    fuzz_allow(1 << 10, 128, size); // a map of a few bytes becomes a struct
    status_t status = message_unpack(data, size, &message);
    if (status) {
        status_free(status);
        return 0;
    }
    FUZZ_CHECK(!message_pack(&message, &first));
    fuzz_allow(1 << 10, 128, first.size);
    FUZZ_CHECK(!message_unpack(first.data, first.size, &again));
    FUZZ_CHECK(!message_pack(&again, &second));
    FUZZ_CHECK(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
    message_free(&message);
    message_free(&again);
    link_buffer_free(&first);
    link_buffer_free(&second);
    return 0;
}
