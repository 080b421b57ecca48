#!/usr/bin/env python3
"""Whole random model folders, pictures and messages: transformers against Poise, on demand.

    compare_folders.py [--cases N] [--first K] [--seed S] [--family F] [--poise PATH] [--keep DIR]

Each case makes a folder of one family (folder_cases.py: both forms, tokenizer and chat template included) and lines of messages with and
without pictures, of text and of ids. Compared are the ids and decoded text of `tokenize`, the prompt ids and log-probs of `score` in
float32 and bfloat16, greedy text of `generate`, the weights that `merge` writes, and the line that a picture too many or too few is
refused with. Pictures are Pillow's (backend="pil"). $POISE_VOCABULARIES: real vocabularies that some folders take. Exit code 1 when a case differs.
"""

import argparse
import collections
import json
import pathlib
import shutil
import sys
import tempfile
import traceback
import warnings

from oracle_common import ROOT  # first: it sets what torch reads at its start

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

import picture_files
import tricky_text
from compare_families import chance, pick, run
from compare_written import load as load_written
from folder_cases import FAMILIES, PICTURES, REAL, VOCABULARIES, Folder

NEW_TOKENS = 12
TOLERANCE = 1e-4


class Requests:
    """Random lines for one folder."""

    def __init__(self, rng, folder, work):
        self.rng, self.family, self.work = rng, folder.family, work
        self.special = [t.content for t in folder.tokenizer.get_added_tokens_decoder().values() if t.special]
        # Where pieces depend on what stands before them, transformers cuts text at what spells a special token, and Poise does not.
        self.plain = folder.kind != "qwen"
        self.system = "Only user and assistant" not in folder.template or "<<SYS>>" in folder.template
        self.lists = folder.family == "llava_next"
        self.parts_allowed = folder.family in PICTURES
        self.pictures = 0

    def text(self, special=False):
        rng = self.rng
        if chance(rng, 0.2):
            words = pick(rng, "How many pictures?", "Say it again.", "  What is this?\n", "na\u00efve caf\u00e9", "\u6771\u4eac 12345")
        else:
            words = tricky_text.sample(("folders", int(rng.integers(1 << 40))))
        words = words.replace("\0", "")
        if special and chance(rng, 0.4):
            words += pick(rng, *self.special) + pick(rng, "", " x", "\n")
        return words

    def picture(self):
        rng, self.pictures = self.rng, self.pictures + 1
        while True:
            height, width = picture_files.sides(rng, 400)
            if max(height, width) > 150 * min(height, width):  # Qwen2-VL refuses 200 and more
                continue
            path = self.work / f"picture{self.pictures}.bin"
            path.write_bytes(picture_files.picture_file(rng, height, width))
            try:
                transformers.image_utils.load_image(str(path))
            except Exception:
                continue
            return {"type": "image", "image": str(path)}

    def content(self, pictures):
        rng = self.rng
        if not pictures and not self.lists and chance(rng, 0.5) or not self.parts_allowed:
            return self.text(not self.plain)
        parts = [self.picture() for _ in range(pictures)]
        for _ in range(int(rng.integers(0 if parts else 1, 3))):
            parts.insert(int(rng.integers(0, len(parts) + 1)), {"type": "text", "text": self.text(not self.plain)})
        return parts

    def messages(self):
        rng, out = self.rng, []
        left = int(pick(rng, 0, 1, 1, 2, 3, 4)) if self.parts_allowed else 0
        if self.system and chance(rng, 0.4):
            words = self.text()
            out.append({"role": "system", "content": [{"type": "text", "text": words}] if self.lists or self.parts_allowed and chance(rng, 0.5) else words})
        turns = int(pick(rng, 1, 1, 2, 3))
        for turn in range(turns):
            here = left if turn == turns - 1 else int(rng.integers(0, left + 1))
            left -= here
            out.append({"role": "user", "content": self.content(here)})
            if turn < turns - 1:
                words = self.text()
                out.append({"role": "assistant", "content": [{"type": "text", "text": words}] if self.lists or self.parts_allowed and chance(rng, 0.5) else words})
        return out


