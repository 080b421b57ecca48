"""tests/goldens/tokenizers: small tokenizers of every kind, and what transformers' AutoTokenizer makes of strings and ids with
each. NAME/ is a folder as a user has it; cases.json has the texts, ids and decoded texts of all."""

import io
import json

from oracle_common import GOLDENS, ROOT, versions

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

import tricky_text
import vocabulary_text

PLACE = GOLDENS / "tokenizers"
MARK = "\u2581"
TRAINING = [t for t in tricky_text.BY_HAND if t.isprintable()] * 3 + ["the cat sat on the mat. the dog, 1 2 33 444!"] * 20
BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
SPACES = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]


def trained(model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, processor=None):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(TRAINING, trainer)
    if processor:
        tokenizer.post_processor = processor
    return tokenizer


def bpe(size=400, special=SPECIAL, alphabet=(), **more):
    return models.BPE(**more), trainers.BpeTrainer(vocab_size=size + len(special), special_tokens=list(special), initial_alphabet=list(alphabet),
                                                   show_progress=False, limit_alphabet=90)


def byte_bpe(pre, **more):
    model, trainer = bpe(special=["<s>", "</s>"], alphabet=pre_tokenizers.ByteLevel.alphabet(), **{k: v for k, v in more.items() if k == "ignore_merges"})
    return trained(model, trainer, pre_tokenizer=pre, decoder=decoders.ByteLevel(), normalizer=more.get("normalizer"))


def template():
    return processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)])


def unigram(byte_fallback=False, **more):
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=SPECIAL + (BYTES if byte_fallback else []), unk_token="<unk>",
                                      show_progress=False)
    tokenizer = trained(models.Unigram(), trainer, **more)
    if byte_fallback:
        whole = json.loads(tokenizer.to_str())
        whole["model"]["byte_fallback"] = True
        tokenizer = Tokenizer.from_str(json.dumps(whole))
    return tokenizer


def with_added(tokenizer):
    tokenizer.add_tokens([AddedToken("word", single_word=True, normalized=False), AddedToken("[L]", lstrip=True, normalized=False),
                          AddedToken("[R]", rstrip=True, normalized=False), AddedToken("[LR]", lstrip=True, rstrip=True, normalized=True),
                          AddedToken("Normal Form", normalized=True), AddedToken("the ca", normalized=True), AddedToken("[R] [L]")])
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|end|>x", special=True)])
    return tokenizer


def split(pattern, behaviour, invert=False):
    return pre_tokenizers.Split(pattern, behaviour, invert)


