// Packed data with a right content hash and hostile contents: starts, lengths, image numbers, strings and pictures as
// the bytes tell. A stranger can make such a file; every sample that a file which opens gives out lies within it.
#include "common/data/packed_format.h"
#include "tests/fuzz/fuzz.h"

#include <hdf5.h>

// Starts that mostly fit: now and then anything.
static void starts(fuzz_bytes_t *bytes, int64_t *start, int64_t count, int64_t total) {
    for (int64_t i = 0; i <= count; i++) {
        uint8_t how = (uint8_t)fuzz_take(bytes, 1);
        start[i] =
            how < 250 ? total * i / (count ? count : 1) + (how > 240 ? how - 245 : 0) : (int64_t)fuzz_take(bytes, 8);
    }
    if (count && fuzz_take(bytes, 1) < 230) start[0] = 0, start[count] = total;
}

static void put(hid_t file, const char *name, hid_t type, const void *data, int64_t count) {
    hsize_t length = (hsize_t)count;
    hid_t space = H5Screate_simple(1, &length, NULL);
    hid_t id = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (count) H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
    H5Dclose(id);
    H5Sclose(space);
}

static void put_scalar(hid_t file, const char *name, hid_t type, const void *data) {
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t id = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
    H5Dclose(id);
    H5Sclose(space);
}

static void put_text(hid_t file, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(text) + 1);
    put_scalar(file, name, type, text);
    H5Tclose(type);
}

