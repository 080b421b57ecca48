// PNG by libpng, read as Pillow reads it: 16-bit colour keeps the high byte, 16-bit grey is cut at 255, alpha is
// dropped.
#include "common/vision/image_parts.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK_LIMIT = 64 << 20,     // bytes of one ancillary chunk
    PIXELS_PER_BYTE = 8 * 1040, // deflate packs at most 1032 to 1, and a byte holds 8 pixels at least
};

typedef struct png_io {
    const uint8_t *bytes;
    size_t size, at, missing;
    uint8_t *out; // when writing
    size_t capacity;
    char message[160];
    png_structp png;
    png_infop info;
    image_t image;
    uint8_t *raw;  // rows as libpng gives them
    bool complete; // all pixels are read
    int orientation;
    status_t status;
} png_io_t;

static void png_give_up(png_structp png, png_const_charp text) {
    png_io_t *io = png_get_error_ptr(png);
    snprintf(io->message, sizeof(io->message), "%s", text);
    png_longjmp(png, 1);
}

static void png_silent(png_structp png, png_const_charp text) {
    (void)png;
    (void)text;
}

static void png_take(png_structp png, png_bytep out, size_t count) {
    png_io_t *io = png_get_io_ptr(png);
    size_t left = io->size - io->at, missing = count > left ? count - left : 0;
    if (missing > io->missing) png_error(png, "the file ends early");
    memcpy(out, io->bytes + io->at, count - missing);
    memset(out + count - missing, 0, missing);
    io->at += count - missing;
    io->missing -= missing;
}

