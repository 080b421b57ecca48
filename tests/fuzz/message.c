// Fuzz entry of message_unpack (built with clang: see tests/CMakeLists.txt). What is accepted must pack to bytes that
// are accepted again and pack to the same bytes.
#include "common/wire/message.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    message_t message, again;
    link_buffer_t first = {0}, second = {0};
    status_t status = message_unpack(data, size, &message);
    if (status) {
        status_free(status);
        return 0;
    }
    if (message_pack(&message, &first) || message_unpack(first.data, first.size, &again) ||
        message_pack(&again, &second) || first.size != second.size || memcmp(first.data, second.data, first.size) != 0)
        abort();
    message_free(&message);
    message_free(&again);
    link_buffer_free(&first);
    link_buffer_free(&second);
    return 0;
}
