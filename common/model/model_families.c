// The registry: one line a family.
#include "common/model/model_families.h"
#include "common/model/gemma3.h"
#include "common/model/gemma3_text.h"
#include "common/model/llama.h"
#include "common/model/llava_next.h"
#include "common/model/mistral.h"
#include "common/model/qwen2.h"
#include "common/model/qwen2_5_vl.h"

#include <string.h>

static const model_family_t *const families[] = {&qwen2_5_vl_family, &qwen2_family,       &llama_family,
                                                 &mistral_family,    &gemma3_text_family, &llava_next_family,
                                                 &gemma3_family};
enum { FAMILY_COUNT = sizeof(families) / sizeof(families[0]) };

status_t model_family_find(const char *model_type, const model_family_t **out) {
    char known[512];
    size_t used = 0;
    *out = NULL;
    for (int i = 0; i < FAMILY_COUNT; i++) {
        for (const char *const *type = families[i]->model_types; *type; type++) {
            if (!strcmp(*type, model_type)) {
                *out = families[i];
                return STATUS_OK;
            }
            if (used + strlen(*type) + 3 < sizeof(known))
                used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", used ? ", " : "", *type);
        }
    }
    FAIL(STATUS_INVALID, "the model_type '%.64s' is not supported; the known ones are %s", model_type, known);
}
