// A GGUF file written as a Hugging Face folder, which everything else here (and transformers) reads.
#ifndef COMMON_MODEL_GGUF_CONVERT_H
#define COMMON_MODEL_GGUF_CONVERT_H

#include "common/model/gguf.h"
#include <jansson.h>

typedef enum gguf_decoder { GGUF_LLAMA, GGUF_QWEN2, GGUF_GEMMA3 } gguf_decoder_t;

// Writes FOLDER: config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json,
// whole or not at all. Quantised tensors become f32, with the values that transformers gives them with gguf_file= and
// dequantize; F16 and BF16 stay. Errors: an architecture other than llama, qwen2 and gemma3, what those cannot express,
// a missing or surplus tensor, a vocabulary that is not read.
status_t gguf_convert(const char *path, const char *directory) STATUS_CHECKED;

// ---- parts (gguf_config.c, gguf_tokenizer.c) ----

// The decoder of "general.architecture". Errors name those that are read.
status_t gguf_find_decoder(const gguf_t *file, gguf_decoder_t *out) STATUS_CHECKED;
// What config.json and generation_config.json hold, to be released by json_decref.
status_t gguf_make_config(const gguf_t *file, gguf_decoder_t decoder, json_t **out) STATUS_CHECKED;
status_t gguf_make_generation(const gguf_t *file, json_t **out) STATUS_CHECKED;
// Writes tokenizer.json and tokenizer_config.json into the folder.
status_t gguf_write_tokenizer(const gguf_t *file, gguf_decoder_t decoder, const char *directory) STATUS_CHECKED;

#endif