static void write_all(const packed_arrays_t *a, const uint8_t *pictures, int64_t picture_bytes, int64_t schema) {
    char hash[33];
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fapl_core(access, 1 << 16, 0);
    hid_t file = H5Fcreate("packed", H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
    put_scalar(file, "schema", H5T_STD_I64LE, &schema);
    put(file, "tokens", H5T_STD_I32LE, a->tokens, a->token_count);
    put(file, "segments", H5T_STD_U8LE, a->segments, a->token_count);
    put(file, "sample_start", H5T_STD_I64LE, a->sample_start, a->samples + 1);
    put(file, "prompt_length", H5T_STD_I32LE, a->prompt_length, a->samples);
    put(file, "image_use_start", H5T_STD_I64LE, a->image_use_start, a->samples + 1);
    put(file, "image_use", H5T_STD_I32LE, a->image_use, a->image_uses);
    put(file, "option_start", H5T_STD_I64LE, a->option_start, a->samples + 1);
    put(file, "string_start", H5T_STD_I64LE, a->string_start, a->strings + 1);
    put(file, "string_data", H5T_STD_U8LE, a->string_data, a->string_bytes);
    put(file, "image_start", H5T_STD_I64LE, a->image_start, a->images + 1);
    put(file, "image_hash", H5T_STD_I64LE, a->image_hash, a->images);
    put(file, "image_data", H5T_STD_U8LE, pictures, picture_bytes);
    packed_content_hash(a, hash);
    put_text(file, "content_hash", hash);
    put_text(file, "model_hash", "0123456789abcdef");
    H5Fflush(file, H5F_SCOPE_GLOBAL);
    ssize_t size = H5Fget_file_image(file, NULL, 0);
    FUZZ_CHECK(size > 0);
    void *image = malloc((size_t)size);
    H5Fget_file_image(file, image, (size_t)size);
    H5Fclose(file);
    fuzz_file("data.h5", image, (size_t)size);
    free(image);
}

static void use(const char *path) {
    packed_t *packed = NULL;
    status_t status = packed_open(path, &packed);
    for (int64_t i = 0; !status && i < packed_count(packed); i++) {
        packed_sample_t sample;
        status = packed_sample(packed, i, &sample);
        FUZZ_CHECK(!status);
        FUZZ_CHECK(sample.prompt_length >= 1 && sample.prompt_length <= sample.length);
        size_t text = strlen(sample.id) + strlen(sample.answer) + strlen(sample.kind) + strlen(sample.listing);
        for (int k = 0; k < sample.option_count; k++) text += strlen(sample.options[k]);
        FUZZ_CHECK(text < 1 << 20);
        for (int k = 0; k < sample.length; k++) FUZZ_CHECK(sample.tokens[k] >= 0 && sample.segments[k] < SEGMENT_COUNT);
        for (int k = 0; k < sample.image_count; k++)
            FUZZ_CHECK(sample.images[k] >= 0 && sample.images[k] < packed_images(packed));
        FUZZ_CHECK(packed_order(packed, 1, i) >= 0 && packed_order(packed, 1, i) < packed_count(packed));
    }
    for (int32_t i = 0; !status && i < packed_images(packed); i++) {
        const void *bytes;
        size_t length;
        status_free(packed_image(packed, i, &bytes, &length, NULL));
    }
    status_free(status);
    packed_close(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { MOST = 24 };
    fuzz_bytes_t bytes = {.at = data, .end = data + size};
    packed_arrays_t a = {.samples = (int64_t)(fuzz_take(&bytes, 1) % 5),
                         .token_count = (int64_t)(fuzz_take(&bytes, 1) % MOST)};
    int32_t tokens[MOST], prompt[8], uses[MOST];
    uint8_t segments[MOST], pictures[MOST];
    int64_t sample_start[8], use_start[8], option_start[8], string_start[64], image_start[8], image_hash[8];
    char text[256];
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    fuzz_allow(1 << 20, 1100, size);
    a.image_uses = (int64_t)(fuzz_take(&bytes, 1) % 8);
    a.images = (int64_t)(fuzz_take(&bytes, 1) % 4);
    int64_t picture_bytes = (int64_t)(fuzz_take(&bytes, 1) % MOST), options = (int64_t)(fuzz_take(&bytes, 1) % 8);
    a.strings = PACKED_TEXTS * a.samples + options;
    a.string_bytes = a.strings * (1 + (int64_t)(fuzz_take(&bytes, 1) % 4));
    for (int i = 0; i < MOST; i++) {
        uint8_t how = (uint8_t)fuzz_take(&bytes, 1);
        tokens[i] = how < 250 ? how : (int32_t)fuzz_take(&bytes, 4);
        segments[i] = how < 250 ? 0 : (uint8_t)fuzz_take(&bytes, 1);
        uses[i] = how < 250 ? how % 2 : (int32_t)fuzz_take(&bytes, 4);
        pictures[i] = how;
    }
    starts(&bytes, sample_start, a.samples, a.token_count);
    starts(&bytes, use_start, a.samples, a.image_uses);
    starts(&bytes, option_start, a.samples, options);
    starts(&bytes, string_start, a.strings, a.string_bytes);
    starts(&bytes, image_start, a.images, picture_bytes);
    for (int i = 0; i < 8; i++) {
        prompt[i] = 1 + (int32_t)(fuzz_take(&bytes, 1) % 3);
        image_hash[i] = (int64_t)fuzz_take(&bytes, 1);
        if (i < a.images && image_start[i] >= 0 && image_start[i] <= image_start[i + 1] &&
            image_start[i + 1] <= picture_bytes)
            image_hash[i] =
                (int64_t)XXH3_64bits(pictures + image_start[i], (size_t)(image_start[i + 1] - image_start[i]));
    }
    for (int i = 0; i < 256; i++) text[i] = i % (a.strings ? a.string_bytes / a.strings : 1) == 0 ? 0 : 'a';
    for (int64_t i = 0; i < a.strings; i++)
        if (string_start[i + 1] > 0 && string_start[i + 1] <= a.string_bytes) text[string_start[i + 1] - 1] = 0;
    a.tokens = tokens, a.segments = segments, a.sample_start = sample_start, a.prompt_length = prompt;
    a.image_use_start = use_start, a.image_use = uses, a.option_start = option_start, a.string_start = string_start;
    a.string_data = text, a.image_start = image_start, a.image_hash = image_hash;
    write_all(&a, pictures, picture_bytes, fuzz_take(&bytes, 1) < 250 ? 1 : 2);
    use(fuzz_path("data.h5"));
    return 0;
}
