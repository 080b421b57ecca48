// The model family seam: a Hugging Face folder's architecture as a forward over the tape's ops.
//
// A family is one table (model_family_t) registered in model_families.c. It reads config.json, lists its parameters
// under their checkpoint names, and writes its forward once: a vision part (images -> feature rows) and a text part
// (token rows
// -> hidden rows). Learner and rollout call the same two functions.
//
// Weights: model_t owns the published copy of every parameter (what both roles compute from) on its device, with packed
// forms. Masters and optimizer state are the learner's. `version` counts publications; model_parameters_changed
// repacks.
#ifndef COMMON_MODEL_MODEL_H
#define COMMON_MODEL_MODEL_H

#include "common/model/decoder_config.h"
#include "common/tensor/tape.h"
#include "common/vision/image_rules.h"
#include <jansson.h>

enum { MODEL_MAX_DIMENSIONS = 5 };

// What a parameter belongs to: the unit of freezing and of the trainable/frozen table.
typedef enum model_part { PART_VISION, PART_PROJECTOR, PART_LANGUAGE, PART_HEAD, PART_COUNT } model_part_t;
const char *model_part_name(model_part_t part); // "vision", "projector", "language", "head"

typedef struct parameter_spec {
    char *name; // as the checkpoint spells it, e.g. "model.layers.0.self_attn.q_proj.weight"
    model_part_t part;
    int dimensions;
    int64_t shape[MODEL_MAX_DIMENSIONS]; // as in the checkpoint
    int rows, columns;                   // as the ops see it (first dimension, product of the rest; [1, n] for vectors)
    bool is_linear;                      // the weight of a linear that may carry an adapter
    bool transposed;                     // the checkpoint has [columns, rows]: turned when it is read and written
    int64_t elements;
} parameter_spec_t;

typedef struct model_config {
    char family[32]; // "qwen2_5_vl", ...
    int hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary;
    float rms_eps;
    bool tied_embeddings;
    bool has_vision;
    bool image_groups;        // tokens of one run of image tokens see each other, later ones too (Gemma-3)
    int bos_token, pad_token; // -1 where absent
    int eos_tokens[8];
    int eos_token_count;
    char generation_ignored[512]; // fields of generation_config.json that are not applied, "a, b"
    image_rules_t image;
    decoder_config_t decoder; // the text part's rules
    void *family_config;      // the family's own struct (vision sizes, windows, ...), or NULL
} model_config_t;

typedef struct model model_t;
typedef struct decoder_class decoder_class_t; // common/model/decoder.h

// One image ready for the vision part: rows of patches. From common/vision; see image_patches_t there.
typedef struct vision_image {
    image_shape_t shape;
    const float *patches; // host, [patch_rows, columns]; pixel order as the family's processor has it. Read during the
                          // call; a dry run does not read them (may be NULL)
    int patch_rows;       // product of shape.grid
    int leaf;             // gradient leaf, ascending over a call's images
} vision_image_t;

// A paged KV cache of one engine: a row is a token slot, 16 rows a page. Device memory, owned by the engine.
typedef struct kv_cache {
    int layers;
    int rows;
    matrix_t *k, *v; // [layers] each [rows, kv_heads * head_dim]
} kv_cache_t;

// The rows of one text forward. All arrays are host memory, or memory that the tape has adopted (tape_adopt; all but
// the leaves then), and must live until tape_reset.
typedef struct text_input {
    int rows;
    const int32_t *token;            // [rows]
    const int32_t *rope_position[3]; // [rows] each; plain rope uses the first
    attention_mask_t mask;           // key_row: rows of this forward, or rows of the cache when there is one
    leaves_t leaves;                 // over rows; {0} when not recording
    const kv_cache_t *cache;         // NULL: keys and values are this forward's own
    const int32_t *cache_row;        // [rows] where this forward's keys and values are stored; NULL without a cache
    tensor_t *features;              // image feature rows, or NULL
    const int32_t *feature_index;    // [features rows] which row of this forward each becomes; -1 drops it
    // What decoder_rope_constants makes, in device memory; NULL: made and uploaded by the forward.
    const int32_t *rope_axis;
    const float *rope_frequency[2];
} text_input_t;

