"""Compares what Poise makes of random pictures under random processor files with Pillow and transformers.

    .oracle/bin/python tests/oracle/compare_images.py [--cases N] [--seed S] [--tool PATH] [--keep DIR]

Three kinds of case: decoding (any file that picture_files.py makes, whole or cut), resizing (five filters), and patches (the three
image processors, with their files in both spellings). Decoded and resized pixels must be equal, patches within 1e-6, token counts equal,
and what transformers refuses must be refused. Prints figures; exit code 1 when anything differs. --keep keeps the files of those cases.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
from oracle_common import ROOT
from picture_files import picture, picture_file, saved, sides
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.HAMMING]


def maybe(rng, chance, settings, key, value):
    if rng.random() < chance:
        settings[key] = value


def common_settings(rng):
    made = {}
    maybe(rng, 0.4, made, "resample", int(rng.integers(1, 6)))
    maybe(rng, 0.2, made, "image_mean", [float(v) for v in rng.uniform(-0.2, 0.9, 3)])
    maybe(rng, 0.2, made, "image_std", [float(v) for v in rng.uniform(0.1, 1.3, 3)] if rng.random() < 0.7 else 0.3)
    maybe(rng, 0.1, made, "rescale_factor", float(rng.choice([1 / 127.5, 0.00392156862745098, 1, 0.01])))
    for key, chance in (("do_rescale", 0.1), ("do_normalize", 0.1), ("do_resize", 0.05)):
        maybe(rng, chance, made, key, [True, None, False][rng.integers(0, 3)])
    maybe(rng, 0.02, made, ["resample", "image_mean", "image_std", "rescale_factor"][rng.integers(0, 4)], None)
    maybe(rng, 0.3, made, "do_convert_rgb", [True, None, False][rng.integers(0, 3)])
    return made


def qwen_case(rng):
    settings = common_settings(rng) | {"image_processor_type": "Qwen2VLImageProcessor"}
    patch, merge, temporal = int(rng.choice([14, 14, 4, 16])), int(rng.choice([2, 2, 1, 3])), int(rng.choice([2, 2, 1]))
    unit = (patch * merge) ** 2
    low = int(rng.integers(1, 12)) * unit
    high = low + int(rng.integers(0, 60)) * unit
    settings |= {"patch_size": patch, "merge_size": merge, "temporal_patch_size": temporal}
    spelling = rng.integers(0, 3)
    if spelling == 0:
        settings |= {"min_pixels": low, "max_pixels": high}
    elif spelling == 1:
        settings["size"] = {"shortest_edge": low, "longest_edge": high}
    else:
        settings |= {"size": {"shortest_edge": 1, "longest_edge": high}, "min_pixels": low}
    return Qwen2VLImageProcessorPil, settings, {"processor": 0, "patch": patch, "merge": merge, "temporal": temporal}


def llava_case(rng):
    settings = common_settings(rng) | {"image_processor_type": "LlavaNextImageProcessor"}
    patch = int(rng.choice([14, 14, 4, 7]))
    side = int(patch * rng.integers(1, 7) + rng.choice([0, 0, 0, 1, patch - 1]))
    # Both sides 0 tiles never; a resolution now and then that tiles do not fill.
    settings["image_grid_pinpoints"] = [[int(side * rng.integers(1, 5)), int(side * rng.integers(1, 5))] for _ in range(rng.integers(1, 9))]
    settings["crop_size"] = [side, {"height": side, "width": side}, [side, side]][rng.integers(0, 3)]
    size = side if rng.random() < 0.7 else int(rng.integers(max(1, side - 9), side + 9))
    settings["size"] = [size, {"shortest_edge": size}, {"height": size, "width": size}, {"height": size, "width": size + 3}][rng.integers(0, 4)]
    if rng.random() < 0.2:
        settings |= {"do_center_crop": False, "size": {"height": side, "width": side}}
    return LlavaNextImageProcessorPil, settings, {"processor": 1, "patch": patch, "merge": 1, "temporal": 1, "side": side}


def gemma_case(rng):
    settings = common_settings(rng) | {"image_processor_type": "Gemma3ImageProcessor"}
    patch = int(rng.choice([14, 14, 4]))
    side = int(patch * rng.integers(1, 9) + rng.choice([0, 0, 0, 1]))
    settings["size"] = [side, {"height": side, "width": side}, [side, side]][rng.integers(0, 3)]
    maybe(rng, 0.3, settings, "do_pan_and_scan", None)
    if rng.random() < 0.6:
        settings |= {"do_pan_and_scan": True, "always_pan_and_scan": True, "pan_and_scan_min_crop_size": int(rng.integers(1, 60)),
                     "pan_and_scan_max_num_crops": int(rng.integers(1, 9)),
                     "pan_and_scan_min_ratio_to_activate": float(rng.uniform(0.9, 2.5))}
    return Gemma3ImageProcessorPil, settings, {"processor": 2, "patch": patch, "merge": 1, "temporal": 1, "side": side, "tokens": 5}


def write_settings(rng, folder, settings):
    if rng.random() < 0.5:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        maybe(rng, 0.5, other := {}, "processor_class", "SomeProcessor")
        if other:
            (folder / "processor_config.json").write_text(json.dumps(other))
    else:
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings, "processor_class": "SomeProcessor"}))
        if rng.random() < 0.3:
            (folder / "preprocessor_config.json").write_text(json.dumps({"do_rescale": False, "resample": 0}))


def patch_rows(tiles, patch):
    """[tiles, 3, height, width] -> rows of patches; a rest is left out, as a convolution does."""
    count, _, height, width = tiles.shape
    rows, columns = height // patch, width // patch
    cut = tiles[:, :, : rows * patch, : columns * patch].reshape(count, 3, rows, patch, columns, patch)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(count * rows * columns, -1), [count, rows, columns]


def llava_tokens(processor, patch, side, size):
    """The processor's count, which must be the model's."""
    counter = object.__new__(LlavaNextProcessor)
    counter.image_processor, counter.patch_size, counter.num_additional_image_tokens = processor, patch, 1
    count = counter._get_number_of_features(*size, side, side) - 1
    tiles = get_anyres_image_grid_shape(size, processor.image_grid_pinpoints, side)
    grid = side // patch
    shown = unpad_image(torch.zeros(1, tiles[0] * grid, tiles[1] * grid), tuple(size))
    model = grid * grid + shown.shape[1] * (shown.shape[2] + 1)
    assert model == count, f"transformers' model has {model} rows, its processor {count}"
    return count, list(tiles)


def expected_patches(maker, folder, line, image):
    processor = maker.from_pretrained(folder)
    # As Gemma3Processor calls it.
    made = processor(image, return_tensors=None, **({"do_convert_rgb": True} if line["processor"] == 2 else {}))
    if line["processor"] == 0:
        grid = [int(v) for v in made["image_grid_thw"][0]]
        return np.asarray(made["pixel_values"], np.float32), {"grid": grid, "runs": 1, "tiles": [0, 0],
                                                              "feature_rows": grid[1] * grid[2] // line["merge"] ** 2}
    if line["processor"] == 1:
        values = np.asarray(made["pixel_values"][0], np.float32)
        assert values.shape[-2:] == (line["side"],) * 2, "tiles of another size than the model takes"
        rows, grid = patch_rows(values, line["patch"])
        tokens, tiles = llava_tokens(processor, line["patch"], line["side"], [image.height, image.width])
        assert grid[0] == 1 + tiles[0] * tiles[1], "another number of tiles than the model takes"
        return rows, {"grid": grid, "runs": 1, "tiles": tiles, "feature_rows": tokens}
    values = np.stack(made["pixel_values"]).astype(np.float32)
    assert values.shape[-2:] == (line["side"],) * 2, "pictures of another size than the model takes"
    rows, grid = patch_rows(values, line["patch"])
    runs = 1 + int(made["num_crops"][0])
    return rows, {"grid": grid, "runs": runs, "tiles": [0, 0], "feature_rows": runs * line["tokens"]}

TOOL = [str(ROOT / "build/release/tests/tool_image")]


class Case:
    """One line for the tool, and what is expected of it: bytes or an error."""

    def __init__(self, rng, number, folder):
        self.name = folder / str(number)
        kind = rng.choice(["decode", "jpeg", "resize", "patches"], p=[0.3, 0.1, 0.2, 0.4])
        self.line = {"do": str(kind), "file": str(self.name) + ".picture", "out": str(self.name) + ".out"}
        self.error = None
        getattr(self, kind)(rng)

    def decode(self, rng):
        data = picture_file(rng, *sides(rng, 300))
        if rng.random() < 0.08:
            data = data[: int(rng.integers(len(data) // 3, len(data)))]
        pathlib.Path(self.line["file"]).write_bytes(data)
        self.kind = "decode " + Image.open(self.line["file"]).format if len(data) > 60 and self.opens() else "decode unknown"
        try:
            image = load_image(self.line["file"])
            self.expect(np.asarray(image), {"height": image.height, "width": image.width})
        except Exception as error:  # whatever it is: the picture is refused
            self.error = error

    def jpeg(self, rng):
        """Sampling factors and arithmetic coding that Pillow reads but does not write: the tool does."""
        factors = [[int(rng.choice([1, 1, 2, 4])), int(rng.choice([1, 1, 2, 4]))], [1, 1], [1, 1]]
        if rng.random() < 0.2:
            factors[1:] = [[int(rng.choice([1, 2])), int(rng.choice([1, 2]))] for _ in range(2)]
        if rng.random() < 0.1:
            factors = factors[:1]
        if sum(h * v for h, v in factors) > 10:  # the format's limit
            factors[0] = [4, 1]
        name = "x".join("".join(map(str, pair)) for pair in factors)
        self.kind = "decode JPEG " + ("of rare sampling" if len(factors) > 1 else "of one component")
        line = {"do": "jpeg", "file": str(self.name) + ".png", "out": self.line["file"], "sampling": factors,
                "quality": int(rng.integers(10, 101)), "restart": int(rng.integers(0, 9)), "progressive": int(rng.random() < 0.4),
                "arithmetic": int(rng.random() < 0.15)}
        pathlib.Path(line["file"]).write_bytes(saved(Image.fromarray(picture(rng, *sides(rng, 300))), "PNG", {"compress_level": 1}))
        self.line |= {"do": "decode", "sampling": name}
        made = subprocess.run([TOOL[0]], input=json.dumps(line) + "\n", capture_output=True, text=True, check=False)
        if made.returncode:  # the library does not write every one of them
            pathlib.Path(line["out"]).write_bytes(saved(Image.open(line["file"]), "JPEG", {"quality": 70}))
        try:
            image = load_image(self.line["file"])
            self.expect(np.asarray(image), {"height": image.height, "width": image.width})
        except Exception as error:
            self.error = error

    def opens(self):
        try:
            Image.open(self.line["file"])
            return True
        except Exception:
            return False

    def resize(self, rng):
        number = int(rng.integers(0, len(FILTERS)))
        self.kind = "resize " + FILTERS[number].name
        image = Image.fromarray(picture(rng, *sides(rng, 500)))
        height, width = sides(rng, 900 if rng.random() < 0.5 else 60)
        if rng.random() < 0.2:
            height = image.height
        elif rng.random() < 0.2:
            width = image.width
        pathlib.Path(self.line["file"]).write_bytes(saved(image, "PNG", {"compress_level": 1}))
        self.line |= {"height": height, "width": width, "filter": number}
        self.expect(np.asarray(image.resize((width, height), FILTERS[number])), {"height": height, "width": width})

    def patches(self, rng):
        maker, settings, line = [qwen_case, llava_case, gemma_case][rng.integers(0, 3)](rng)
        self.kind = "patches " + settings["image_processor_type"]
        self.line |= line | {"folder": str(self.name) + ".rules"}
        folder = pathlib.Path(self.line["folder"])
        folder.mkdir()
        write_settings(rng, folder, settings)
        height, width = sides(rng, 600)
        if rng.random() < 0.15 and "side" in line:
            height = width = line["side"]
        pathlib.Path(self.line["file"]).write_bytes(picture_file(rng, height, width))
        try:
            image = load_image(self.line["file"])
            pixels, answer = expected_patches(maker, folder, line, image)
            self.expect(pixels, answer | {"size": [image.height, image.width]})
        except Exception as error:
            self.error = error

    def expect(self, pixels, answer):
        self.pixels, self.answer = pixels, answer

    def difference(self, answer):
        """None, or what differs. self.exact: to the bit."""
        self.exact = False
        if self.error is not None:
            return None if "error" in answer else f"transformers refuses this: {type(self.error).__name__}: {self.error}"
        if "error" in answer:
            return f"refused: {answer['error']}"
        if answer != self.answer:
            return f"{answer}, expected {self.answer}"
        made = np.fromfile(self.line["out"], self.pixels.dtype)
        if made.size != self.pixels.size:
            return f"{made.size} values, expected {self.pixels.size}"
        wanted = self.pixels.reshape(-1)
        self.exact = bool((made == wanted).all())
        apart = np.abs(made.astype(np.float64) - wanted.astype(np.float64)).max() if made.size else 0
        limit = 1e-6 * max(1.0, float(np.abs(wanted).max())) if wanted.dtype == np.float32 else 0
        return f"values differ by up to {apart}" if apart > limit else None


def run_tool(tool, cases):
    text = "".join(json.dumps(case.line) + "\n" for case in cases)
    out = subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == len(cases), "the tool stopped early"
    return [json.loads(line) for line in out]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--tool", default=TOOL[0])
    parser.add_argument("--keep", help="a folder for the files of cases that differ")
    options = parser.parse_args()
    TOOL[0] = options.tool
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures, bad = {}, 0
    for start in range(options.first, options.first + options.cases, 100):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            last = min(start + 100, options.first + options.cases)
            cases = [Case(np.random.default_rng([options.seed, number]), number, folder) for number in range(start, last)]
            for number, case, answer in zip(range(start, last), cases, run_tool(options.tool, cases)):
                difference = case.difference(answer)
                row = figures.setdefault(case.kind, [0, 0, 0, 0])
                row[0] += 1
                row[1] += case.exact
                row[2] += case.error is not None
                row[3] += difference is not None
                if difference is None:
                    continue
                bad += 1
                print(f"case {number} ({case.kind}): {difference}\n    {json.dumps(case.line)}", flush=True)
                if options.keep:
                    shutil.copytree(folder, pathlib.Path(options.keep), dirs_exist_ok=True,
                                    ignore=lambda _, names: [n for n in names if not n.startswith(f"{number}.") and "_config" not in n])
    for kind in sorted(figures):
        count, exact, refused, differ = figures[kind]
        print(f"{kind}: {count} cases, {exact} equal to the bit, {refused} refused by both sides or one, {differ} differ")
    print(f"seed {options.seed}, {options.cases} cases: {bad} differ")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