static uint32_t png_word(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

// Walks through the chunks. `missing`: how many bytes of the checksum of the last chunk of pixels are cut off; Pillow
// does not look at it. Another chunk that is longer than the rest of the file ends it here: libpng would allocate its
// length.
static void png_find_end(png_io_t *io) {
    for (size_t at = 8; io->size - at >= 8;) {
        size_t length = png_word(io->bytes + at), left = io->size - at - 8;
        bool is_data = !memcmp(io->bytes + at + 4, "IDAT", 4);
        if (length > left && !is_data) io->size = at;
        if (length > left) return;
        if (left - length < 4) {
            io->missing = is_data ? 4 - (left - length) : 0;
            return;
        }
        at += 12 + length;
    }
}

static uint8_t png_clip(unsigned value) {
    return (uint8_t)(value > 255 ? 255 : value);
}

// Which entry of a palette is transparent while all others are opaque; -1 when it is not so. As in Pillow, a last entry
// of 10 (the line end of its regular expression) does not count.
static int png_clear_entry(const uint8_t *alpha, int count) {
    int clear = -1;
    if (count && alpha[count - 1] == '\n') count--;
    for (int i = 0; i < count; i++) {
        if (alpha[i] != 255 && (alpha[i] || clear >= 0)) return -1;
        if (!alpha[i]) clear = i;
    }
    return clear;
}

// The colour that tRNS makes transparent, as it comes out of Pillow's convert("RGB"): samples are compared as they are
// stored, cut at 255 and not scaled; of 1 and 16 bits the sample is taken for an amount of red.
static void png_find_key(png_io_t *io) {
    png_bytep alpha = NULL;
    png_color_16p colour = NULL;
    png_colorp palette = NULL;
    int count = 0, entries = 0, depth = png_get_bit_depth(io->png, io->info);
    image_t *image = &io->image;
    if (!png_get_tRNS(io->png, io->info, &alpha, &count, &colour)) return;
    switch (png_get_color_type(io->png, io->info)) {
    case PNG_COLOR_TYPE_GRAY:
        image->keyed = true;
        memset(image->key, depth == 1 || depth == 16 ? 0 : png_clip(colour->gray), 3);
        if (depth == 1) image->key[0] = colour->gray ? 255 : 0;
        if (depth == 16) image->key[0] = (uint8_t)(colour->gray & 255);
        break;
    case PNG_COLOR_TYPE_RGB:
        image->keyed = true;
        image->key[0] = png_clip(colour->red);
        image->key[1] = png_clip(colour->green);
        image->key[2] = png_clip(colour->blue);
        break;
    case PNG_COLOR_TYPE_PALETTE: {
        int clear = png_clear_entry(alpha, count);
        png_get_PLTE(io->png, io->info, &palette, &entries);
        image->keyed = clear >= 0; // an entry that the palette lacks is black
        if (clear >= 0 && clear < entries)
            memcpy(image->key, (uint8_t[]){palette[clear].red, palette[clear].green, palette[clear].blue}, 3);
        break;
    }
    default:
        break;
    }
}

// Every kind of pixel becomes 1 to 4 channels of 8 bits (16 for grey); returns how many bytes a pixel has then.
static size_t png_set_up(png_io_t *io) {
    png_structp png = io->png;
    int colour = png_get_color_type(png, io->info), depth = png_get_bit_depth(png, io->info);
    if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
    if (colour == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
    if (depth == 16 && colour != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, io->info);
    size_t row = png_get_rowbytes(png, io->info), width = png_get_image_width(png, io->info);
    return row / width;
}

static void png_to_rgb(png_io_t *io, size_t pixel, bool wide_grey) {
    size_t count = (size_t)io->image.width * (size_t)io->image.height;
    const uint8_t *from = io->raw;
    uint8_t *rgb = io->image.pixels;
    for (size_t i = 0; i < count; i++, from += pixel, rgb += 3) {
        if (wide_grey)
            memset(rgb, from[0] ? 255 : from[1], 3); // most significant byte first
        else if (pixel >= 3)
            memcpy(rgb, from, 3);
        else
            memset(rgb, from[0], 3);
    }
}

static void png_run_reader(png_io_t *io) {
    png_structp png = io->png;
    if (setjmp(png_jmpbuf(png))) {
        io->status = STATUS_NEW(STATUS_INVALID, "the PNG picture is damaged or not supported: %s", io->message);
        return;
    }
    png_set_read_fn(png, io, png_take);
    png_set_user_limits(png, INT32_MAX / 4, INT32_MAX / 4);
    png_set_chunk_malloc_max(png, CHUNK_LIMIT);
    png_set_chunk_cache_max(png, 1000);
    png_read_info(png, io->info);
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_DEFAULT); // of the pixels: as Pillow
    uint64_t width = png_get_image_width(png, io->info), height = png_get_image_height(png, io->info);
    bool wide_grey = png_get_color_type(png, io->info) == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, io->info) == 16;
    io->status = image_new(width, height, io->size, PIXELS_PER_BYTE, &io->image);
    if (io->status) return;
    png_find_key(io);
    size_t pixel = png_set_up(io), row = png_get_rowbytes(png, io->info);
    io->status = memory_allocate(height, row, (void **)&io->raw);
    if (io->status) return;
    int passes = png_set_interlace_handling(png);
    for (int pass = 0; pass < passes; pass++)
        for (uint64_t y = 0; y < height; y++) png_read_row(png, io->raw + y * row, NULL);
    png_to_rgb(io, pixel, wide_grey);
    io->complete = true;
}

