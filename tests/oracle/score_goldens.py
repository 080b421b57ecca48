"""tests/goldens/score: from messages and picture files to log-probs and greedy text, through transformers' own processor."""

import json
import shutil

from oracle_common import GOLDENS, ROOT, versions, write_json  # first: it sets what torch reads at its start

import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from qwen_cases import PREPROCESSOR, checkpoint_name, hub_config, model_of

FOLDER = GOLDENS / "score"
QUICKSTART = ROOT / "configs/quickstart"
CASE = dict(
    hidden=64, mlp=80, layers=2, heads=4, kv_heads=2, theta=1e4, eps=1e-6, sections=[2, 3, 3], tied=True, tokens_per_second=2,
    vision=dict(depth=3, hidden=24, mlp=32, heads=2, window=56, full=[2]),
    ids={"vocab_size": 1288, "bos_token_id": 1280, "eos_token_id": 1282, "vision_start_token_id": 1283, "vision_end_token_id": 1284,
         "image_token_id": 1286, "video_token_id": 1287})
PICTURES = ["rgb_60x44.png", "rotated_6.jpg", "rgba.png", "quality75.jpg", "palette.png", "progressive.jpg", "lossy.webp"]
NEW_TOKENS = 8


def text(value):
    return {"type": "text", "text": value}


def image(name):
    return {"type": "image", "image": f"pictures/{name}"}


REQUESTS = [
    ([{"role": "user", "content": "How many boot are in the picture?"}], "<think>There is none.</think><answer>0</answer><|im_end|>"),
    ([{"role": "user", "content": [image("rgb_60x44.png"), text("How many bag are in the picture?")]}],
     "<think>row 1: bag 1, boot, bag 2. So there are 2 of them.</think><answer>2</answer><|im_end|>"),
    ([{"role": "user", "content": [text("Compare "), image("rotated_6.jpg"), text(" with "), image("quality75.jpg"), text(".")]}],
     "They differ: na\u00efve caf\u00e9 \U0001f642"),
    ([{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": [image("rgba.png"), text("Which item?")]},
      {"role": "assistant", "content": "boot"}, {"role": "user", "content": [image("palette.png"), text("And here?")]}], "dress"),
    ([{"role": "user", "content": [image("progressive.jpg"), image("lossy.webp"), image("rgb_60x44.png")]}], "row 1: boot, bag.\n"),
    ([{"role": "user", "content": "x"}], "y"),
]


def processor():
    limits = {"min_pixels": PREPROCESSOR["min_pixels"], "max_pixels": PREPROCESSOR["max_pixels"]}
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    return Qwen2_5_VLProcessor(image_processor=Qwen2VLImageProcessorPil(**limits), tokenizer=tokenizer,
                               video_processor=Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template)


def pictures_of(messages):
    names = [part["image"] for m in messages if not isinstance(m["content"], str) for part in m["content"] if part["type"] == "image"]
    return [ImageOps.exif_transpose(Image.open(FOLDER / name)).convert("RGB") for name in names]


def forward(model, prepared, ids):
    """Logits of every position, for the prompt's images and any continuation of its tokens."""
    batch = ids[None]
    inputs = {"input_ids": batch, "mm_token_type_ids": (batch == CASE["ids"]["image_token_id"]).int()}
    inputs |= {key: prepared[key] for key in ("pixel_values", "image_grid_thw") if key in prepared}
    with torch.no_grad():
        return torch.log_softmax(model(**inputs, use_cache=False).logits[0].float(), -1)


def answer(model, made, number, messages, completion):
    prompt = made.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prepared = made(text=[prompt], images=pictures_of(messages) or None, return_tensors="pt")
    prompt_ids = prepared["input_ids"][0]
    tokens = torch.tensor(made.tokenizer.encode(completion, add_special_tokens=False))
    logp = forward(model, prepared, torch.cat([prompt_ids, tokens]))
    at = torch.arange(len(prompt_ids) - 1, len(prompt_ids) + len(tokens) - 1)
    row = {"id": str(number), "prompt_tokens": len(prompt_ids), "prompt_ids": prompt_ids.tolist(), "tokens": tokens.tolist(),
           "logprobs": logp[at, tokens].tolist(), "greedy_tokens": [], "greedy_logprobs": []}
    ids = prompt_ids
    while len(row["greedy_tokens"]) < NEW_TOKENS and row["greedy_tokens"][-1:] != [CASE["ids"]["eos_token_id"]]:
        # Media tokens are banned from sampling: an answer holds no pictures.
        last = forward(model, prepared, ids)[-1]
        allowed = last.clone()
        allowed[1283:1288] = -float("inf")
        best = int(allowed.argmax())
        row["greedy_tokens"].append(best)
        row["greedy_logprobs"].append(last[best].item())
        ids = torch.cat([ids, torch.tensor([best])])
    row["greedy_text"] = made.tokenizer.decode(row["greedy_tokens"], skip_special_tokens=True)
    return row


def write_model(model):
    folder = FOLDER / "model"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({checkpoint_name(name, "hub"): p.detach().clone() for name, p in model.named_parameters()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    write_json(folder / "config.json", hub_config(CASE), 2)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR, 2)
    write_json(folder / "generation_config.json", {"bos_token_id": 1280, "eos_token_id": [1282, 1280], "pad_token_id": 1280}, 2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(QUICKSTART / name, folder / name)


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    (FOLDER / "pictures").mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        shutil.copyfile(GOLDENS / "image/files" / name, FOLDER / "pictures" / name)
    model, made = model_of("score", CASE), processor()
    write_model(model)
    rows = [answer(model, made, number, *request) for number, request in enumerate(REQUESTS)]
    requests = [{"id": str(n), "messages": messages, "completion": completion} for n, (messages, completion) in enumerate(REQUESTS)]
    for name, lines in (("input.jsonl", requests), ("expected.jsonl", rows)):
        (FOLDER / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(FOLDER / "versions.json", versions("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy"))
    print("score")


if __name__ == "__main__":
    main()
