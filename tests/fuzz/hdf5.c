// Well-formed HDF5 files that nobody expects: the library writes, in memory, datasets of the names that Poise reads
// with types, shapes, layouts, filters, attributes and links as the bytes tell. Read as target `store` reads damaged
// ones.
#include "common/data/packed.h"
#include "common/store/store.h"
#include "launch/inspect_parts.h"
#include "tests/fuzz/fuzz.h"

#include <hdf5.h>

static const char *const names[] = {"schema",
                                    "tokens",
                                    "segments",
                                    "sample_start",
                                    "prompt_length",
                                    "string_data",
                                    "model_hash",
                                    "content_hash",
                                    "kind",
                                    "step",
                                    "config",
                                    "optimizer/updates",
                                    "optimizer/master/a",
                                    "optimizer/scales",
                                    "weights/version-1",
                                    "counts/vision_trainable",
                                    "groups/serial",
                                    "groups/version",
                                    "completions/reward",
                                    "completions/reward_tag",
                                    "completions/reward_answer",
                                    "completions/flags",
                                    "completions/token_start",
                                    "tokens/deeper/than/usual"};

static hid_t make_type(fuzz_bytes_t *bytes) {
    hid_t type;
    switch (fuzz_take(bytes, 1) % 12) {
    case 0:
        return H5Tcopy(H5T_STD_I32LE);
    case 1:
        return H5Tcopy(H5T_STD_U8LE);
    case 2:
        return H5Tcopy(H5T_IEEE_F32LE);
    case 3:
        return H5Tcopy(H5T_IEEE_F64LE);
    case 4:
        return H5Tcopy(H5T_STD_I64BE);
    case 5:
        type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, 1 + fuzz_take(bytes, 2));
        return type;
    case 6:
        type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, H5T_VARIABLE);
        return type;
    case 7:
        type = H5Tcreate(H5T_COMPOUND, 16);
        H5Tinsert(type, "a", 0, H5T_STD_I64LE);
        H5Tinsert(type, "b", 8, H5T_IEEE_F32LE);
        return type;
    case 8:
        type = H5Tcopy(H5T_STD_I64LE);
        H5Tset_precision(type, 1 + fuzz_take(bytes, 1) % 64);
        return type;
    case 9:
        return H5Tcreate(H5T_OPAQUE, 1 + fuzz_take(bytes, 2));
    case 10:
        return H5Tvlen_create(H5T_STD_I32LE);
    default:
        return H5Tcopy(H5T_STD_I64LE);
    }
}

// Small, or as large as a header can say.
static hsize_t make_length(fuzz_bytes_t *bytes) {
    uint8_t how = (uint8_t)fuzz_take(bytes, 1);
    return how < 220 ? how % 33 : fuzz_take(bytes, 8) >> (how % 64);
}

static hid_t make_space(fuzz_bytes_t *bytes, int *rank, hsize_t length[3]) {
    static const int ranks[] = {1, 1, 1, 1, 0, 0, 2, 3};
    uint8_t how = (uint8_t)fuzz_take(bytes, 1);
    if (how == 255) return H5Screate(H5S_NULL);
    *rank = ranks[how % 8];
    for (int i = 0; i < *rank; i++) length[i] = make_length(bytes);
    hsize_t most[3] = {H5S_UNLIMITED, H5S_UNLIMITED, H5S_UNLIMITED};
    return *rank ? H5Screate_simple(*rank, length, how & 64 ? most : NULL) : H5Screate(H5S_SCALAR);
}

static hid_t make_layout(fuzz_bytes_t *bytes, int rank, bool *small) {
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    hsize_t chunk[3] = {1 + fuzz_take(bytes, 1) % 40, 3, 2};
    uint8_t how = (uint8_t)fuzz_take(bytes, 1);
    if (how % 8 == 1) H5Pset_layout(creation, H5D_COMPACT);
    if (how % 8 == 2) H5Pset_external(creation, "/etc/hostname", 0, 16);
    if (how % 8 < 3 || !rank) return creation;
    if (how % 8 == 7) chunk[0] = fuzz_take(bytes, 4) + 1;
    *small = chunk[0] <= 4096; // the library would write the whole chunk
    H5Pset_chunk(creation, rank, chunk);
    if (how & 8) H5Pset_shuffle(creation);
    if (how & 16) H5Pset_deflate(creation, 1);
    if (how & 32) H5Pset_fletcher32(creation);
    return creation;
}

