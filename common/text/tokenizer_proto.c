// tokenizer.model of SentencePiece, made into the tokenizer.json that transformers makes of it.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"
#include "sentencepiece.pb-c.h"

#include <stdlib.h>
#include <string.h>

typedef Poise__Sentencepiece__Model proto_model_t;
typedef Poise__Sentencepiece__Model__Piece proto_piece_t;
typedef Poise__Sentencepiece__Trainer proto_trainer_t;

enum {
    PIECE_LIMIT = 1024, // bytes of one piece: SentencePiece's own are a few dozen
    TYPE_CONTROL = 3,
    TYPE_USER = 4,
    MODEL_TYPE_UNIGRAM = 1,
};

static json_t *json_bytes(ProtobufCBinaryData text) {
    return json_stringn((const char *)text.data, text.len);
}

static status_t check_pieces(const proto_model_t *proto) {
    if (!proto->n_pieces || proto->n_pieces > INT32_MAX / 4)
        FAIL(STATUS_INVALID, "the model has no pieces, or too many");
    for (size_t i = 0; i < proto->n_pieces; i++) {
        ProtobufCBinaryData text = proto->pieces[i]->piece;
        if (text.len > PIECE_LIMIT)
            FAIL(STATUS_INVALID, "piece %zu of the model has %zu bytes; at most %d are supported", i, text.len,
                 PIECE_LIMIT);
        if (utf8_valid((const char *)text.data, text.len) != text.len ||
            memchr(text.data ? text.data : (uint8_t *)"", 0, text.len))
            FAIL(STATUS_INVALID, "piece %zu of the model is no UTF-8 text", i);
    }
    return STATUS_OK;
}

// ---- BPE ----

static status_t make_vocabulary(const proto_model_t *proto, json_t *vocabulary) {
    for (size_t i = 0; i < proto->n_pieces; i++) {
        ProtobufCBinaryData text = proto->pieces[i]->piece;
        if (json_object_setn_new_nocheck(vocabulary, text.len ? (const char *)text.data : "", text.len,
                                         json_integer((json_int_t)i)))
            FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    }
    return STATUS_OK;
}

// Every way to write a piece as two others is a merge, in the order of ids, then of the left side's length.
static status_t make_merges(const proto_model_t *proto, const json_t *vocabulary, json_t *merges) {
    for (size_t i = 0; i < proto->n_pieces; i++) {
        const char *text = (const char *)proto->pieces[i]->piece.data;
        size_t length = proto->pieces[i]->piece.len;
        // Of pieces with the same text the last one's id counts, at the place of the first.
        for (size_t at = 1; at < length; at++) {
            if (((uint8_t)text[at] & 0xc0) == 0x80) continue;
            if (!json_object_getn(vocabulary, text, at) || !json_object_getn(vocabulary, text + at, length - at))
                continue;
            json_t *pair = json_array();
            if (!pair || json_array_append_new(merges, pair) || json_array_append_new(pair, json_stringn(text, at)) ||
                json_array_append_new(pair, json_stringn(text + at, length - at)))
                FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
        }
    }
    return STATUS_OK;
}

