// JPEG by libjpeg-turbo, with the settings that Pillow leaves at their defaults.
#include "common/vision/image_parts.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
// jpeglib.h needs stdio.h and stddef.h first.
#include <jpeglib.h>
// jerror.h needs jpeglib.h first.
#include <jerror.h>

enum {
    SCAN_LIMIT = 500, // a progressive file with more scans only wastes time
    // A block of 8 x 8 pixels needs a bit at least, so a byte holds 512 pixels at most.
    PIXELS_PER_BYTE = 512,
};

typedef struct jpeg_reader {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
    image_t image;
    uint8_t *row; // CMYK
    int orientation;
    status_t status;
} jpeg_reader_t;

static void jpeg_give_up(j_common_ptr common) {
    jpeg_reader_t *reader = common->client_data;
    common->err->format_message(common, reader->message);
    longjmp(reader->jump, 1);
}

// Warnings are let pass as Pillow does, except that the file ended early.
static void jpeg_note(j_common_ptr common, int level) {
    if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) jpeg_give_up(common);
}

static void jpeg_silent(j_common_ptr common) {
    (void)common;
}

static void jpeg_watch(j_common_ptr common) {
    jpeg_reader_t *reader = common->client_data;
    if (reader->jpeg.input_scan_number <= SCAN_LIMIT) return;
    snprintf(reader->message, sizeof(reader->message), "more than %d scans", SCAN_LIMIT);
    longjmp(reader->jump, 1);
}

// Adobe's CMYK is stored inverted; then Pillow's cmyk2rgb.
static void cmyk_to_rgb(const uint8_t *cmyk, uint8_t *rgb, int width) {
    for (int x = 0; x < width; x++, cmyk += 4, rgb += 3) {
        int light = cmyk[3]; // 255 - K, K being 255 - stored
        for (int c = 0; c < 3; c++) {
            int product = (255 - cmyk[c]) * light + 128;
            int value = light - ((product + (product >> 8)) >> 8);
            rgb[c] = (uint8_t)(value < 0 ? 0 : value);
        }
    }
}

// Exif may go on in a further segment; of several XMP segments the last one counts.
static status_t jpeg_find_orientation(jpeg_reader_t *reader) {
    static const char exif_name[] = "Exif\0", xmp_name[] = "http://ns.adobe.com/xap/1.0/";
    const jpeg_saved_marker_ptr first = reader->jpeg.marker_list;
    const void *xmp = NULL;
    size_t exif_size = 0, xmp_size = 0, length;
    for (jpeg_saved_marker_ptr marker = first; marker; marker = marker->next) {
        length = marker->data_length;
        if (length >= sizeof(exif_name) && !memcmp(marker->data, exif_name, sizeof(exif_name)))
            exif_size += length - sizeof(exif_name);
        if (length < sizeof(xmp_name) || memcmp(marker->data, xmp_name, sizeof(xmp_name)) != 0) continue;
        xmp = marker->data + sizeof(xmp_name);
        xmp_size = length - sizeof(xmp_name);
    }
    uint8_t *exif;
    TRY(memory_allocate(exif_size, 1, (void **)&exif));
    exif_size = 0;
    for (jpeg_saved_marker_ptr marker = first; marker; marker = marker->next) {
        length = marker->data_length;
        if (length < sizeof(exif_name) || memcmp(marker->data, exif_name, sizeof(exif_name)) != 0) continue;
        memcpy(exif + exif_size, marker->data + sizeof(exif_name), length - sizeof(exif_name));
        exif_size += length - sizeof(exif_name);
    }
    reader->orientation = image_orientation(exif, exif_size, xmp, xmp_size);
    free(exif);
    return STATUS_OK;
}

static void jpeg_read_rows(jpeg_reader_t *reader) {
    struct jpeg_decompress_struct *jpeg = &reader->jpeg;
    bool cmyk = jpeg->out_color_space == JCS_CMYK, grey = jpeg->out_color_space == JCS_GRAYSCALE;
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *rgb = reader->image.pixels + 3 * (size_t)jpeg->output_scanline * (size_t)reader->image.width;
        uint8_t *target = cmyk || grey ? reader->row : rgb;
        jpeg_read_scanlines(jpeg, &target, 1);
        if (cmyk) cmyk_to_rgb(target, rgb, reader->image.width);
        for (int x = 0; grey && x < reader->image.width; x++) memset(rgb + 3 * x, target[x], 3);
    }
}

static void jpeg_run(jpeg_reader_t *reader, const uint8_t *bytes, size_t size) {
    struct jpeg_decompress_struct *jpeg = &reader->jpeg;
    if (setjmp(reader->jump)) {
        reader->status =
            STATUS_NEW(STATUS_INVALID, "the JPEG picture is damaged or not supported: %s", reader->message);
        return;
    }
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, bytes, size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg->progress = &reader->progress;
    jpeg_read_header(jpeg, TRUE);
    reader->status = jpeg_find_orientation(reader);
    if (reader->status) return;
    if (jpeg->num_components == 4)
        jpeg->out_color_space = JCS_CMYK;
    else
        jpeg->out_color_space = jpeg->num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    reader->status = image_new(jpeg->image_width, jpeg->image_height, size, PIXELS_PER_BYTE, &reader->image);
    if (!reader->status) reader->status = memory_allocate(jpeg->image_width, 4, (void **)&reader->row);
    if (reader->status) return;
    jpeg_start_decompress(jpeg);
    jpeg_read_rows(reader);
    jpeg_abort_decompress(jpeg); // what follows the last row is not looked at, as in Pillow
}

status_t image_decode_jpeg(const uint8_t *bytes, size_t size, image_t *out, int *orientation) {
    jpeg_reader_t *reader;
    TRY(ALLOCATE(&reader, 1));
    reader->orientation = 1;
    reader->jpeg.err = jpeg_std_error(&reader->errors);
    reader->jpeg.client_data = reader;
    reader->errors.error_exit = jpeg_give_up;
    reader->errors.emit_message = jpeg_note;
    reader->errors.output_message = jpeg_silent;
    reader->progress.progress_monitor = jpeg_watch;
    jpeg_run(reader, bytes, size);
    jpeg_destroy_decompress(&reader->jpeg);
    status_t status = reader->status;
    free(reader->row);
    if (status) {
        image_free(&reader->image);
    } else {
        *out = reader->image;
        *orientation = reader->orientation;
    }
    free(reader);
    return status;
}
