"""tests/goldens/gguf: quantised blocks with gguf-py's values, and small GGUF models with what transformers makes of them."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil

from oracle_common import GOLDENS, random, versions, write_json  # first: it sets what torch reads at its start

import numpy as np
import torch
from gguf import GGMLQuantizationType as T, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

FOLDER = GOLDENS / "gguf"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Where a block's half-precision factors lie: random bytes there would often be no numbers.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(name, rows, blocks):
    """Every byte of every field at random; factors are finite, some of them subnormal."""
    rng, (_, size) = random("gguf", name), GGML_QUANT_SIZES[T[name]]
    if name in ("F32", "BF16"):
        values = (rng.standard_normal((rows, blocks)) * 3).astype(np.float32)
        return values if name == "F32" else quantize(values, T.BF16)
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES[name]:
        halves = (rng.standard_normal((rows, blocks)) * 0.1).astype(np.float16)
        halves[:, ::5] = np.float16(3e-6)
        raw[:, :, at:at + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def write_types():
    writer, golden = GGUFWriter(FOLDER / "types.gguf", "llama"), {}
    for name in TYPES:
        raw = random_blocks(name, 3, 6 if GGML_QUANT_SIZES[T[name]][0] < 256 else 2)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=T[name])
        golden[f"{name}.weight"] = np.ascontiguousarray(dequantize(raw, T[name]))
        assert np.isfinite(golden[f"{name}.weight"]).all(), name
    finish(writer)
    save_file(golden, FOLDER / "types.safetensors")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- vocabularies ----

def byte_vocabulary():
    """Every byte, merges over a few words, special tokens in and out of the alphabet, one spelled with spaces."""
    alphabet = list(bytes_to_unicode().values())
    merges, tokens = [], list(alphabet)
    for word in ("the", "\u0120the", "\u0120num", "num", "ber", "number", "\u0120number", "ing", "er", "\u0120\u0120", "'s", "12"):
        parts = list(word)
        while len(parts) > 1:
            parts = [parts[0] + parts[1]] + parts[2:]
            left = parts[0][:-1]
            if (pair := f"{left} {parts[0][-1]}") not in merges:
                merges.append(pair)
            if parts[0] not in tokens:
                tokens.append(parts[0])
    types = [1] * len(tokens)
    for text, kind in (("<|im_start|>", 3), ("<|im_end|>", 3), ("<|endoftext|>", 3), ("<think>", 4), ("<|a b|>", 3), ("    ", 4), ("caf\u00e9", 1)):
        tokens.append(text)
        types.append(kind)
    return {"model": "gpt2", "tokens": tokens, "types": types, "merges": merges}


def piece_vocabulary(gemma):
    """Bytes and pieces with scores, some of them equal, and for Gemma runs of spaces that are stored as spaces."""
    rng = random("gguf", "pieces", gemma)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<start_of_turn>"] if gemma else ["<unk>", "<s>", "</s>", "<tool>"]
    kinds = [3, 3, 3, 3, 1, 4, 3] if gemma else [2, 3, 3, 4]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)]
    types = kinds + [6] * 256
    words = "\u2581the \u2581then \u2581number \u2581of num ber umbe the then hen ing \u2581in in a\u0308 \u00e9t\u00e9 \U0001f642 \n\n ... 12 ab abab".split(" ")
    pieces = ["\n", "\n\n"] + (["  ", "   ", "      "] if gemma else ["\u2581\u2581", "\u2581\u2581\u2581"])
    for word in words:
        pieces += [word[:n] for n in range(2, len(word) + 1)] + [word[-2:]]
    pieces += ["\u2581"] + [chr(c) for c in range(33, 127)] + ["\u00e9", "\u0308", "\U0001f642"]
    for piece in pieces:
        if piece and piece not in tokens:
            tokens.append(piece)
            types.append(4 if gemma and not piece.strip() else 1)
    scores = [0.0] * len(special) + [0.0] * 256 + [-float(rng.integers(1, 40)) for _ in tokens[len(special) + 256:]]
    return {"model": "llama", "tokens": tokens, "types": types, "scores": scores}


# ---- models ----

CASES = {
    # Grouped heads, a head size that is not width / heads, an untied head, a Llama-3 vocabulary.
    "llama": dict(arch="llama", hidden=64, mlp=96, layers=2, heads=4, kv=2, head_dim=24, tied=False, theta=5e5, eps=1e-5, pre="llama-bpe",
                  types={"token_embd": "Q8_0", "attn_k": "F16", "ffn_down": "Q5_1", "ffn_gate": "Q4_1", "output": "Q4_0"}, default="Q4_0", vocabulary=byte_vocabulary),
    # llama.cpp's llama with SentencePiece, tied, bf16 and f16 weights.
    "llama_pieces": dict(arch="llama", hidden=32, mlp=64, layers=1, heads=2, kv=1, head_dim=16, tied=True, theta=1e4, eps=1e-6, pre="default",
                         types={"attn_q": "BF16"}, default="F16", vocabulary=lambda: piece_vocabulary(False)),
    "qwen2": dict(arch="qwen2", hidden=64, mlp=96, layers=2, heads=4, kv=2, head_dim=16, tied=True, theta=1e6, eps=1e-6, pre="qwen2", bias=True,
                  types={"ffn_up": "Q5_0"}, default="Q8_0", vocabulary=byte_vocabulary),
    "gemma3": dict(arch="gemma3", hidden=256, mlp=32, layers=6, heads=2, kv=1, head_dim=32, tied=True, theta=1e6, eps=1e-6, pre="default", window=4,
                   types={"ffn_up": "Q5_K", "ffn_gate": "Q6_K", "attn_output": "Q8_0"}, default="Q4_K", vocabulary=lambda: piece_vocabulary(True)),
}


def add_tensor(writer, case, name, shape, kind=None):
    rng = random("gguf", case["arch"], name)
    leaf = name.split(".")[-2]
    kind = kind or case["types"].get(leaf, case["default"])
    values = (rng.standard_normal(shape) / shape[-1] ** 0.5 * 2).astype(np.float32)
    if "norm" in name:
        values = (1 + 0.3 * rng.standard_normal(shape)).astype(np.float32)
    if kind in ("F32", "BF16"):
        raw = values if kind == "F32" else quantize(values, T.BF16)
    elif kind.endswith("_K"):  # gguf-py has no quantiser of these: any bytes, with small factors
        size = GGML_QUANT_SIZES[T[kind]][1]
        raw = rng.integers(0, 256, (shape[0], shape[1] // 256, size), dtype=np.uint8)
        for at in HALVES[kind]:
            raw[:, :, at:at + 2] = (rng.standard_normal(raw.shape[:2]) * 1.6e-4).astype(np.float16)[..., None].view(np.uint8)
        raw = raw.reshape(shape[0], -1)
    else:
        raw = quantize(values, T[kind])
    writer.add_tensor(name, raw, raw_dtype=T[kind])


def write_tensors(writer, case, size):
    hidden, mlp, q, kv = case["hidden"], case["mlp"], case["heads"] * case["head_dim"], case["kv"] * case["head_dim"]
    add_tensor(writer, case, "token_embd.weight", (size, hidden))
    add_tensor(writer, case, "output_norm.weight", (hidden,), "F32")
    if not case["tied"]:
        add_tensor(writer, case, "output.weight", (size, hidden))
    for i in range(case["layers"]):
        norms = ["attn_norm", "ffn_norm"] + (["post_attention_norm", "post_ffw_norm"] if case["arch"] == "gemma3" else [])
        for norm in norms:
            add_tensor(writer, case, f"blk.{i}.{norm}.weight", (hidden,), "F32")
        if case["arch"] == "gemma3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                add_tensor(writer, case, f"blk.{i}.{norm}.weight", (case["head_dim"],), "F32")
        for leaf, shape in (("attn_q", (q, hidden)), ("attn_k", (kv, hidden)), ("attn_v", (kv, hidden)), ("attn_output", (hidden, q)),
                            ("ffn_gate", (mlp, hidden)), ("ffn_up", (mlp, hidden)), ("ffn_down", (hidden, mlp))):
            # Rows that are no multiple of 256 hold no K blocks.
            add_tensor(writer, case, f"blk.{i}.{leaf}.weight", shape, None if shape[1] % 256 == 0 or case["default"] != "Q4_K" else "Q8_0")
            if case.get("bias") and leaf in ("attn_q", "attn_k", "attn_v"):
                add_tensor(writer, case, f"blk.{i}.{leaf}.bias", shape[:1], "F32")


def write_case(name):
    case, arch = CASES[name], CASES[name]["arch"]
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = case["vocabulary"]()
    writer = GGUFWriter(folder / "model.gguf", arch)
    writer.add_block_count(case["layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(case["hidden"])
    writer.add_feed_forward_length(case["mlp"])
    writer.add_head_count(case["heads"])
    writer.add_head_count_kv(case["kv"])
    writer.add_layer_norm_rms_eps(case["eps"])
    writer.add_rope_freq_base(case["theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(case["head_dim"])
    if arch == "gemma3":
        writer.add_key_length(case["head_dim"])
        writer.add_value_length(case["head_dim"])
        writer.add_sliding_window(case["window"])
    tokens = vocabulary["tokens"]
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(case["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types(vocabulary["types"])
    if "merges" in vocabulary:
        writer.add_token_merges(vocabulary["merges"])
        ids = {"bos": tokens.index("<|im_start|>"), "eos": tokens.index("<|im_end|>"), "pad": tokens.index("<|endoftext|>")}
    else:
        writer.add_token_scores(vocabulary["scores"])
        gemma = arch == "gemma3"
        ids = {"bos": 2 if gemma else 1, "eos": 1 if gemma else 2, "unk": 3 if gemma else 0} | ({"pad": 0} if gemma else {})
        writer.add_add_bos_token(True)
    for key, call in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id)):
        if key in ids:
            call(ids[key])
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}")
    write_tensors(writer, case, len(tokens))
    finish(writer)
    return read_case(folder)


def greedy_of(model, prompt):
    """generate's greedy tokens, up to one whose best logit is too near the next to tell."""
    with torch.no_grad():
        ids = torch.tensor([prompt])  # with its mask: a pad token in it is none
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, eos_token_id=None)[0].tolist()
        logits = model(torch.tensor([made])).logits[0].float()
    new = made[len(prompt):]
    for at in range(len(new)):
        best = logits[len(prompt) - 1 + at].topk(2).values
        if best[0] - best[1] <= 1e-3:
            return new[:at]
    assert len(new) == 16
    return new


