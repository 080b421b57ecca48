"""tests/goldens/text: token ids, offsets and decoded text of the quickstart's vocabulary, and rendered chat templates."""

from oracle_common import GOLDENS, ROOT, versions, write_json

from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tricky_text

QUICKSTART = ROOT / "configs/quickstart"
ORDINARY = 1280


def encoded(tokenizer, text):
    made = tokenizer.encode(text, add_special_tokens=False)
    return {"text": text, "ids": made.ids, "offsets": [list(pair) for pair in made.offsets],
            "decoded": tokenizer.decode(made.ids, skip_special_tokens=False)}


def quickstart():
    tokenizer = Tokenizer.from_file(str(QUICKSTART / "tokenizer.json"))
    through_class = AutoTokenizer.from_pretrained(QUICKSTART)
    texts = tricky_text.BY_HAND + tricky_text.strings("quickstart", 200)
    cases = [encoded(tokenizer, text) for text in texts]
    for case in cases:
        assert through_class.encode(case["text"], add_special_tokens=False) == case["ids"], case
    # Byte tokens (below 256) in random order make invalid UTF-8.
    nul = {tokenizer.encode("\0", add_special_tokens=False).ids[0]}
    lists = tricky_text.random_ids(("bytes",), 256, 60, nul) + tricky_text.random_ids(("all",), ORDINARY + 8, 60, nul)
    decode = [{"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
               "decoded_without_special": tokenizer.decode(ids, skip_special_tokens=True)} for ids in lists]
    return {"versions": versions("tokenizers", "transformers"),
            "about": "configs/quickstart. offsets count code points of the text as given (not of its NFC form); decoded keeps "
                     "special tokens. decode: any ids, invalid UTF-8 becomes U+FFFD by maximal subparts.",
            "encode": cases, "decode": decode}


def text(value):
    return {"type": "text", "text": value}


IMAGE = {"type": "image", "image": "a.png"}
CHATS = [
    [{"role": "user", "content": "How many boot are in the picture?"}],
    [{"role": "user", "content": [IMAGE, text("How many boot are in the picture?")]}],
    [{"role": "user", "content": [text("Compare "), IMAGE, text(" and "), {"type": "image"}, text(".")]}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": [IMAGE, text("Which item is in row 1, column 2?")]}],
    [{"role": "system", "content": [text("Think first."), text(" Then answer.")]}, {"role": "user", "content": "Hello"},
     {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": [text("And this? "), IMAGE]}],
    [{"role": "user", "content": [IMAGE, text("Which?")]},
     {"role": "assistant", "content": "<think>row 1: bag.</think><answer>bag</answer>"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "not first"}, {"role": "assistant", "content": [text("b")]}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": "  blanks kept \n"}],
    [{"role": "system", "content": "alone"}],
    [{"role": "tool", "content": "42"}],
    [{"role": "user", "content": "quotes \" ' \\ and {{ braces }} {% if %} <|im_end|>"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b.png"}}, text("url")]}],
    [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, text("video")]}],
    [{"role": "user", "content": [{"text": "no type"}, {"image": "c.png"}]}],
]


def chats():
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    cases = []
    for messages in CHATS:
        for generation in (True, False):
            for vision_id in (False, True):
                settings = {"add_generation_prompt": generation, "add_vision_id": vision_id}
                rendered = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
                cases.append({"messages": messages, **settings, "rendered": rendered,
                              "ids": tokenizer.encode(rendered, add_special_tokens=False)})
    return {"versions": versions("transformers", "jinja2"),
            "about": "the template of configs/quickstart (Qwen2.5-VL's rules) rendered by transformers; one <|image_pad|> per "
                     "image, not yet expanded; ids by configs/quickstart", "cases": cases}


def main():
    write_json(GOLDENS / "text/quickstart.json", quickstart(), None)
    write_json(GOLDENS / "text/chat_qwen2_5_vl.json", chats(), None)
    print("text")


if __name__ == "__main__":
    main()