typedef struct model_family {
    const char *name;           // "qwen2_5_vl"
    const char *model_types[8]; // config.json's "model_type" values it takes, NULL-terminated
    // A text-only family's decoder, which a vision family's text_config may name; else NULL.
    const decoder_class_t *decoder;
    // Fills config (family_config included, by memory_allocate) from config.json; unknown keys are warned of.
    status_t (*read_config)(const json_t *config, model_config_t *out);
    void (*free_config)(model_config_t *config);
    // Adds every parameter in a fixed order by model_add_parameter.
    status_t (*add_parameters)(model_t *model);
    // Maps a name of another checkpoint generation to ours (writes at most `bytes`); false: not a parameter of this
    // model.
    bool (*map_name)(const model_t *model, const char *name, char *out, size_t bytes);
    // The name that the newest transformers gives one of our parameters: PEFT's files use it. NULL: the same as ours.
    void (*module_name)(const char *name, char *out, size_t bytes);
    // images (1 or more) -> feature rows, image after image, in the language model's width.
    status_t (*vision)(model_t *model, tape_t *tape, const vision_image_t *images, int count, tensor_t **features);
    // token rows -> final-normed hidden rows [rows, hidden].
    status_t (*text)(model_t *model, tape_t *tape, const text_input_t *input, tensor_t **hidden);
    // Rope positions of one whole sequence (three axes; plain rope fills all alike); *next is the position that follows
    // the last token on every axis. shapes: [images]. Errors: a placeholder count that differs from the images.
    status_t (*rope_positions)(const model_config_t *config, const int32_t *tokens, int count,
                               const image_shape_t *shapes, int images, int32_t *position[3], int32_t *next);
    // How many language-model tokens an image of this shape becomes (shape->feature_rows is not read).
    int (*feature_rows)(const model_config_t *config, const image_shape_t *shape);
} model_family_t;

struct model {
    const model_family_t *family;
    model_config_t config;
    device_t *device;
    dtype_t dtype; // DTYPE_F32 or DTYPE_BF16: of the published copy, and so of activations and KV caches
    int parameter_count;
    size_t parameter_capacity;
    parameter_spec_t *spec; // [parameter_count]
    parameter_t *parameter; // [parameter_count]
    adapter_t **adapter;    // [parameter_count]; NULL where a parameter has none
    int adapter_rank;       // 0: no adapters
    float adapter_alpha;
    bool adapter_rank_stabilised; // scale = alpha / sqrt(rank)
    int embedding, head; // indices of the token table and the head's weight, set by add_parameters; equal when tied
    int64_t version;     // of the published weights
    int64_t
        vision_version; // changes only when a vision or projector parameter (or adapter) does: image caches key on it
};

// Reads DIR/config.json and lists the parameters. Errors: unknown model_type (names those known), missing or
// contradictory keys. The parameters have no memory until they are loaded or initialised, so that a configuration that
// asks for more than its folder holds costs nothing.
// device NULL: for tools that compute nothing.
status_t model_open(const char *directory, device_t *device, model_t **out) STATUS_CHECKED;
// The same with a dtype, DTYPE_F32 (what model_open takes) or DTYPE_BF16. In bf16 matrices lie as bf16; vectors (biases
// and norm weights, which ops read as floats) lie as f32 that hold bf16 values. Whatever is loaded or published is
// rounded.
status_t model_open_as(const char *directory, device_t *device, dtype_t dtype, model_t **out) STATUS_CHECKED;
// "fp32" and "bf16", as configuration and commands spell them. Errors name the two.
status_t model_dtype_parse(const char *name, dtype_t *out) STATUS_CHECKED;
// Elements first .. first + count - 1 of a parameter or adapter side, from fp32 (rounded to the model's dtype) and to
// fp32 (exact). Packed forms follow with model_parameters_changed.
status_t model_write_values(const model_t *model, const parameter_t *parameter, int64_t first, int64_t count,
                            const float *values) STATUS_CHECKED;
status_t model_read_values(const model_t *model, const parameter_t *parameter, int64_t first, int64_t count,
                           float *out) STATUS_CHECKED;