def read_case(folder):
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager",
                                                     quantization_config=GgufConfig(dequantize=True)).eval()
    state = {key: value for key, value in model.state_dict().items() if not (model.config.tie_word_embeddings and key == "lm_head.weight")}
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    tokenizer.save_pretrained(folder / "saved")
    shutil.copyfile(folder / "saved/tokenizer.json", folder / "tokenizer.json")
    shutil.rmtree(folder / "saved")
    prompt = random("gguf", "prompt", folder.name).integers(0, model.config.vocab_size, 24).tolist()
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), -1)
    chosen = [logp[i, prompt[i + 1]].item() for i in range(len(prompt) - 1)]
    greedy = greedy_of(model, prompt)
    weights = {key: {"shape": list(value.shape), "sha256": hashlib.sha256(value.numpy().tobytes()).hexdigest()} for key, value in state.items()}
    write_json(folder / "expected.json", {"prompt": prompt, "logprobs": chosen, "greedy": greedy, "weights": weights})
    spread = float(np.std(chosen))
    assert spread > 0.3, spread
    return {"case": folder.name, "spread_of_logprobs": round(spread, 3)}


def write_real(path):
    """SmolLM2-135M-Instruct: what parity.gguf compares with where the file is there."""
    file = pathlib.Path(path)
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager",
                                                     quantization_config=GgufConfig(dequantize=True)).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    prompt = tokenizer.encode("The capital of France is Paris, and the capital of Italy is Rome. If a train leaves at 10:45")
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt])).logits[0].float(), -1)
    chosen = [logp[i, prompt[i + 1]].item() for i in range(len(prompt) - 1)]
    write_json(FOLDER / "smollm2.json", {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "prompt": prompt,
                                         "logprobs": chosen, "greedy": greedy_of(model, prompt)})


def main():
    torch.set_num_threads(1)
    if os.environ.get("POISE_SMOLLM2"):
        return write_real(os.environ["POISE_SMOLLM2"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_types()
    made = [write_case(name) for name in CASES]
    write_json(FOLDER / "cases.json", {"versions": versions("torch", "transformers", "gguf", "tokenizers"), "cases": made})
    print("gguf", json.dumps(made))


if __name__ == "__main__":
    main()