static status_t rename_piece(const proto_model_t *proto, unsigned long id, const char *text, json_t *vocabulary) {
    if (id >= proto->n_pieces || !*text || json_object_get(vocabulary, text)) return STATUS_OK;
    ProtobufCBinaryData piece = proto->pieces[id]->piece;
    const json_t *held = json_object_getn(vocabulary, piece.len ? (const char *)piece.data : "", piece.len);
    if (!held || json_integer_value(held) != (json_int_t)id) return STATUS_OK;
    if (json_object_deln(vocabulary, (const char *)piece.data, piece.len) ||
        json_object_set_new(vocabulary, text, json_integer((json_int_t)id)))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

// Pieces that stand in for a token which tokenizer_config.json or added_tokens.json names by the same id take its name.
static status_t rename_pieces(const proto_model_t *proto, const tokenizer_config_t *config, json_t *vocabulary) {
    json_t *decoder = json_object_get(config->config, "added_tokens_decoder"), *token;
    const char *key;
    json_object_foreach(decoder, key, token) {
        char *end;
        unsigned long id = strtoul(key, &end, 10);
        if (end != key) TRY(rename_piece(proto, id, json_text(token, "content"), vocabulary));
    }
    if (decoder) return STATUS_OK;
    json_object_foreach(config->added, key, token) {
        double id = json_number_value(token);
        if (id >= 0 && id <= INT32_MAX) TRY(rename_piece(proto, (unsigned long)id, key, vocabulary));
    }
    return STATUS_OK;
}

static status_t make_bpe(const proto_model_t *proto, bool plain, const tokenizer_config_t *config, json_t *model) {
    json_t *vocabulary = json_object(), *merges = json_array();
    const proto_trainer_t *trainer = proto->trainer;
    if (!vocabulary || !merges || json_object_set_new(model, "vocab", vocabulary) ||
        json_object_set_new(model, "merges", merges))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    TRY(make_vocabulary(proto, vocabulary));
    TRY(make_merges(proto, vocabulary, merges));
    if (plain) TRY(rename_pieces(proto, config, vocabulary));
    json_t *unknown = trainer && trainer->has_unk_piece ? json_bytes(trainer->unk_piece) : json_string("<unk>");
    int failed = json_object_set_new(model, "type", json_string("BPE")) |
                 json_object_set_new(model, "fuse_unk", json_true()) | json_object_set_new(model, "unk_token", unknown);
    if (failed) FAIL(STATUS_INVALID, "the model's unknown piece is no UTF-8 text");
    return STATUS_OK;
}

// ---- unigram ----

static status_t make_unigram(const proto_model_t *proto, json_t *model) {
    json_t *vocabulary = json_array();
    if (!vocabulary || json_object_set_new(model, "vocab", vocabulary))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    for (size_t i = 0; i < proto->n_pieces; i++) {
        json_t *piece = json_bytes(proto->pieces[i]->piece), *score = json_real((double)proto->pieces[i]->score);
        const char *wrong = !piece ? "is no UTF-8 text" : !score ? "has no finite score" : NULL;
        json_t *pair = wrong ? NULL : json_pack("[O, O]", piece, score);
        json_decref(piece);
        json_decref(score);
        if (wrong) FAIL(STATUS_INVALID, "piece %zu of the model %s", i, wrong);
        if (!pair || json_array_append_new(vocabulary, pair)) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    }
    int failed = json_object_set_new(model, "type", json_string("Unigram")) |
                 json_object_set_new(model, "unk_id", json_integer(proto->trainer ? proto->trainer->unk_id : 0));
    if (failed) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

// ---- the rest ----

static status_t encode_base64(ProtobufCBinaryData bytes, buffer_t *out) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < bytes.len; i += 3) {
        size_t left = bytes.len - i;
        uint32_t bits = (uint32_t)bytes.data[i] << 16 | (left > 1 ? (uint32_t)bytes.data[i + 1] << 8 : 0) |
                        (left > 2 ? bytes.data[i + 2] : 0);
        char four[4] = {digit[bits >> 18], digit[bits >> 12 & 63], left > 1 ? digit[bits >> 6 & 63] : '=',
                        left > 2 ? digit[bits & 63] : '='};
        TRY(buffer_append(out, four, 4));
    }
    return STATUS_OK;
}

static status_t make_normalizer(const proto_model_t *proto, json_t *root) {
    json_t *steps = json_array();
    json_t *whole = json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
    if (!whole || json_object_set_new(root, "normalizer", whole)) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    if (proto->normalizer && proto->normalizer->has_precompiled_charsmap &&
        proto->normalizer->precompiled_charsmap.len) {
        buffer_t text = {0};
        status_t status = encode_base64(proto->normalizer->precompiled_charsmap, &text);
        if (!status && json_array_append_new(
                           steps, json_pack("{s:s, s:s}", "type", "Precompiled", "precompiled_charsmap", text.data)))
            status = STATUS_NEW(STATUS_MEMORY, "out of memory for a tokenizer");
        free(text.data);
        TRY(status);
    }
    if (json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", " ",
                                               "content", "\xe2\x96\x81")))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

