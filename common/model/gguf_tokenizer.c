// tokenizer.json out of a GGUF file's vocabulary: the tokenizer that transformers builds of the same file.
#include "common/model/gguf_convert.h"
#include "common/model/gguf_vocabulary.h"
#include "common/store/store.h"

#include <stdlib.h>
#include <string.h>

// The regular expressions that byte-level vocabularies were learned with, by the names that llama.cpp gives them.
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER        "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER        "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define SPACES       "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const char llama3_split[] = CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                                                "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES;
static const char qwen2_split[] = CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                                               "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES;
static const char tekken_split[] = "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER
                                   "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES;
static const char gpt4o_split[] =
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" CONTRACTIONS "?|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER
    "*" CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES;

static const struct {
    const char *name, *split; // NULL: GPT-2's, which ByteLevel has by itself
} splits[] = {{"llama3", llama3_split},
              {"llama-v3", llama3_split},
              {"llama-bpe", llama3_split},
              {"falcon3", llama3_split},
              {"pixtral", llama3_split},
              {"midm-2.0", llama3_split},
              {"dbrx", llama3_split},
              {"smaug-bpe", llama3_split},
              {"tekken", tekken_split},
              {"qwen2", qwen2_split},
              {"deepseek-r1-qwen", qwen2_split},
              {"kormo", qwen2_split},
              {"f2llmv2", qwen2_split},
              {"megrez", qwen2_split},
              {"gpt-4o", gpt4o_split},
              {"llama4", gpt4o_split},
              {"kanana2", gpt4o_split},
              {"default", NULL},
              {"gpt-2", NULL},
              // Digits stand alone in this one, and its merges have none of two digits.
              {"smollm", NULL}};

static bool text_is(const gguf_text_t *text, const char *wanted) {
    return text->length == strlen(wanted) && !memcmp(text->bytes, wanted, text->length);
}

static const char *find_split(const gguf_text_t *name) {
    for (size_t i = 0; i < sizeof(splits) / sizeof(splits[0]); i++)
        if (text_is(name, splits[i].name)) return splits[i].split;
    fprintf(stderr,
            "warning: the file cuts text by the rules '%.*s', which are not known here; GPT-2's are taken, and some "
            "text may get other tokens\n",
            name->length < 64 ? (int)name->length : 64, name->bytes);
    return NULL;
}

// ---- JSON ----

// A string of UTF-8. Characters that JSON lets stand stand.
static void put_string(FILE *out, const char *bytes, size_t length) {
    fputc('"', out);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 32 || c == 127)
            fprintf(out, "\\u%04x", c);
        else
            fputc(c, out);
    }
    fputc('"', out);
}

static void put_text(FILE *out, const gguf_text_t *text) {
    put_string(out, text->bytes, text->length);
}

static void put_added(const vocabulary_t *vocabulary, FILE *out) {
    const char *comma = "\n";
    fputs("  \"added_tokens\": [", out);
    for (int32_t id = 0; id < vocabulary->count; id++) {
        vocabulary_mark_t mark = vocabulary->mark[id];
        if (mark == MARK_NONE) continue;
        fprintf(out, "%s    {\"id\": %d, \"content\": ", comma, id);
        put_text(out, &vocabulary->token[id]);
        fprintf(out,
                ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": "
                "%s}",
                mark == MARK_SPECIAL ? "true" : "false");
        comma = ",\n";
    }
    fputs("\n  ],\n", out);
}

static void put_pieces(const vocabulary_t *vocabulary, FILE *out) {
    switch (vocabulary->kind) {
    case VOCABULARY_BYTES: {
        const char *split = vocabulary->pre.bytes ? find_split(&vocabulary->pre) : NULL;
        fputs("  \"normalizer\": null,\n  \"pre_tokenizer\": ", out);
        if (split) {
            fputs("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": ", out);
            put_string(out, split, strlen(split));
            fputs("}, \"behavior\": \"Isolated\", \"invert\": false}, ", out);
        }
        fprintf(
            out,
            "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": %s}%s,\n",
            split ? "false" : "true", split ? "]}" : "");
        fputs("  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, "
              "\"use_regex\": true},\n",
              out);
        return;
    }
    case VOCABULARY_PIECES:
        fputs(
            "  \"normalizer\": null,\n  \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\u2581\", "
            "\"prepend_scheme\": \"first\", \"split\": false},\n  \"decoder\": {\"type\": \"Sequence\", \"decoders\": "
            "[{\"type\": \"Replace\", \"pattern\": {\"String\": \"\u2581\"}, \"content\": \" \"}, {\"type\": "
            "\"ByteFallback\"}, {\"type\": \"Fuse\"}, {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, "
            "\"stop\": 0}]},\n",
            out);
        return;
    case VOCABULARY_GEMMA:
        fputs("  \"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\u2581\"},\n"
              "  \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \" \"}, \"behavior\": "
              "\"MergedWithPrevious\", \"invert\": false},\n  \"decoder\": {\"type\": \"Sequence\", \"decoders\": "
              "[{\"type\": \"Replace\", \"pattern\": {\"String\": \"\u2581\"}, \"content\": \" \"}, {\"type\": "
              "\"ByteFallback\"}, {\"type\": \"Fuse\"}]},\n",
              out);
        return;
    }
}