class Reference:
    """transformers on the folder as it stands."""

    def __init__(self, folder):
        self.family, self.path, self.marked = folder.family, folder.path, folder.kind == "qwen"
        self.vision = folder.family in PICTURES
        if self.vision:
            self.processor = transformers.AutoProcessor.from_pretrained(self.path)
            # Qwen's video processor has no Pillow backend, so the argument cannot be given to all of it.
            self.processor.image_processor = transformers.AutoImageProcessor.from_pretrained(self.path, backend="pil")
            assert type(self.processor.image_processor).__name__.endswith("Pil"), type(self.processor.image_processor)
            self.tokenizer = self.processor.tokenizer
            self.processor.chat_template = self.processor.chat_template or self.tokenizer.chat_template
        else:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        self.model = self.load(torch.float32)

    def load(self, dtype):
        kind = transformers.AutoModelForImageTextToText if self.vision else transformers.AutoModelForCausalLM
        model, info = kind.from_pretrained(self.path, dtype=dtype, attn_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        return model.eval()

    def prompt(self, messages):
        if self.vision:
            return dict(self.processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
                                                           sanitize_control_tokens=self.marked))
        ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True, sanitize_control_tokens=self.marked)
        return {"input_ids": torch.tensor([list(ids["input_ids"])])}

    def inputs(self, prompt, more):
        ids = torch.cat([prompt["input_ids"], torch.tensor([more], dtype=torch.long)], 1)
        inputs = {k: v for k, v in prompt.items() if k in ("pixel_values", "image_grid_thw", "image_sizes")} | {"input_ids": ids}
        kinds = {"gemma3": ["token_type_ids"], "qwen2_5_vl": ["mm_token_type_ids"]}.get(self.family, [])
        for key in kinds:
            inputs[key] = torch.zeros_like(ids)
            if key in prompt:
                inputs[key][:, :prompt[key].shape[1]] = prompt[key]
        return inputs

    def logits(self, model, prompt, more):
        inputs = self.inputs(prompt, more)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0]

    def logprobs(self, model, prompt, more):
        logits = self.logits(model, prompt, more)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        begin = prompt["input_ids"].shape[1]
        return torch.log_softmax(logits[begin - 1:-1], -1).gather(1, torch.tensor(more)[:, None])[:, 0].double()


