// For shell tests that damage files: one element of a dataset or tensor is replaced, or its bits are flipped.
//   tool_poke h5 FILE DATASET ELEMENT set|xor HEX          (i32, i64, f32: by their bytes)
//   tool_poke h5 FILE DATASET ELEMENT get                  (prints the element's bytes as a hexadecimal number)
//   tool_poke h5 FILE DATASET 0 count|text                 (elements; a text)
//   tool_poke safetensors FILE TENSOR ELEMENT set|xor HEX  (f32)
#include <hdf5.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "tool_poke: %s\n", what);
    return 1;
}

static void change(void *element, size_t size, int flip, uint64_t bits) {
    uint64_t value = 0;
    memcpy(&value, element, size);
    value = flip ? value ^ bits : bits;
    memcpy(element, &value, size);
}

static void show(const char *data, size_t size, size_t count, size_t element, const char *verb) {
    uint64_t value = 0;
    if (size <= sizeof(value)) memcpy(&value, data + element * size, size);
    if (!strcmp(verb, "count"))
        printf("%zu\n", count);
    else if (!strcmp(verb, "text"))
        printf("%.*s\n", (int)(size * count), data);
    else
        printf("%" PRIx64 "\n", value);
}

static int poke_h5(const char *path, const char *name, size_t element, const char *verb, uint64_t bits) {
    int flip = !strcmp(verb, "xor"), changes = flip || !strcmp(verb, "set");
    hid_t file = H5Fopen(path, changes ? H5F_ACC_RDWR : H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = file < 0 ? -1 : H5Dopen2(file, name, H5P_DEFAULT);
    if (set < 0) return fail("no such file or dataset");
    hid_t type = H5Dget_type(set), space = H5Dget_space(set);
    size_t size = H5Tget_size(type), count = (size_t)H5Sget_simple_extent_npoints(space);
    char *data = malloc(size * count + 8);
    if (element >= count || !data || (changes && size > sizeof(bits)) ||
        H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        return fail("no such element");
    if (!changes) show(data, size, count, element, verb);
    if (changes) change(data + element * size, size, flip, bits);
    if (changes && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0) return fail("cannot write");
    free(data);
    H5Sclose(space), H5Tclose(type), H5Dclose(set);
    return H5Fclose(file) < 0 ? fail("cannot close") : 0;
}

static int poke_safetensors(const char *path, const char *name, size_t element, int flip, uint64_t bits) {
    FILE *file = fopen(path, "r+b");
    uint64_t header = 0;
    if (!file || fread(&header, 8, 1, file) != 1 || header > 1 << 24) return fail("no such file");
    char *text = calloc(header + 1, 1);
    if (!text || fread(text, 1, header, file) != header) return fail("the header is short");
    json_t *root = json_loads(text, 0, NULL);
    json_t *tensor = json_object_get(root, name);
    json_t *start = json_array_get(json_object_get(tensor, "data_offsets"), 0);
    if (!start) return fail("no such tensor");
    long at = 8 + (long)header + (long)json_integer_value(start) + 4 * (long)element;
    uint32_t value;
    if (fseek(file, at, SEEK_SET) || fread(&value, 4, 1, file) != 1) return fail("no such element");
    change(&value, 4, flip, bits);
    if (fseek(file, at, SEEK_SET) || fwrite(&value, 4, 1, file) != 1 || fclose(file)) return fail("cannot write");
    json_decref(root);
    free(text);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 6 || argc > 7) return fail("h5|safetensors FILE NAME ELEMENT set|xor|get|count|text [HEX]");
    size_t element = strtoull(argv[4], NULL, 10);
    uint64_t bits = argc == 7 ? strtoull(argv[6], NULL, 16) : 0;
    if (!strcmp(argv[1], "h5")) return poke_h5(argv[2], argv[3], element, argv[5], bits);
    return poke_safetensors(argv[2], argv[3], element, !strcmp(argv[5], "xor"), bits);
}