def whole():
    """Name: the tokenizer, and config.json's and tokenizer_config.json's content."""
    legacy = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    strip = decoders.Sequence([*SPACES, decoders.Strip(" ", 1, 0)])
    spm = lambda **more: bpe(special=SPECIAL + BYTES, unk_token="<unk>", fuse_unk=True, byte_fallback=True, **more)
    meta = lambda scheme, cut: pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=cut)
    sequence = pre_tokenizers.Sequence
    level = lambda space, regex: pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=regex)
    found = {
        "spm_legacy": (with_added(trained(*spm(), normalizer=legacy, decoder=strip, processor=template())), {"model_type": "mistral"}, {"bos_token": "<s>"}),
        "spm_first": (trained(*spm(), pre_tokenizer=meta("first", False), decoder=strip), {}, {}),
        "spm_llama_class": (trained(*spm(), normalizer=legacy, decoder=strip, processor=template()), {"model_type": "llama"},
                            {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
        "spm_gemma_class": (trained(*spm(), normalizer=normalizers.Replace(" ", MARK)), {"model_type": "gemma3"},
                            {"tokenizer_class": "GemmaTokenizerFast", "bos_token": "<s>", "extra_special_tokens": {"image_token": "<image>"},
                             "added_tokens_decoder": {"1": {"content": "<s>", "special": True}, "700": {"content": "<late>", "lstrip": True}}}),
        "unk_fused": (trained(*bpe(unk_token="<unk>", fuse_unk=True), pre_tokenizer=pre_tokenizers.Whitespace()), {}, {}),
        "unk_single": (trained(*bpe(unk_token="<unk>", fuse_unk=False), pre_tokenizer=sequence([pre_tokenizers.WhitespaceSplit(),
                       pre_tokenizers.Punctuation("isolated")])), {}, {}),
        "no_unk_prefix_suffix": (trained(*bpe(continuing_subword_prefix="##", end_of_word_suffix="</w>"), pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
                                         normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])), {}, {}),
        "byte_prefix": (with_added(byte_bpe(level(True, True))), {}, {"eos_token": "</s>"}),
        "byte_qwen_class": (byte_bpe(level(False, True)), {"model_type": "qwen2_5_vl"}, {"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|end|>"}),
        "byte_gpt2_class": (byte_bpe(sequence([pre_tokenizers.Digits(True), level(False, True)])), {"model_type": "llama"}, {"tokenizer_class": "GPT2Tokenizer"}),
        "byte_digits": (byte_bpe(sequence([pre_tokenizers.Digits(False), level(False, False)]), ignore_merges=True), {}, {}),
        "byte_llama3": (byte_bpe(sequence([split(Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
                                                 "isolated"), level(False, False)]), ignore_merges=True), {"model_type": "llama"},
                        {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>"}),
        "normal_kc": (byte_bpe(level(False, True), normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(True, False),
                      normalizers.Replace(Regex(r"\s{2,}"), " ")])), {}, {}),
        "normal_kd": (byte_bpe(level(False, True), normalizer=normalizers.Sequence([normalizers.Nmt(), normalizers.NFKD(), normalizers.Strip(False, True)])), {}, {}),
        "unigram_always": (unigram(pre_tokenizer=meta("always", True), decoder=decoders.Metaspace(prepend_scheme="always")), {}, {}),
        "unigram_never": (with_added(unigram(pre_tokenizer=meta("never", True), decoder=decoders.Metaspace(prepend_scheme="never"))), {}, {}),
        "unigram_bytes": (unigram(True, normalizer=normalizers.Replace(" ", MARK), decoder=decoders.Sequence(SPACES), processor=template()), {}, {}),
    }
    words = r"\b\w+\b|\W"
    for behaviour in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            cut = sequence([split(Regex(words), behaviour, invert), split("a", behaviour), level(False, False)])
            found[f"split_{behaviour}_{'inverted' if invert else 'plain'}"] = (byte_bpe(cut), {}, {})
        cut = sequence([pre_tokenizers.Punctuation(behaviour), split(Regex(r"x*|\d"), behaviour), level(False, False)])
        found[f"punctuation_{behaviour}"] = (byte_bpe(cut), {}, {})
    return found


def sentencepiece_model(kind, fallback, rule):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TRAINING), model_writer=out, model_type=kind, vocab_size=520, byte_fallback=fallback,
                                             character_coverage=0.98, hard_vocab_limit=False, normalization_rule_name=rule, num_threads=1,
                                             user_defined_symbols=["<think>", "</think>"], control_symbols=["<ctl>"], minloglevel=2)
    return out.getvalue()


def models_only():
    llama = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "model_bpe": (sentencepiece_model("bpe", True, "identity"), {"model_type": "mistral"}, llama),
        "model_bpe_class": (sentencepiece_model("bpe", True, "identity"), {"model_type": "llama"}, llama),
        "model_gemma_class": (sentencepiece_model("bpe", True, "identity"), {"model_type": "gemma3"}, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True,
                              "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "mask_token": None}),
        "model_unigram": (sentencepiece_model("unigram", False, "nmt_nfkc"), {"model_type": "mistral"}, {**llama, "add_eos_token": True}),
        "model_unigram_bytes": (sentencepiece_model("unigram", True, "nmt_nfkc_cf"), {"model_type": "mistral"}, llama),
    }


