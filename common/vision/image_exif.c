// Which way up a picture is, found where Pillow finds it: the tag of Exif's first directory, else XMP's.
#include "common/vision/image_parts.h"

#include <string.h>

enum { TAG_ORIENTATION = 0x0112, ENTRY_BYTES = 12 };

typedef struct tiff {
    const uint8_t *bytes;
    size_t size;
    bool big_endian;
} tiff_t;

static uint32_t tiff_number(const tiff_t *tiff, size_t at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++)
        value = value << 8 | tiff->bytes[at + (size_t)(tiff->big_endian ? i : bytes - 1 - i)];
    return value;
}

// The first value of an entry's data as a number; 0 for a kind that holds no numbers.
static double tiff_value(const tiff_t *tiff, int type, size_t at) {
    uint32_t bits;
    float number;
    switch (type) {
    case 3:
        return tiff_number(tiff, at, 2);
    case 4:
    case 13:
        return tiff_number(tiff, at, 4);
    case 6:
        return (int8_t)tiff->bytes[at];
    case 8:
        return (int16_t)tiff_number(tiff, at, 2);
    case 9:
        return (int32_t)tiff_number(tiff, at, 4);
    case 11:
        bits = tiff_number(tiff, at, 4);
        memcpy(&number, &bits, sizeof(number));
        return (double)number;
    case 5:
        return tiff_number(tiff, at + 4, 4) ? tiff_number(tiff, at, 4) / (double)tiff_number(tiff, at + 4, 4) : 0;
    default:
        return 0;
    }
}

// Bytes of one value of each of TIFF's kinds; 0: unknown, and entries of it are passed over.
static size_t tiff_unit(unsigned type) {
    static const uint8_t unit[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    return type < sizeof(unit) ? unit[type] : 0;
}

// One entry at `at`: true when it is an orientation with data; then *out is its value. *broken: data that lies outside
// ends the directory. *used: bytes that entries point to so far.
static bool tiff_entry(const tiff_t *tiff, size_t at, uint64_t *used, bool *broken, double *out) {
    unsigned type = tiff_number(tiff, at + 2, 2);
    uint64_t bytes = (uint64_t)tiff_number(tiff, at + 4, 4) * tiff_unit(type);
    size_t data = at + 8;
    if (bytes > 4) {
        data = tiff_number(tiff, at + 8, 4);
        *used += bytes;
        if (*used > tiff->size) return false;
        *broken = data > tiff->size || bytes > tiff->size - data;
    }
    if (*broken || !bytes || tiff_number(tiff, at, 2) != TAG_ORIENTATION) return false;
    *out = tiff_value(tiff, (int)type, data);
    return true;
}

int image_exif_orientation(const uint8_t *bytes, size_t size) {
    static const uint8_t header[] = "Exif\0";
    tiff_t tiff = {.bytes = bytes, .size = size};
    for (int i = 0; i < 2 && tiff.size >= sizeof(header) && !memcmp(tiff.bytes, header, sizeof(header)); i++) {
        tiff.bytes += sizeof(header);
        tiff.size -= sizeof(header);
    }
    if (tiff.size < 8) return 0;
    tiff.big_endian = tiff.bytes[0] == 'M';
    if (memcmp(tiff.bytes, tiff.big_endian ? "MM" : "II", 2) != 0) return 0;
    // The magic number 42, in either order of bytes.
    if (memcmp(tiff.bytes + 2, "\0*", 2) != 0 && memcmp(tiff.bytes + 2, "*\0", 2) != 0) return 0;
    size_t at = tiff_number(&tiff, 4, 4);
    if (at > tiff.size || tiff.size - at < 2) return 0;
    uint32_t entries = tiff_number(&tiff, at, 2);
    uint64_t used = 0;
    at += 2;
    bool broken = false;
    for (uint32_t i = 0; i < entries && !broken && tiff.size - at >= ENTRY_BYTES; i++, at += ENTRY_BYTES) {
        double value;
        if (!tiff_entry(&tiff, at, &used, &broken, &value)) continue;
        for (int orientation = 1; orientation <= 8; orientation++)
            if (value == orientation) return orientation;
        return 1;
    }
    return 0;
}

int image_xmp_orientation(const void *text, size_t size) {
    static const char key[] = "tiff:Orientation", *const marks[] = {"=\"", ">"};
    const char *at = text, *end = at + size;
    while (at && (at = memchr(at, key[0], (size_t)(end - at)))) {
        if ((size_t)(end - at) < sizeof(key) - 1) return 0;
        if (memcmp(at, key, sizeof(key) - 1) != 0) {
            at++;
            continue;
        }
        at += sizeof(key) - 1;
        for (int i = 0; i < 2; i++) {
            size_t length = strlen(marks[i]);
            if ((size_t)(end - at) <= length || memcmp(at, marks[i], length) != 0) continue;
            if (at[length] >= '0' && at[length] <= '9') return at[length] - '0';
        }
    }
    return 0;
}

int image_orientation(const uint8_t *exif, size_t exif_size, const void *xmp, size_t xmp_size) {
    int orientation = exif ? image_exif_orientation(exif, exif_size) : 0;
    if (!orientation && xmp) orientation = image_xmp_orientation(xmp, xmp_size);
    return orientation >= 1 && orientation <= 8 ? orientation : 1;
}