static status_t make_decoder(bool byte_fallback, json_t *root) {
    json_t *steps =
        json_pack("[{s:s, s:{s:s}, s:s}]", "type", "Replace", "pattern", "String", "\xe2\x96\x81", "content", " ");
    json_t *whole = json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
    if (!whole || json_object_set_new(root, "decoder", whole)) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    if (byte_fallback && (json_array_append_new(steps, json_pack("{s:s}", "type", "ByteFallback")) ||
                          json_array_append_new(steps, json_pack("{s:s}", "type", "Fuse"))))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    return STATUS_OK;
}

// A named token that the model has goes into the root, for tokenizer_config_apply to fall back on.
static status_t make_named(json_t *root, const char *key, int32_t id, bool given, ProtobufCBinaryData text,
                           const char *standard) {
    if (id < 0) return STATUS_OK;
    if (json_object_set_new(root, key, given && text.len ? json_bytes(text) : json_string(standard)))
        FAIL(STATUS_INVALID, "a special token of the model is no UTF-8 text");
    return STATUS_OK;
}

static status_t make_special(const proto_model_t *proto, bool plain, json_t *root) {
    static const proto_trainer_t standard = POISE__SENTENCEPIECE__TRAINER__INIT;
    const proto_trainer_t *t = proto->trainer ? proto->trainer : &standard;
    json_t *list = json_array();
    if (!list || json_object_set_new(root, "extra_special_tokens", list))
        FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    for (size_t i = 0; i < proto->n_pieces; i++) {
        const proto_piece_t *piece = proto->pieces[i];
        if ((piece->type != TYPE_CONTROL && piece->type != TYPE_USER) || !piece->piece.len) continue;
        json_t *token = json_pack("{s:o, s:b, s:b}", "content", json_bytes(piece->piece), "normalized", 0, "special",
                                  piece->type == TYPE_CONTROL);
        if (!token || json_array_append_new(list, token)) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    }
    if (!plain) return STATUS_OK;
    TRY(make_named(root, "bos_token", t->bos_id, t->has_bos_piece, t->bos_piece, "<s>"));
    TRY(make_named(root, "eos_token", t->eos_id, t->has_eos_piece, t->eos_piece, "</s>"));
    return make_named(root, "unk_token", t->unk_id, t->has_unk_piece, t->unk_piece, "<unk>");
}

static status_t make_all(const proto_model_t *proto, bool bpe, const tokenizer_config_t *config, json_t *root) {
    const proto_trainer_t *trainer = proto->trainer;
    bool fallback = trainer && trainer->byte_fallback;
    int type = trainer ? trainer->model_type : MODEL_TYPE_UNIGRAM;
    json_t *model = json_pack("{s:b}", "byte_fallback", fallback);
    if (!model || json_object_set_new(root, "model", model)) FAIL(STATUS_MEMORY, "out of memory for a tokenizer");
    TRY(check_pieces(proto));
    TRY(bpe || type != MODEL_TYPE_UNIGRAM ? make_bpe(proto, !bpe, config, model) : make_unigram(proto, model));
    TRY(make_normalizer(proto, root));
    TRY(make_decoder(fallback, root));
    return make_special(proto, !bpe, root);
}

status_t tokenizer_read_proto(const char *bytes, size_t length, bool bpe, const tokenizer_config_t *config,
                              json_t **out) {
    *out = NULL;
    proto_model_t *proto = poise__sentencepiece__model__unpack(NULL, length, (const uint8_t *)bytes);
    if (!proto) FAIL(STATUS_INVALID, "the file is no SentencePiece model");
    json_t *root = json_object();
    status_t status =
        root ? make_all(proto, bpe, config, root) : STATUS_NEW(STATUS_MEMORY, "out of memory for a tokenizer");
    poise__sentencepiece__model__free_unpacked(proto, NULL);
    if (status)
        json_decref(root);
    else
        *out = root;
    return status;
}