// One side of the template: bos, the sequence, eos.
static void put_sequence(const vocabulary_t *vocabulary, char id, FILE *out) {
    const int32_t ends[2] = {vocabulary->add_bos ? vocabulary->bos : -1, vocabulary->add_eos ? vocabulary->eos : -1};
    for (int i = 0; i < 3; i++) {
        if (i == 1) {
            fprintf(out, "{\"Sequence\": {\"id\": \"%c\", \"type_id\": %d}}", id, id - 'A');
            continue;
        }
        int32_t end = ends[i / 2];
        if (end < 0) continue;
        fprintf(out, "%s{\"SpecialToken\": {\"id\": ", i ? ", " : "");
        put_text(out, &vocabulary->token[end]);
        fprintf(out, ", \"type_id\": %d}}%s", id - 'A', i ? "" : ", ");
    }
}

static void put_template(const vocabulary_t *vocabulary, FILE *out) {
    fputs("  \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [", out);
    put_sequence(vocabulary, 'A', out);
    fputs("], \"pair\": [", out);
    put_sequence(vocabulary, 'A', out);
    fputs(", ", out);
    put_sequence(vocabulary, 'B', out);
    fputs("], \"special_tokens\": {", out);
    bool bos = vocabulary->add_bos && vocabulary->bos >= 0;
    bool eos = vocabulary->add_eos && vocabulary->eos >= 0 && !(bos && vocabulary->bos == vocabulary->eos);
    for (int i = 0; i < 2; i++) {
        if (!(i ? eos : bos)) continue;
        int32_t id = i ? vocabulary->eos : vocabulary->bos;
        if (i && bos) fputs(", ", out);
        put_text(out, &vocabulary->token[id]);
        fputs(": {\"id\": ", out);
        put_text(out, &vocabulary->token[id]);
        fprintf(out, ", \"ids\": [%d], \"tokens\": [", id);
        put_text(out, &vocabulary->token[id]);
        fputs("]}", out);
    }
    fputs("}},\n", out);
}

static void put_model(const vocabulary_t *vocabulary, FILE *out) {
    bool bytes = vocabulary->kind == VOCABULARY_BYTES;
    const char *comma = "\n", *affix = bytes ? "\"\"" : "null";
    fprintf(out,
            "  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": %s, "
            "\"continuing_subword_prefix\": %s, \"end_of_word_suffix\": %s, \"fuse_unk\": %s, \"byte_fallback\": %s, "
            "\"ignore_merges\": false,\n    \"vocab\": {",
            vocabulary->kind == VOCABULARY_GEMMA ? "\"<unk>\"" : "null", affix, affix, bytes ? "false" : "true",
            bytes ? "false" : "true");
    for (int32_t id = 0; id < vocabulary->count; id++) {
        // Of tokens that are spelled alike the last one counts.
        if (vocabulary_find(vocabulary, &vocabulary->token[id]) != id) continue;
        fputs(comma, out);
        fputs("      ", out);
        put_text(out, &vocabulary->token[id]);
        fprintf(out, ": %d", id);
        comma = ",\n";
    }
    fputs("\n    },\n    \"merges\": [", out);
    for (size_t i = 0; i < vocabulary->merge_count; i++) {
        fputs(i ? ",\n      [" : "\n      [", out);
        put_text(out, &vocabulary->merge[i].left);
        fputs(", ", out);
        put_text(out, &vocabulary->merge[i].right);
        fputc(']', out);
    }
    fputs("\n    ]\n  }\n", out);
}

// ---- files ----

static status_t write_tokenizer(const vocabulary_t *vocabulary, const char *directory) {
    char path[4096];
    file_writer_t writer;
    if (snprintf(path, sizeof(path), "%s/tokenizer.json", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    TRY(file_writer_open(path, &writer));
    fputs("{\n  \"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n", writer.stream);
    put_added(vocabulary, writer.stream);
    put_pieces(vocabulary, writer.stream);
    put_template(vocabulary, writer.stream);
    put_model(vocabulary, writer.stream);
    fputs("}\n", writer.stream);
    status_t status = file_writer_finish(&writer);
    file_writer_close(&writer);
    return status;
}

static void set_token(const vocabulary_t *vocabulary, json_t *json, const char *key, int32_t id) {
    if (id >= 0)
        json_object_set_new(json, key, json_stringn(vocabulary->token[id].bytes, vocabulary->token[id].length));
}

// The class is the one that takes tokenizer.json as it is.
static status_t write_settings(const vocabulary_t *vocabulary, const char *directory) {
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/tokenizer_config.json", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    json_t *json =
        json_pack("{s:s,s:b,s:b,s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "add_bos_token",
                  vocabulary->add_bos, "add_eos_token", vocabulary->add_eos, "clean_up_tokenization_spaces", 0);
    set_token(vocabulary, json, "bos_token", vocabulary->bos);
    set_token(vocabulary, json, "eos_token", vocabulary->eos);
    set_token(vocabulary, json, "unk_token", vocabulary->unknown);
    set_token(vocabulary, json, "pad_token", vocabulary->pad);
    if (vocabulary->chat_template.bytes)
        json_object_set_new(json, "chat_template",
                            json_stringn(vocabulary->chat_template.bytes, vocabulary->chat_template.length));
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(json);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing tokenizer_config.json");
    status_t status = file_write_whole(path, text, strlen(text));
    free(text);
    return status;
}

status_t gguf_write_tokenizer(const gguf_t *file, gguf_decoder_t decoder, const char *directory) {
    vocabulary_t vocabulary;
    status_t status = vocabulary_open(file, decoder, &vocabulary);
    if (!status) status = write_tokenizer(&vocabulary, directory);
    if (!status) status = write_settings(&vocabulary, directory);
    vocabulary_free(&vocabulary);
    return status;
}
