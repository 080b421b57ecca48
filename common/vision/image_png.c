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
    size_t size, at;
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
    if (count > io->size - io->at) png_error(png, "the file ends early");
    memcpy(out, io->bytes + io->at, count);
    io->at += count;
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
    uint64_t width = png_get_image_width(png, io->info), height = png_get_image_height(png, io->info);
    bool wide_grey = png_get_color_type(png, io->info) == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, io->info) == 16;
    io->status = image_new(width, height, io->size, PIXELS_PER_BYTE, &io->image);
    if (io->status) return;
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
