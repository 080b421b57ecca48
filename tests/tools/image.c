// For tests/oracle/compare_images.py: what Poise makes of pictures, one JSON object a line on stdin, one on stdout.
//   {"do": "decode", "file": PATH, "out": PATH}                          -> {"height", "width"}; out: RGB bytes
//   {"do": "resize", "file", "out", "width", "height", "filter": NUMBER} -> the same
//   {"do": "patches", "file", "out", "folder": DIR of the processor's files, "processor": NUMBER, "patch", "merge",
//    "temporal", "side", "tokens"}                                       -> {"grid", "tiles", "size", "runs",
//                                                                           "feature_rows"}; out: f32 patch rows
//   {"do": "jpeg", "file", "out", "sampling": [[H, V], ...] of 1 or 3 components, "quality", "restart": MCUs,
//    "progressive", "arithmetic": 0 or 1}                                 -> the same; out: a JPEG file, for kinds that
//    Pillow
//                                                                           does not write
// An error gives {"error": TEXT}.
#include "common/vision/image.h"
#include "common/store/store.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
// jpeglib.h needs stdio.h.
#include <jpeglib.h>
#include <string.h>

enum { FILE_LIMIT = 1 << 28 };

static int number(const json_t *line, const char *key) {
    return (int)json_integer_value(json_object_get(line, key));
}

static status_t write_bytes(const json_t *line, const void *bytes, size_t size) {
    const char *path = json_string_value(json_object_get(line, "out"));
    FILE *file = fopen(path, "wb");
    bool good = file && fwrite(bytes, 1, size, file) == size;
    if (file) good = !fclose(file) && good;
    if (!good) FAIL(STATUS_FAILED, "cannot write %s", path);
    return STATUS_OK;
}

static status_t decode(const json_t *line, const char *bytes, size_t size, json_t *answer) {
    image_t image, resized = {0};
    TRY(image_decode(bytes, size, &image));
    const image_t *shown = &image;
    status_t status = STATUS_OK;
    if (json_object_get(line, "filter")) {
        shown = &resized;
        status = image_resize(&image, number(line, "width"), number(line, "height"),
                              (image_filter_t)number(line, "filter"), &resized);
    }
    if (!status) {
        json_object_set_new(answer, "height", json_integer(shown->height));
        json_object_set_new(answer, "width", json_integer(shown->width));
        status = write_bytes(line, shown->pixels, 3 * (size_t)shown->width * (size_t)shown->height);
    }
    image_free(&image);
    image_free(&resized);
    return status;
}

static status_t patches(const json_t *line, const char *bytes, size_t size, json_t *answer) {
    image_rules_t rules = {.processor = (image_processor_t)number(line, "processor"),
                           .patch = number(line, "patch"),
                           .merge = number(line, "merge"),
                           .temporal = number(line, "temporal"),
                           .side_height = number(line, "side"),
                           .side_width = number(line, "side"),
                           .tokens = number(line, "tokens")};
    image_patches_t *made;
    TRY(image_rules_read(json_string_value(json_object_get(line, "folder")), &rules));
    TRY(image_patches_make(&rules, bytes, size, &made));
    const image_shape_t *shape = &made->shape;
    json_object_update_new(answer,
                           json_pack("{s:[iii], s:[ii], s:[ii], s:i, s:i}", "grid", shape->grid[0], shape->grid[1],
                                     shape->grid[2], "tiles", shape->tiles[0], shape->tiles[1], "size", shape->size[0],
                                     shape->size[1], "runs", shape->runs, "feature_rows", shape->feature_rows));
    status_t status = write_bytes(line, made->patches, (size_t)made->rows * (size_t)made->columns * sizeof(float));
    image_patches_free(made);
    return status;
}

// Errors of libjpeg end the program.
static status_t write_jpeg(const json_t *line, const char *bytes, size_t size, json_t *answer) {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    image_t image;
    const json_t *sampling = json_object_get(line, "sampling");
    unsigned char *out = NULL;
    unsigned long length = 0;
    TRY(image_decode(bytes, size, &image));
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &out, &length);
    jpeg.image_width = (JDIMENSION)image.width;
    jpeg.image_height = (JDIMENSION)image.height;
    jpeg.input_components = 3;
    jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&jpeg);
    if (json_array_size(sampling) == 1) jpeg_set_colorspace(&jpeg, JCS_GRAYSCALE);
    jpeg_set_quality(&jpeg, number(line, "quality"), TRUE);
    for (int i = 0; i < jpeg.num_components; i++) {
        const json_t *pair = json_array_get(sampling, (size_t)i);
        jpeg.comp_info[i].h_samp_factor = (int)json_integer_value(json_array_get(pair, 0));
        jpeg.comp_info[i].v_samp_factor = (int)json_integer_value(json_array_get(pair, 1));
    }
    jpeg.restart_interval = (unsigned)number(line, "restart");
    jpeg.arith_code = number(line, "arithmetic");
    if (number(line, "progressive")) jpeg_simple_progression(&jpeg);
    jpeg_start_compress(&jpeg, TRUE);
    for (int y = 0; y < image.height; y++) {
        JSAMPROW row = image.pixels + 3 * (size_t)y * (size_t)image.width;
        jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    json_object_set_new(answer, "height", json_integer(image.height));
    json_object_set_new(answer, "width", json_integer(image.width));
    status_t status = write_bytes(line, out, length);
    free(out);
    image_free(&image);
    return status;
}

static status_t one(const json_t *line, json_t *answer) {
    char *bytes;
    size_t size;
    const char *path = json_string_value(json_object_get(line, "file"));
    if (!path || !json_string_value(json_object_get(line, "out"))) FAIL(STATUS_INVALID, "the line names no file");
    TRY(file_read_whole(path, FILE_LIMIT, &bytes, &size));
    const char *what = json_string_value(json_object_get(line, "do"));
    status_t status;
    if (what && !strcmp(what, "patches"))
        status = patches(line, bytes, size, answer);
    else if (what && !strcmp(what, "jpeg"))
        status = write_jpeg(line, bytes, size, answer);
    else
        status = decode(line, bytes, size, answer);
    free(bytes);
    return status;
}

int main(void) {
    char *text = NULL;
    size_t capacity = 0;
    while (getline(&text, &capacity, stdin) > 0) {
        json_t *line = json_loads(text, 0, NULL), *answer = json_object();
        if (!line) return 2;
        status_t status = one(line, answer);
        if (status) json_object_set_new(answer, "error", json_string(status_message(status)));
        status_free(status);
        if (json_dumpf(answer, stdout, JSON_COMPACT)) return 1;
        putchar('\n');
        json_decref(answer);
        json_decref(line);
    }
    free(text);
    return fflush(stdout) != 0;
}
