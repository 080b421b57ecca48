// For tests/oracle/compare_images.py: what Poise makes of pictures, one JSON object a line on stdin, one on stdout.
//   {"do": "decode", "file": PATH, "out": PATH}                          -> {"height", "width"}; out: RGB bytes
//   {"do": "resize", "file", "out", "width", "height", "filter": NUMBER} -> the same
//   {"do": "patches", "file", "out", "folder": DIR of the processor's files, "processor": NUMBER, "patch", "merge",
//    "temporal", "side", "tokens"}                                       -> {"grid", "tiles", "size", "runs",
//                                                                           "feature_rows"}; out: f32 patch rows
// An error gives {"error": TEXT}.
#include "common/vision/image.h"
#include "common/store/store.h"

#include <jansson.h>
#include <stdlib.h>
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

static status_t one(const json_t *line, json_t *answer) {
    char *bytes;
    size_t size;
    const char *path = json_string_value(json_object_get(line, "file"));
    if (!path || !json_string_value(json_object_get(line, "out"))) FAIL(STATUS_INVALID, "the line names no file");
    TRY(file_read_whole(path, FILE_LIMIT, &bytes, &size));
    const char *what = json_string_value(json_object_get(line, "do"));
    status_t status =
        what && !strcmp(what, "patches") ? patches(line, bytes, size, answer) : decode(line, bytes, size, answer);
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
