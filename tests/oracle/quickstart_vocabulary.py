#!/usr/bin/env python3
"""Trains the quickstart's vocabulary: 1,280 byte-level BPE tokens cut as Qwen2.5 cuts, then Qwen2.5's special tokens.

    quickstart_vocabulary.py [--output DIR]      (default: configs/quickstart)

Writes tokenizer.json and tokenizer_config.json. The same versions give the same bytes.
"""

import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import prose
import quickstart_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDINARY = 1280
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
ONE_TOKEN = ([" " + item for item in quickstart_text.ITEMS] + quickstart_text.ITEMS + list("0123456789")
             + ["row", " row", " column", " list", "list", ":", ",", ".", "?", "true", "false", " True", " False", " picture",
                " there", " altogether", " Which", " How", " many", " of", " them", "How", "Which", "user", "system", "assistant", "You", " are",
                " a", " helpful", " assistant",
                ".</", "><", "</", "think", "answer", ">", "<think"])


def empty_tokenizer():
    tokenizer = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def corpus():
    yield from quickstart_text.training_lines(seed=1, count=700)
    yield from prose.lines(seed=2, count=3600)
    # Words by themselves, as a bare answer or a role is: a word after a tag or a line break has no blank before it.
    for word in quickstart_text.ITEMS + ["true", "false", "row", "list", "How", "Which", "user", "system", "assistant"]:
        yield from [word] * 400
    yield from ["You are a helpful assistant."] * 200  # stands at the head of every prompt
    for word in [" True", " False", " How", " Which", " list"]:
        yield from ["." + word] * 200


def train():
    tokenizer = empty_tokenizer()
    trainer = trainers.BpeTrainer(vocab_size=ORDINARY, min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return tokenizer


def check(tokenizer):
    """Raises where the vocabulary lacks what the quickstart counts on."""
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    assert tokenizer.get_vocab_size() == ORDINARY + len(SPECIAL)
    assert [tokenizer.token_to_id(text) for text in SPECIAL] == list(range(ORDINARY, ORDINARY + len(SPECIAL)))
    split = [text for text in ONE_TOKEN if len(encode(text).ids) != 1]
    assert not split, f"not one token: {[(text, encode(text).tokens) for text in split]}"
    vocabulary = tokenizer.get_vocab()
    for tag in ["<think>", "</think>", "<answer>", "</answer>"]:
        assert tag not in vocabulary and len(encode(tag).ids) > 1
    sample = encode("There are 3 of them.</think><answer>boot</answer>").tokens
    assert sample[-9:] == [".</", "think", "><", "answer", ">", "boot", "</", "answer", ">"], sample
    for text in ["naïve café, 東京 🙂\n\n\tx", "  a  b ", "".join(map(chr, range(1, 256)))]:
        assert tokenizer.decode(encode(text).ids, skip_special_tokens=False) == tokenizer.normalizer.normalize_str(text)


def config():
    def entry(text):
        return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}

    template = (ROOT / "tests/oracle/qwen2_template.jinja").read_text()
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(ORDINARY + i): entry(text) for i, text in enumerate(SPECIAL)},
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "configs/quickstart")
    folder = parser.parse_args().output
    tokenizer = train()
    check(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config(), indent=2, ensure_ascii=False) + "\n")
    with open(folder / "tokenizer.json", "a", encoding="utf-8") as file:
        file.write("\n")
    lengths = [len(tokenizer.encode(text).ids) for text in quickstart_text.lines(9, 200) if text.startswith("<think>")]
    print(f"{ORDINARY} ordinary tokens; traces take {sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths)} at most")


if __name__ == "__main__":
    main()