def besides():
    """The files that add tokens, each against the others: (tokenizer, config.json, tokenizer_config.json, other files)."""
    boi = {"content": "<boi>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False, "__type": "AddedToken"}
    end = {"content": "<|end|>", "lstrip": False, "normalized": True, "rstrip": True, "single_word": False}
    pieces = bpe(special=SPECIAL + BYTES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    plain = trained(*pieces, normalizer=normalizers.Replace(" ", MARK), decoder=decoders.Sequence(SPACES), processor=template())
    clean = unigram(pre_tokenizer=pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=True), decoder=decoders.Metaspace(prepend_scheme="always"))
    cut = byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    return {
        "added_json": (plain, {"model_type": "llama"}, {"bos_token": "<s>", "boi_token": boi, "extra_special_tokens": []},
                       {"added_tokens.json": {"<image>": 32000, "new two": 32001, "<y>": 700}, "special_tokens_map.json":
                        {"eos_token": end, "pad_token": "<image>", "additional_special_tokens": ["<think>", "<y>"]}}),
        "added_json_late": (plain, {"model_type": "gemma3_text"}, {"additional_special_tokens": ["<y>"], "image_token": "<image>", "pad_token": None},
                            {"added_tokens.json": {"<y>": 900, "new two": 3, "the": 901}}),
        "model_named": (sentencepiece_model("bpe", True, "identity"), {"model_type": "mistral"}, {"add_bos_token": True, "add_eos_token": True, "boi_token": boi},
                        {"added_tokens.json": {"<image>": 600, "<y>": 5}, "special_tokens_map.json": {"bos_token": "<y>", "eos_token": end}}),
        "model_gemma_names": (sentencepiece_model("bpe", True, "identity"), {"model_type": "gemma3"}, {"add_eos_token": True, "image_token": "<image>",
                              "extra_special_tokens": {"y_token": "<y>"}}, {}),
        "cleaned": (clean, {}, {"clean_up_tokenization_spaces": True}, {}),
        "special_split": (cut, {}, {"split_special_tokens": True, "eos_token": "</s>", "pad_token": "<y>"}, {}),
    }


EXTRA = ["<y> <image>  <boi> new two the<pad> <|end|> x", "Hello , don 't . I 'm ok , we do n't ? it 's", "<s>a</s> b", "a<s>", " <s> ", "word words word", "sword word.", "a [L] b", "a [R]  b", "a  [LR]  b", "[R]  [L]", "[R] [L]", "x[R] [LR] y", "Normal Form",
         "normal form", "the cat", "<|end|>x<|end|>", "a <|end|> b", "<image> <late>", "<think>a</think>", "a  <ctl> b", f"{MARK}a{MARK}{MARK}b", "<0x41>b", "\x01\x02",
         "\u4f60\u597d\U0001f642\u4f60", "\u4f60\u4f60 a \u4f60", "x" * 60, "a" * 300, " " * 50]


def cases(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = []
    for text in texts:
        ids = tokenizer.encode(text)
        made.append([ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)])
    lists = [vocabulary_text.some_ids(len(tokenizer), number) for number in range(60)]
    return {"class": type(tokenizer).__name__, "encode": made,
            "decode": [[ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)] for ids in lists]}


def main():
    groups = vocabulary_text.alphabets()
    texts = EXTRA + [t for t in tricky_text.BY_HAND if len(t) < 60][::4] + [vocabulary_text.string(groups, 1 << 41 | number) for number in range(40)]
    result = {"versions": versions("transformers", "tokenizers", "sentencepiece"), "texts": texts, "tokenizers": {}}
    for name, (made, config, settings, *others) in {**whole(), **models_only(), **besides()}.items():
        folder = PLACE / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        for file, content in (others[0] if others else {}).items():
            (folder / file).write_text(json.dumps(content))
        # Trainers do not repeat to the bit, so a tokenizer that is there stays.
        if (folder / "tokenizer.model").exists() or (folder / "tokenizer.json").exists():
            pass
        elif isinstance(made, bytes):
            (folder / "tokenizer.model").write_bytes(made)
        else:
            (folder / "tokenizer.json").write_text(json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(",", ":")))
        result["tokenizers"][name] = cases(folder, texts)
    (PLACE / "cases.json").write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n")
    print("tokenizers")


if __name__ == "__main__":
    main()