def read_lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def call(poise, command, folder, rows, work, *extra):
    (work / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run(poise, command, "--model", folder, "--input", work / "in.jsonl", "--output", work / "out.jsonl", *extra)
    found = read_lines(work / "out.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    return found, said


class Case:
    def __init__(self, rng, folder, poise, work):
        self.rng, self.folder, self.poise, self.work = rng, folder, poise, work
        self.theirs = Reference(folder)
        self.requests = Requests(rng, folder, work)
        self.figures = collections.Counter()
        self.faults = []

    def fault(self, kind, *what):
        self.faults.append(f"{kind}: " + " | ".join(str(w)[:900] for w in what))

    def score_rows(self):
        """Lines and, beside each, transformers' prompt and completion."""
        rows, wanted, rng = [], [], self.rng
        while len(rows) < 5:
            messages, completion = self.requests.messages(), self.requests.text(True)
            try:
                prompt = self.theirs.prompt(messages)
            except Exception as error:  # a template that raises, two pictures' marks in text, ...
                self.figures["refused by transformers"] += 1
                self.refusal = (messages, error)
                if self.figures["refused by transformers"] > 30:
                    raise
                continue
            try:
                self.theirs.logits(self.theirs.model, prompt, [])
            except ValueError as error:  # LLaVA-NeXT: its processor counts other rows than its model makes
                assert "do not match" in str(error), error
                self.figures["transformers' processor and model disagree"] += 1
                continue
            tokens = self.theirs.tokenizer.encode(completion, add_special_tokens=False)
            media = {getattr(self.theirs.tokenizer, "image_token_id", None), self.theirs.model.config.to_dict().get("image_token_index"),
                     self.theirs.model.config.to_dict().get("image_token_id"), self.theirs.model.config.to_dict().get("video_token_id")}
            if not tokens or media & set(tokens) or prompt["input_ids"].shape[1] > 6000:
                continue
            rows.append({"id": len(rows), "messages": messages, "completion": completion})
            wanted.append((prompt, tokens))
        size = self.folder.tokenizer.get_vocab_size()
        for _ in range(2):
            barred = {i for i in (self.folder.tokenizer.token_to_id(s) for s in self.requests.special) if i is not None}
            ids = [[i for i in rng.integers(0, size, int(rng.integers(3, 40))).tolist() if i not in barred] or [size // 2] for _ in range(2)]
            rows.append({"id": len(rows), "prompt_ids": ids[0], "completion_ids": ids[1]})
            wanted.append(({"input_ids": torch.tensor([ids[0]])}, ids[1]))
        return rows, wanted

    def tokenize(self):
        texts = [self.requests.text(True) for _ in range(60)]
        found, _ = call(self.poise, "tokenize", self.folder.path, [{"id": i, "text": t} for i, t in enumerate(texts)], self.work)
        for text, row in zip(texts, found):
            ids = self.theirs.tokenizer.encode(text)
            decoded = self.theirs.tokenizer.decode(ids)
            self.figures["texts"] += 1
            if row["ids"] != ids:
                self.fault("ids of text", repr(text), row["ids"], ids)
            elif row["decoded"] != decoded:
                self.fault("decoded", repr(text), repr(row["decoded"]), repr(decoded))

    def chats(self, rows, wanted):
        asked = [row for row in rows if "messages" in row]
        found, _ = call(self.poise, "tokenize", self.folder.path, [{"id": r["id"], "messages": r["messages"]} for r in asked], self.work)
        for row, line, (prompt, _) in zip(asked, found, wanted):
            plain = prompt["input_ids"][0].tolist()
            self.figures["chats"] += 1
            # With or without the assistant's opening: what tokenize shows is compared with both.
            if line["ids"] != plain and line["ids"] != plain[:len(line["ids"])]:
                self.fault("ids of messages", json.dumps(row["messages"]), self.apart(line["ids"], plain))

    def apart(self, ours, theirs):
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
        show = self.theirs.tokenizer.decode
        return f"{len(ours)} and {len(theirs)} tokens, apart at {at}: {ours[max(0, at - 3):at + 9]} and {theirs[max(0, at - 3):at + 9]}, " \
               f"{show(ours[max(0, at - 3):at + 9])!r} and {show(theirs[max(0, at - 3):at + 9])!r}"

    def score(self, rows, wanted):
        found, said = call(self.poise, "score", self.folder.path, rows, self.work)
        self.said = said
        exact, halves, more = [], [], []
        rounded, _ = call(self.poise, "score", self.folder.path, rows, self.work, "--dtype", "bf16")
        half, double = self.theirs.load(torch.bfloat16), None
        for row, line, low, (prompt, tokens) in zip(rows, found, rounded, wanted):
            ids = prompt["input_ids"][0].tolist()
            if line["prompt_tokens"] != len(ids) or line.get("prompt_ids", ids) != ids:
                self.fault("prompt of score", json.dumps(row)[:400], self.apart(line.get("prompt_ids", []), ids))
                continue
            if line["tokens"] != tokens:
                self.fault("completion", repr(row.get("completion")), line["tokens"], tokens)
                continue
            wish = self.theirs.logprobs(self.theirs.model, prompt, tokens)
            gap = (torch.tensor(line["logprobs"], dtype=torch.float64) - wish).abs().max().item()
            self.figures["lines"] += 1
            self.figures["pictures"] += sum(p.get("type") == "image" for m in row.get("messages", []) if isinstance(m["content"], list) for p in m["content"])
            if not gap <= TOLERANCE:
                double = double or self.theirs.load(torch.float32).double()
                fine = self.theirs.logprobs(double, {k: v.double() if v.is_floating_point() else v for k, v in prompt.items()}, tokens)
                noise = (fine - wish).abs().max().item()
                if gap <= 4 * noise:
                    self.figures["over as float32 is"] += 1
                else:
                    self.fault("logprobs", f"apart by {gap:.3g}, float32 from float64 {noise:.3g}", json.dumps(row)[:600])
            else:
                self.figures["worst"] = max(self.figures["worst"], gap)
            exact.append(wish)
            halves.append(torch.tensor(low["logprobs"], dtype=torch.float64))
            more.append(self.theirs.logprobs(half, prompt, tokens))
        if not exact:
            return
        exact, halves, more = torch.cat(exact), torch.cat(halves), torch.cat(more)
        self.figures["uniform"] = (exact + np.log(self.theirs.model.get_input_embeddings().weight.shape[0])).abs().mean().item()
        ours, theirs = (halves - exact).square().mean().sqrt().item(), (more - exact).square().mean().sqrt().item()
        self.figures["bf16"] = ours / max(theirs, 1e-9)
        # Some dozens of tokens estimate a deviation roughly; the family's median is held to twice.
        if ours > 4 * theirs:
            self.fault("bfloat16", f"deviates by {ours:.3g}, transformers' by {theirs:.3g}")

    def generate(self, rows, wanted):
        asked = [({k: v for k, v in row.items() if not k.startswith("completion")}, prompt) for row, (prompt, _) in zip(rows, wanted)]
        found, said = call(self.poise, "generate", self.folder.path, [row for row, _ in asked], self.work, "--max-tokens", NEW_TOKENS, "--temperature", 0)
        self.said_generate = said
        for (row, prompt), line in zip(asked, found):
            inputs = self.theirs.inputs(prompt, [])
            with torch.no_grad():
                made = self.theirs.model.generate(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), do_sample=False, top_p=None, top_k=None,
                                                  temperature=None, max_new_tokens=NEW_TOKENS)
            new = made[0, inputs["input_ids"].shape[1]:].tolist()
            logits = self.theirs.logits(self.theirs.model, prompt, new)[inputs["input_ids"].shape[1] - 1:]
            near, media = len(new), set(self.media())
            for at, token in enumerate(new):
                best = logits[at].topk(2).values
                if logits[at].argmax() != token:  # its cache and its plain forward disagree
                    self.figures["generate differs from transformers' own forward"] += 1
                    near = at
                    break
                if best[0] - best[1] <= 1e-3 or token in media:  # Poise never samples tokens of pictures
                    near = at
                    break
            self.figures["generated"] += near
            if line["tokens"][:near] != new[:near] or near == len(new) and line["tokens"] != new:
                self.fault("generated", json.dumps(row)[:300], line["tokens"], new, near)

    def media(self):
        names = ("<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<image_soft_token>",
                 "<start_of_image>", "<end_of_image>")
        return [i for i in (self.folder.tokenizer.token_to_id(name) for name in names) if i is not None] if self.theirs.vision else []

    def written(self):
        """An adapter of zeros merged: the folder written has every tensor under its name, with the bits that were stored."""
        work, rng = self.work, self.rng
        name, weight = next((k, v) for k, v in self.theirs.model.named_parameters() if k.endswith("q_proj.weight") and "vision" not in k)
        module = name.removesuffix(".weight")
        (work / "adapter").mkdir()
        (work / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [module]}))
        save_file({f"base_model.model.{module}.lora_A.weight": torch.zeros(1, weight.shape[1]),
                   f"base_model.model.{module}.lora_B.weight": torch.zeros(weight.shape[0], 1)}, work / "adapter/adapter_model.safetensors")
        run(self.poise, "merge", "--model", self.folder.path, "--adapter", work / "adapter", "--output", work / "merged")
        written = load_written(work / "merged").state_dict()
        different = [k for k, v in self.theirs.model.state_dict().items() if not torch.equal(v, written[k])]
        if different:
            self.fault("written", different[:5])
        if self.theirs.vision:
            again = transformers.AutoProcessor.from_pretrained(work / "merged")
            assert (again.chat_template or again.tokenizer.chat_template) == self.theirs.processor.chat_template
        else:
            assert transformers.AutoTokenizer.from_pretrained(work / "merged").encode("a b") == self.theirs.tokenizer.encode("a b")
        self.figures["written"] += 1

    def refusals(self):
        """A template that writes no mark for a picture: the message names the line and counts."""
        if not self.theirs.vision:
            return
        odd = self.work / "odd"
        shutil.copytree(self.folder.path, odd)
        for file in ("chat_template.json", "chat_template.jinja"):
            (odd / file).unlink(missing_ok=True)
        (odd / "chat_template.jinja").write_text(self.folder.template.replace("<image>\n", "").replace("<start_of_image>", "").replace("<|image_pad|>", ""))
        rows = [{"id": "a", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
                {"id": "b", "messages": [{"role": "user", "content": [self.requests.picture(), {"type": "text", "text": "x"}]}]}]
        try:
            call(self.poise, "tokenize", odd, rows, self.work)
            self.fault("no refusal", "a picture without its mark")
        except RuntimeError as error:
            if "line 2" not in str(error) and ":2:" not in str(error):
                self.fault("refusal without its line", error)
            self.refused = str(error)

    def whole(self):
        self.tokenize()
        rows, wanted = self.score_rows()
        self.chats(rows, wanted)
        self.score(rows, wanted)
        self.generate(rows, wanted)
        self.written()
        self.refusals()


def one(family, seed, number, options, totals):
    rng = np.random.Generator(np.random.Philox(key=[seed, number * 7 + FAMILIES.index(family)]))
    work = pathlib.Path(tempfile.mkdtemp(prefix="poise-folders."))
    failed, folder = True, None
    try:
        real = VOCABULARIES.exists() and family in REAL and chance(rng, 0.08)
        folder = Folder(rng, family, work / "model", real)
        case = Case(rng, folder, options.poise, work)
        case.whole()
        failed = bool(case.faults)
        for fault in case.faults[:4]:
            print(f"  {fault}", flush=True)
        for key, value in case.figures.items():
            if key in ("worst", "bf16"):
                totals[key].append(value)
            elif key == "uniform":
                totals["uniform"].append(value)
            else:
                totals["count"][key] += value
        for said in {*getattr(case, "said", "").splitlines(), *getattr(case, "said_generate", "").splitlines(), getattr(case, "refused", "")} - {""}:
            totals["said"][said.replace(str(work), "WORK")] += 1
    except Exception as problem:
        print("".join(traceback.format_exception(problem)[-3:])[-1500:], flush=True)
    finally:
        if failed:
            print(f"{family} {number}: differs ({folder and (folder.form, folder.kind, str(folder.stored))})", flush=True)
            if options.keep:
                shutil.copytree(work, options.keep / f"{family}-{number}", dirs_exist_ok=True)
        shutil.rmtree(work)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--poise", type=pathlib.Path, default=ROOT / "build/release/poise")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--said", action="store_true", help="what Poise said, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    failed = 0
    for family in [options.family] if options.family else FAMILIES:
        totals = {"worst": [], "bf16": [], "uniform": [], "count": collections.Counter(), "said": collections.Counter()}
        wrong = sum(one(family, options.seed, number, options, totals) for number in range(options.first, options.first + options.cases))
        coarse = float(np.median(totals["bf16"] or [0]))
        failed += wrong + (coarse > 2)
        print(f"{family}: {options.cases} folders, {wrong} differ; {dict(totals['count'])}; largest difference of a log-prob "
              f"{max(totals['worst'], default=0):.1e}, least distance from uniform {min(totals['uniform'], default=0):.2f}, bfloat16's deviation over "
              f"transformers' median {coarse:.2f}, largest {max(totals['bf16'], default=0):.2f}", flush=True)
        if options.said:
            for said, count in totals["said"].most_common():
                print(f"    {count} x {said}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