static void make_dataset(hid_t file, fuzz_bytes_t *bytes, hid_t links) {
    static uint8_t contents[1 << 16];
    const char *name = names[fuzz_take(bytes, 1) % (sizeof(names) / sizeof(names[0]))];
    int rank = 0;
    bool small = true;
    hsize_t length[3] = {0};
    hid_t type = make_type(bytes), space = make_space(bytes, &rank, length),
          creation = make_layout(bytes, rank, &small);
    hid_t id = H5Dcreate2(file, name, type, space, links, creation, H5P_DEFAULT);
    hssize_t elements = space < 0 ? 0 : H5Sget_simple_extent_npoints(space);
    bool flat = H5Tget_class(type) != H5T_VLEN && H5Tis_variable_str(type) <= 0;
    if (id >= 0 && small && flat && elements > 0 && (size_t)elements < sizeof(contents) / H5Tget_size(type) &&
        fuzz_take(bytes, 1) < 240) {
        uint8_t fill = (uint8_t)fuzz_take(bytes, 1);
        for (size_t i = 0; i < (size_t)elements * H5Tget_size(type); i++)
            contents[i] = (uint8_t)fuzz_take(bytes, 1) ^ fill;
        H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, contents);
    }
    if (id >= 0 && fuzz_take(bytes, 1) > 200) {
        hid_t scalar = H5Screate(H5S_SCALAR),
              attribute = H5Acreate2(id, "unit", type, scalar, H5P_DEFAULT, H5P_DEFAULT);
        if (attribute >= 0) H5Aclose(attribute);
        H5Sclose(scalar);
    }
    if (id >= 0) H5Dclose(id);
    H5Pclose(creation);
    if (space >= 0) H5Sclose(space);
    H5Tclose(type);
}

static void make_link(hid_t file, fuzz_bytes_t *bytes, hid_t links) {
    size_t count = sizeof(names) / sizeof(names[0]);
    const char *from = names[fuzz_take(bytes, 1) % count], *to = names[fuzz_take(bytes, 1) % count];
    uint8_t how = (uint8_t)fuzz_take(bytes, 1) % 4;
    if (how == 0) H5Lcreate_soft(to, file, from, links, H5P_DEFAULT);
    if (how == 1) H5Lcreate_hard(file, to, file, from, links, H5P_DEFAULT);
    if (how == 2) H5Lcreate_external("/etc/hostname", "/a", file, from, links, H5P_DEFAULT);
    if (how == 3) H5Lcreate_hard(file, "/", file, from, links, H5P_DEFAULT);
}

static void make_file(fuzz_bytes_t *bytes) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE),
          links = H5Pcreate(H5P_LINK_CREATE);
    uint8_t how = (uint8_t)fuzz_take(bytes, 1);
    H5Pset_fapl_core(access, 1 << 16, 0);
    H5Pset_create_intermediate_group(links, 1);
    if (how == 255) H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
    if (how == 254) H5Pset_userblock(creation, 512);
    if (how == 253) H5Pset_sizes(creation, 4, 4);
    hid_t file = H5Fcreate("any", H5F_ACC_TRUNC, creation, access);
    for (int i = 0; i < 12 && bytes->at < bytes->end; i++) {
        if (fuzz_take(bytes, 1) < 210)
            make_dataset(file, bytes, links);
        else
            make_link(file, bytes, links);
    }
    H5Fflush(file, H5F_SCOPE_GLOBAL);
    ssize_t size = H5Fget_file_image(file, NULL, 0);
    uint8_t *image = malloc(size > 0 ? (size_t)size : 1);
    if (size > 0) H5Fget_file_image(file, image, (size_t)size);
    // What is left of the bytes damages it here and there.
    while (size > 0 && bytes->at + 4 <= bytes->end)
        image[fuzz_take(bytes, 3) % (uint64_t)size] ^= (uint8_t)fuzz_take(bytes, 1);
    fuzz_file("data.h5", image, size > 0 ? (size_t)size : 0);
    fuzz_allow(1 << 20, 1100, size > 0 ? (size_t)size : 0);
    free(image);
    H5Fclose(file);
    H5Pclose(access), H5Pclose(creation), H5Pclose(links);
}

static void read_dataset(store_t *store, const char *name) {
    int64_t count, number;
    char *text;
    status_free(store_count(store, name, &count));
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        void *all = NULL;
        status_t status = store_read_all(store, name, (dtype_t)dtype, &all, &count);
        status_free(status);
        free(all);
    }
    status_t status = store_read_string(store, name, &text);
    if (!status) free(text);
    status_free(status);
    status_free(store_read_number(store, name, &number));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool quiet;
    fuzz_bytes_t bytes = {.at = data, .end = data + size};
    store_t *store;
    packed_t *packed;
    char path[256];
    if (!quiet) quiet = freopen("/dev/null", "w", stdout) != NULL; // what inspect prints
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    make_file(&bytes);
    snprintf(path, sizeof(path), "%s", fuzz_path("data.h5"));
    status_t status = store_open(path, &store);
    if (!status) {
        for (size_t i = 0; i < store_names(store); i++)
            if (store_name(store, i)) read_dataset(store, store_name(store, i));
        store_close(store);
        status = packed_open(path, &packed);
        if (!status) packed_close(packed);
        status_free(status);
        status = inspect_store(path, NULL, -1);
    }
    status_free(status);
    return 0;
}
