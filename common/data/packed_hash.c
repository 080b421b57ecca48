#include "common/data/packed.h"

#include <stdlib.h>
#include <string.h>

uint64_t packed_hash_number(const packed_t *packed) {
    char digits[17] = {0};
    strncpy(digits, packed_hash(packed), 16);
    return strtoull(digits, NULL, 16);
}