void model_close(model_t *model);
// Loads DIR/*.safetensors (single or sharded, f32/bf16/f16 converted) into the published copy. A missing, surplus or
// misshapen tensor is an error that names it (rotary inv_freq buffers are ignored).
status_t model_load(model_t *model, const char *directory) STATUS_CHECKED;
// The same checks without loading: that the folder's files hold this model's tensors, each once, in its shape.
status_t model_check_weights(const model_t *model, const char *directory) STATUS_CHECKED;
// Random initialisation keyed by (seed, tensor number, element): normal(0, std) for matrices and embeddings, 0 for
// biases, 1 for norms (0 where a norm multiplies by one plus its weight).
status_t model_initialise(model_t *model, uint64_t seed, float std) STATUS_CHECKED;
// Writes the published copy as a Hugging Face folder: model.safetensors (in the model's dtype) and copies of the other
// files of `from` (config, tokenizer, preprocessor, chat template). Whole or absent: a temporary folder, renamed.
status_t model_save(const model_t *model, const char *from, const char *directory) STATUS_CHECKED;

// Gives the parameters their memory on the device, zeroed, when they have none yet.
status_t model_allocate(model_t *model) STATUS_CHECKED;
status_t model_add_parameter(model_t *model, model_part_t part, bool is_linear, int dimensions, const int64_t *shape,
                             const char *format, ...) __attribute__((format(printf, 6, 7))) STATUS_CHECKED;
// The parameter added last is a linear's weight that the checkpoint stores as [in, out] (`shape` stays so): the ops get
// it as [out, in].
void model_transpose_last(model_t *model);
// Whether a prompt may hold this id: one of the vocabulary, or the image token, which may lie behind it (Gemma-3).
bool model_takes_token(const model_config_t *config, int32_t token);
// The row of the token table for an id that a prompt may hold. Behind the vocabulary it is 0: features replace it.
int32_t model_row_of_token(const model_config_t *config, int32_t token);
// Index by name; -1 when there is none.
int model_find(const model_t *model, const char *name);
// For a family's map_name: the first of {prefix, its replacement} that turns `name` into the name of a parameter.
bool model_map_prefix(const model_t *model, const char *const (*prefixes)[2], int count, const char *name, char *out,
                      size_t bytes);
// Number of elements, trainable (sink.sum set) and all, of one part.
void model_count(const model_t *model, model_part_t part, int64_t *trainable, int64_t *total);
// Puts adapters of `rank` beside every linear whose name (without ".weight") matches one of the patterns (PCRE2, full
// match or suffix after a dot, as PEFT's target_modules). A is normal(0, 1/rank) keyed by seed, B zero, as PEFT. A
// pattern that matches nothing is an error.
status_t model_add_adapters(model_t *model, const char *const *patterns, int pattern_count, int rank, float alpha,
                            uint64_t seed) STATUS_CHECKED;
// The same with more to say: patterns whose layers get none, and PEFT's rank-stabilised scale, alpha / sqrt(rank). The
// pattern "all-linear" stands for every linear layer but the head.
typedef struct adapter_request {
    const char *const *patterns, *const *excluded;
    int pattern_count, excluded_count;
    int rank;
    float alpha;
    bool rank_stabilised;
    uint64_t seed;
} adapter_request_t;
status_t model_request_adapters(model_t *model, const adapter_request_t *request) STATUS_CHECKED;
// PEFT folder (adapter_config.json, adapter_model.safetensors) in and out. Errors name what is not supported; a tensor
// of a layer that the configuration does not target is one, too.
status_t model_load_adapter(model_t *model, const char *directory) STATUS_CHECKED;
status_t model_save_adapter(const model_t *model, const char *base, const char *directory) STATUS_CHECKED;
// Adds scale * B A of every adapter to its weight and zeroes B. For export; never while training or sampling.
status_t model_merge_adapters(model_t *model) STATUS_CHECKED;
// To call after published values were written: repacks those parameters (all when changed is NULL) and sets the
// version.
status_t model_parameters_changed(model_t *model, const bool *changed, int64_t version) STATUS_CHECKED;
// The head's weight: lm_head, or the embedding when tied.
const parameter_t *model_head(const model_t *model);
// Trained tensors in a fixed order: the trainable parameters, then adapters' A and B by parameter order. Their manifest
// (names, shapes) and its hash are what weight synchronisation checks on both sides.
typedef struct trained_tensor {
    char name[192];
    parameter_t *parameter;
    int64_t elements;
    model_part_t part;
} trained_tensor_t;
status_t model_trained_tensors(model_t *model, trained_tensor_t **out, int *count) STATUS_CHECKED;

#endif
