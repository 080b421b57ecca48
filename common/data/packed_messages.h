// Lines of training data in their several spellings -> messages as chat_read takes them; private to common/data.
#ifndef COMMON_DATA_PACKED_MESSAGES_H
#define COMMON_DATA_PACKED_MESSAGES_H

#include "kernels/base/status.h"
#include <jansson.h>

// Takes {"messages": [...]} of role and content (text or parts), or ShareGPT's {"conversations": [{"from", "value"}]};
// images may be parts, or "<image>" marks in the text with "image" / "images" beside the conversation. *messages is a
// new reference to the prompt's messages. *response is malloc'd: the text of a last message by the assistant, or NULL
// when there is none.
status_t packed_messages(const json_t *line, json_t **messages, char **response) STATUS_CHECKED;

#endif