// What lies behind the pixels may be damaged or missing, as Pillow has it.
static void png_run_tail(png_io_t *io) {
    if (setjmp(png_jmpbuf(io->png))) return;
    png_read_end(io->png, io->info);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

// ImageMagick's text form of Exif: three line ends, then hexadecimal digits, which are put in the place of the text.
static size_t png_unhex(char *text) {
    size_t count = 0;
    const char *at = text;
    for (int i = 0; i < 3 && at; i++) at = (at = strchr(at, '\n')) ? at + 1 : NULL;
    while (at && *at) {
        int high = hex_digit(at[0]), low = high < 0 ? -1 : hex_digit(at[1]);
        if (low >= 0) text[count++] = (char)(high << 4 | low);
        at += low >= 0 ? 2 : 1;
    }
    return count;
}

static void png_find_orientation(png_io_t *io) {
    png_textp text = NULL, xmp = NULL, profile = NULL;
    png_bytep exif = NULL;
    png_uint_32 length = 0;
    int count = 0;
    png_get_text(io->png, io->info, &text, &count);
    for (int i = 0; i < count; i++) {
        if (!strcmp(text[i].key, "XML:com.adobe.xmp")) xmp = &text[i];
        if (!strcmp(text[i].key, "Raw profile type exif")) profile = &text[i];
    }
    size_t size = 0;
    if (png_get_eXIf_1(io->png, io->info, &length, &exif)) {
        size = length;
    } else if (profile && profile->text) {
        exif = (png_bytep)profile->text;
        size = png_unhex(profile->text);
    }
    bool has_xmp = xmp && xmp->text;
    io->orientation = image_orientation(exif, size, has_xmp ? xmp->text : NULL, has_xmp ? strlen(xmp->text) : 0);
}

status_t image_decode_png(const uint8_t *bytes, size_t size, image_t *out, int *orientation) {
    png_io_t *io;
    TRY(ALLOCATE(&io, 1));
    io->bytes = bytes;
    io->size = size;
    png_find_end(io);
    io->orientation = 1;
    io->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, io, png_give_up, png_silent);
    io->info = io->png ? png_create_info_struct(io->png) : NULL;
    if (io->info)
        png_run_reader(io);
    else
        io->status = STATUS_NEW(STATUS_MEMORY, "out of memory while reading a PNG picture");
    if (io->complete) {
        png_run_tail(io);
        png_find_orientation(io);
    }
    png_destroy_read_struct(&io->png, &io->info, NULL);
    status_t status = io->status;
    free(io->raw);
    if (status) {
        image_free(&io->image);
    } else {
        *out = io->image;
        *orientation = io->orientation;
    }
    free(io);
    return status;
}

static void png_put(png_structp png, png_bytep data, size_t count) {
    png_io_t *io = png_get_io_ptr(png);
    status_t status = memory_grow((void **)&io->out, &io->capacity, io->at + count, 1);
    if (status) {
        status_free(status);
        png_error(png, "out of memory");
    }
    memcpy(io->out + io->at, data, count);
    io->at += count;
}

static void png_flush_nothing(png_structp png) {
    (void)png;
}

static void png_run_writer(png_io_t *io, const image_t *image) {
    png_structp png = io->png;
    if (setjmp(png_jmpbuf(png))) {
        io->status = STATUS_NEW(STATUS_FAILED, "the picture cannot be written as PNG: %s", io->message);
        return;
    }
    png_set_write_fn(png, io, png_put, png_flush_nothing);
    png_set_compression_level(png, 6);
    png_set_IHDR(png, io->info, (png_uint_32)image->width, (png_uint_32)image->height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, io->info);
    for (int y = 0; y < image->height; y++) png_write_row(png, image->pixels + 3 * (size_t)y * (size_t)image->width);
    png_write_end(png, NULL);
}

status_t image_encode_png(const image_t *image, uint8_t **out, size_t *size) {
    png_io_t *io;
    *out = NULL;
    *size = 0;
    TRY(ALLOCATE(&io, 1));
    io->png = png_create_write_struct(PNG_LIBPNG_VER_STRING, io, png_give_up, png_silent);
    io->info = io->png ? png_create_info_struct(io->png) : NULL;
    if (io->info)
        png_run_writer(io, image);
    else
        io->status = STATUS_NEW(STATUS_MEMORY, "out of memory while writing a PNG picture");
    png_destroy_write_struct(&io->png, &io->info);
    status_t status = io->status;
    if (status) {
        free(io->out);
    } else {
        *out = io->out;
        *size = io->at;
    }
    free(io);
    return status;
}
