"""Small tokenizers of each family's kind for compare_folders.py: trained here, with the family's special tokens and files."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import tricky_text

MARK = "\u2581"
BYTES = [f"<0x{b:02X}>" for b in range(256)]
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                "<|image_pad|>", "<|video_pad|>"]
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
TRAINING = ([t for t in tricky_text.BY_HAND if t.isprintable()]
            + ["user assistant system model How many pictures are there? What is in the picture? [INST] [/INST] <<SYS>> <</SYS>>"] * 3)


def pick(rng, *values):
    return values[rng.integers(len(values))]


def trained(rng, model, special, alphabet):
    size = int(pick(rng, 320, 400, 600))
    trainer = trainers.BpeTrainer(vocab_size=size + len(special), special_tokens=special, initial_alphabet=alphabet, show_progress=False,
                                  limit_alphabet=max(60, len(alphabet)))
    return model, trainer, TRAINING + tricky_text.strings(int(rng.integers(1000)), 60)


def byte_level(rng, pattern, special, named, normalizer=None, first=False, bos=None):
    model, trainer, text = trained(rng, models.BPE(), special if first else [], pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if bos:
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template(tokenizer, bos)])
    return tokenizer, named


def template(tokenizer, bos):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))])


def qwen(rng):
    named = {"tokenizer_class": pick(rng, "Qwen2Tokenizer", "Qwen2TokenizerFast"), "bos_token": None, "eos_token": "<|im_end|>",
             "pad_token": "<|endoftext|>", "unk_token": None, "add_prefix_space": False, "clean_up_tokenization_spaces": False, "errors": "replace",
             "additional_special_tokens": QWEN_SPECIAL[1:]}
    tokenizer, named = byte_level(rng, QWEN, QWEN_SPECIAL, named, normalizers.NFC())
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("<tool_call>", "</tool_call>")])
    return tokenizer, named


def llama3(rng):
    named = {"tokenizer_class": pick(rng, "PreTrainedTokenizerFast", "PreTrainedTokenizer"), "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
             "clean_up_tokenization_spaces": pick(rng, True, False)}
    return byte_level(rng, LLAMA3, LLAMA3_SPECIAL, named, bos="<|begin_of_text|>")


def smollm(rng):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    named = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
             "pad_token": "<|im_end|>", "add_prefix_space": False, "clean_up_tokenization_spaces": False}
    return byte_level(rng, r"\p{N}|(?:'s|'t| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", special, named, first=True)


def pieces(rng, special, normalizer, decoder, unknown="<unk>"):
    model, trainer, text = trained(rng, models.BPE(unk_token=unknown, fuse_unk=True, byte_fallback=True), special + BYTES, [])
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator([t.replace(" ", MARK) for t in text], trainer)
    # The trainer makes them special; in checkpoints the bytes are pieces of the model alone.
    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(whole))


def mistral(rng):
    back = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = pieces(rng, ["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]),
                       decoders.Sequence(back))
    tokenizer.post_processor = template(tokenizer, "<s>")
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True), AddedToken("<pad>", normalized=False, special=True)])
    named = {"tokenizer_class": pick(rng, "LlamaTokenizer", "LlamaTokenizerFast"), "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
             "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": False, "legacy": pick(rng, True, False),
             "clean_up_tokenization_spaces": False}
    if rng.random() < 0.5:
        named["extra_special_tokens"] = {"image_token": "<image>"}
    return tokenizer, named


def gemma(rng):
    back = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = pieces(rng, GEMMA_SPECIAL, normalizers.Replace(" ", MARK), decoders.Sequence(back))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = template(tokenizer, "<bos>")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("\n\n", "\n\n\n", MARK * 2)])
    tokenizer.add_special_tokens([AddedToken("<image_soft_token>", normalized=False, special=True)])
    named = {"tokenizer_class": pick(rng, "GemmaTokenizer", "GemmaTokenizerFast"), "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
             "pad_token": "<pad>", "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
             "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
             "extra_special_tokens": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}}
    return tokenizer, named


KINDS = {"qwen2_5_vl": [qwen], "qwen2": [qwen], "llava_next": [mistral], "mistral": [mistral], "gemma3": [gemma], "gemma3_text": [gemma],
         "llama": [mistral, llama3, smollm]}


def make(rng, family):
    kind = pick(rng, *KINDS[family])
    tokenizer, named = kind(rng)
    return tokenizer, named, kind.__name__


def write(rng, folder, tokenizer, named):
    """tokenizer.json and tokenizer_config.json as checkpoints of version 4 on the hub have them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    if rng.random() < 0.5:  # older files: merges as strings
        whole["model"]["merges"] = [" ".join(pair) if isinstance(pair, list) else pair for pair in whole["model"]["merges"]]
        (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False))
    added = {str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")} for t in whole["added_tokens"]}
    config = dict(named) | ({"added_tokens_decoder": added} if rng.random() < 0.8 else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))
