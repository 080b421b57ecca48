"""tests/goldens/image: Pillow's decoding and resizing, Qwen's smart_resize and its processor's pixel values."""

import hashlib
import io
import struct
import zlib

from compare_images import patch_rows
from oracle_common import GOLDENS, random, versions, write_json
from picture_files import picture_file

import numpy as np
import torch
from PIL import Image, ImageOps, features
from safetensors.torch import save_file
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

FOLDER = GOLDENS / "image"


def picture(key, height, width, channels=3):
    """Broad shapes, edges and some noise, uint8 [height, width, channels]."""
    rng = random("image", key)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(channels):
        wave = np.sin(rng.uniform(0.05, 0.4) * x + rng.uniform(0, 6)) + np.cos(rng.uniform(0.05, 0.4) * y + rng.uniform(0, 6))
        edge = 90.0 * ((x * rng.uniform(0.3, 2) + y) % rng.integers(7, 19) < 5)
        planes.append(100 + 45 * wave + edge + rng.normal(0, 12, (height, width)))
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


def rgb(key, height, width):
    return Image.fromarray(picture(key, height, width))


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def png16(key, height, width):
    """A 16-bit grey PNG."""
    values = picture(key, height, width, 1)[..., 0].astype(np.uint16) * 257 - 37
    return Image.fromarray(values)


def png48(key, height, width):
    """A 16-bit RGB PNG, written by hand: Pillow does not write one."""
    values = picture(key, height, width).astype(np.uint16) * 256 + picture(key + "low", height, width)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def palette(key, height, width, colours, transparent=None):
    image = rgb(key, height, width).quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def planes(mode, values):
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, -1, 0)])


def files():
    """file name -> (image, how to save it) or the bytes themselves."""
    rgba = planes("RGBA", picture("rgba", 17, 23, 4))
    grey = Image.fromarray(picture("grey", 19, 30, 1)[..., 0])
    cmyk = planes("CMYK", picture("cmyk", 24, 25, 4))
    made = {
        "rgb.png": (rgb("rgb", 21, 34), {}),
        "one_pixel.png": (rgb("one", 1, 1), {}),
        "grey.png": (grey, {}),
        "bilevel.png": (grey.point(lambda v: 255 * (v > 120)).convert("1"), {}),
        "grey_alpha.png": (Image.merge("LA", [grey, ImageOps.flip(grey)]), {}),
        "rgba.png": (rgba, {}),
        "palette.png": (palette("palette", 22, 27, 200), {}),
        "palette_4bit.png": (palette("palette4", 15, 19, 13), {"bits": 4}),
        "palette_2bit.png": (palette("palette2", 9, 14, 4), {"bits": 2}),
        "palette_transparent.png": (palette("paletteT", 16, 16, 32), {"transparency": 3}),
        "rgb_transparent.png": (rgb("trns", 12, 13), {"transparency": (10, 20, 30)}),
        "grey16.png": (png16("grey16", 14, 18), {}),
        "rgb16.png": png48("rgb16", 11, 16),
        "quality75.jpg": (rgb("q75", 41, 53), {"quality": 75}),
        "quality95_444.jpg": (rgb("q95", 33, 29), {"quality": 95, "subsampling": 0}),
        "sampling_422.jpg": (rgb("s422", 30, 47), {"quality": 85, "subsampling": 1}),
        "sampling_420_odd.jpg": (rgb("s420", 17, 15), {"quality": 90, "subsampling": 2}),
        "progressive.jpg": (rgb("progressive", 40, 37), {"quality": 80, "progressive": True}),
        "restarts.jpg": (rgb("restarts", 35, 64), {"quality": 70, "restart_marker_blocks": 2}),
        "grey.jpg": (grey, {"quality": 85}),
        "cmyk.jpg": (cmyk, {"quality": 90}),
        "lossy.webp": (rgb("webp", 31, 45), {"quality": 80}),
        "lossless.webp": (rgb("webpl", 26, 22), {"lossless": True}),
        "alpha.webp": (rgba, {"lossless": True, "exact": True}),
        "lossy_alpha.webp": (rgba, {"quality": 70, "exact": True}),
        "rotated_6.webp": (rgb("webp6", 13, 24), {"lossless": True, "exif": exif(6)}),
        "rotated_8.png": (rgb("png8", 13, 24), {"exif": exif(8)}),
    }
    for orientation in range(1, 9):
        made[f"rotated_{orientation}.jpg"] = (rgb("turn", 16, 26), {"quality": 90, "exif": exif(orientation)})
    made["rotated_9_invalid.jpg"] = (rgb("turn", 16, 26), {"quality": 90, "exif": exif(9)})
    return made


def data_of(made, name):
    if isinstance(made, bytes):
        return made
    image, options = made
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.rsplit(".", 1)[1]]
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def decoded(name, data):
    image = Image.open(io.BytesIO(data))
    mode, plain = image.mode, image.convert("RGB")
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return {"file": name, "mode": mode, "width": turned.width, "height": turned.height, "sha256": digest(turned),
            "first_pixels": list(turned.tobytes()[:12]), "sha256_not_turned": digest(plain)}


def decoding():
    folder, cases = FOLDER / "files", []
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in files().items():
        data = data_of(made, name)
        (folder / name).write_bytes(data)
        cases.append(decoded(name, data))
    # Kinds that Pillow does not write: tool_image of tests/tools made them.
    for path in sorted(folder.glob("sampling_*x*.jpg")):
        cases.append(decoded(path.name, path.read_bytes()))
    for number in range(48):
        name = f"random_{number:02}"
        data = picture_file(random("random file", number), *random("random size", number).integers(1, 29, 2).tolist())
        (folder / name).write_bytes(data)
        cases.append(decoded(name, data))
    good = data_of(files()["quality75.jpg"], "a.jpg")
    broken = {"empty.png": b"", "not_an_image.jpg": b"this is text, not a picture\n", "header_only.png": data_of(
        files()["rgb.png"], "a.png")[:33], "header_only.jpg": good[:200], "bad_signature.webp": b"RIFF\x10\0\0\0WEBPVP8 "}
    for name, data in broken.items():
        (folder / name).write_bytes(data)
        try:
            Image.open(io.BytesIO(data)).convert("RGB")
            raise SystemExit(f"{name} was to be unreadable")
        except (OSError, ValueError, SyntaxError) as error:
            cases.append({"file": name, "error": type(error).__name__})
    return {"versions": versions("pillow") | {name: features.version(name) for name in ("libjpeg_turbo", "webp", "zlib")},
            "about": "exif_transpose, then convert('RGB'); sha256 of the bytes, row by row, R G B. Alpha is dropped, not "
                     "blended. sha256_not_turned: without exif_transpose. error: Pillow refuses the file.", "cases": cases}


FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}


def resizing():
    sources = {"rgb_60x44.png": rgb("resize", 44, 60), "rgb_9x31.png": rgb("tall", 31, 9),
               "noise_37x29.png": Image.fromarray(random("noise").integers(0, 256, (29, 37, 3), dtype=np.uint8)),
               "steps_16x16.png": Image.fromarray((255 * (random("steps").random((16, 16, 3)) > 0.5)).astype(np.uint8))}
    targets = [(28, 28), (56, 84), (112, 28), (60, 44), (60, 28), (28, 44), (1, 1), (3, 200), (301, 5), (61, 45), (37, 29), (16, 17),
               (140, 112)]
    cases = []
    (FOLDER / "files").mkdir(parents=True, exist_ok=True)
    for name, image in sources.items():
        image.save(FOLDER / "files" / name)
        for width, height in targets:
            for kind, chosen in FILTERS.items():
                made = image.resize((width, height), chosen)
                cases.append({"file": name, "width": width, "height": height, "filter": kind, "sha256": digest(made),
                              "first_pixels": list(made.tobytes()[:24])})
    return {"versions": versions("pillow"), "about": "Image.resize of RGB; sha256 of the bytes, row by row, R G B", "cases": cases}


def smart_resizes():
    rng = random("smart_resize")
    sizes = [(480, 640), (1080, 1920), (1365, 2048), (100, 100), (42, 70), (70, 98), (10, 1990), (4000, 3000), (14, 14), (1, 1), (1, 200),
             (1, 201), (28, 28), (27, 29), (126, 126), (154, 98), (13, 2700), (8192, 8192), (56, 56), (30000, 300), (20000, 99)]
    sizes += [tuple(int(v) for v in np.exp(rng.uniform(np.log(4), np.log(6000), 2))) for _ in range(150)]
    cases = []
    for low, high in ((3136, 12845056), (3136, 1003520), (784, 28 * 28 * 16), (28 * 28 * 4, 28 * 28 * 6), (200704, 401408)):
        for height, width in sizes:
            try:
                made = list(smart_resize(height, width, factor=28, min_pixels=low, max_pixels=high))
            except ValueError:
                made = None
            cases.append([height, width, low, high, made])
    return {"versions": versions("transformers"),
            "about": "[height, width, min_pixels, max_pixels, [height, width] after smart_resize with factor 28, or null: refused]",
            "cases": cases}


def pixel_values():
    inputs = [("rgb_60x44.png", 784, 28 * 28 * 64), ("noise_37x29.png", 3136, 28 * 28 * 64), ("rgb_9x31.png", 784, 28 * 28 * 8),
              ("rotated_6.jpg", 784, 28 * 28 * 64), ("palette.png", 784, 28 * 28 * 64), ("grey_alpha.png", 1568, 28 * 28 * 4)]
    tensors, cases = {}, []
    for index, (name, low, high) in enumerate(inputs):
        image = ImageOps.exif_transpose(Image.open(FOLDER / "files" / name)).convert("RGB")
        made = Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high)(image, return_tensors="pt")
        tensors[f"{index}.pixel_values"] = made["pixel_values"].to(torch.float32).contiguous()
        tensors[f"{index}.image_grid_thw"] = made["image_grid_thw"]
        cases.append({"file": name, "min_pixels": low, "max_pixels": high, "grid": made["image_grid_thw"][0].tolist()})
    save_file(tensors, FOLDER / "qwen_pixels.safetensors")
    return {"versions": versions("transformers", "pillow", "numpy"),
            "about": "Qwen2VLImageProcessorPil; tensors N.pixel_values [patches, 1176] and N.image_grid_thw in "
                     "qwen_pixels.safetensors, N the case's number", "cases": cases}


LLAVA = [
    {"crop_size": 28, "size": {"shortest_edge": 28}, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]},
    {"crop_size": {"height": 28, "width": 28}, "size": 33, "resample": 2, "image_grid_pinpoints": [[56, 84], [84, 84], [28, 28]]},
    {"crop_size": 28, "size": {"height": 28, "width": 28}, "do_center_crop": False, "image_std": 0.5, "image_grid_pinpoints": [[112, 28]]},
]
GEMMA = [
    {"size": {"height": 56, "width": 56}, "do_pan_and_scan": None},
    {"size": 56, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 9, "pan_and_scan_max_num_crops": 4,
     "pan_and_scan_min_ratio_to_activate": 1.2},
    {"size": [57, 57], "resample": 1, "do_rescale": False, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 4,
     "pan_and_scan_max_num_crops": 9, "pan_and_scan_min_ratio_to_activate": 1.5},
]
QWEN = [{"size": {"shortest_edge": 784, "longest_edge": 12544}, "resample": 1}, {"min_pixels": 3136, "max_pixels": 50176, "do_normalize": False}]
MAKERS = {"qwen2_vl": (Qwen2VLImageProcessorPil, QWEN), "llava_next": (LlavaNextImageProcessorPil, LLAVA),
          "gemma3": (Gemma3ImageProcessorPil, GEMMA)}


def llava_count(processor, side, size):
    counter = object.__new__(LlavaNextProcessor)
    counter.image_processor, counter.patch_size, counter.num_additional_image_tokens = processor, 14, 1
    return counter._get_number_of_features(*size, side, side) - 1


def processed(kind, settings, name):
    """What a processor with a patch of 14 makes of a file: shape, hash and first values of its patch rows."""
    image = load_image(str(FOLDER / "files" / name))
    processor = MAKERS[kind][0](**settings)
    made = processor(image, **({"do_convert_rgb": True} if kind == "gemma3" else {}))
    case = {"processor": kind, "settings": settings, "file": name, "size": [image.height, image.width], "runs": 1}
    if kind == "qwen2_vl":
        rows, case["grid"] = np.asarray(made["pixel_values"], np.float32), np.asarray(made["image_grid_thw"])[0].tolist()
        case["feature_rows"] = len(rows) // 4
    else:
        values = np.asarray(made["pixel_values"][0] if kind == "llava_next" else np.stack(made["pixel_values"]), np.float32)
        rows, case["grid"] = patch_rows(values, 14)
    if kind == "llava_next":
        case["feature_rows"] = llava_count(processor, 28, case["size"])
    if kind == "gemma3":
        case["runs"] = 1 + int(made["num_crops"][0])
        case["feature_rows"] = 4 * case["runs"]
    rows = np.ascontiguousarray(rows)
    return case | {"sha256": hashlib.sha256(rows.tobytes()).hexdigest(), "first": rows.reshape(-1)[:6].tolist()}


def processors():
    names = ["rgb_60x44.png", "rgb_9x31.png", "noise_37x29.png", "rotated_6.jpg", "rgb_transparent.png", "grey_alpha.png", "cmyk.jpg",
             "sampling_422.jpg", "lossy.webp", "palette_transparent.png", "one_pixel.png"]
    cases = [processed(kind, settings, name) for kind, (_, list_of) in MAKERS.items() for settings in list_of for name in names
             if kind != "gemma3" or name != "one_pixel.png"]
    return {"versions": versions("transformers", "pillow", "numpy"), "cases": cases,
            "about": "file -> load_image -> the Pillow processor with these settings; patch 14, merge and frames 2 for Qwen2-VL and else 1, "
                     "tiles of 28 (LLaVA-NeXT) or pictures of the size (Gemma-3, 4 tokens each). sha256 of the f32 patch rows."}


def token_counts():
    """LLaVA-NeXT: [height, width, tokens] for a list of resolutions; Gemma-3: [height, width, crops]."""
    rng = random("token counts")
    sizes = [(336, 336), (480, 640), (640, 480), (899, 1024), (1024, 899), (1080, 1920), (300, 1000), (2000, 500), (1, 1), (1, 3000),
             (3000, 1), (672, 672), (337, 673), (10, 1990)]
    sizes += [tuple(int(v) for v in np.exp(rng.uniform(np.log(2), np.log(5000), 2))) for _ in range(250)]
    pins = [[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            [[336 * i, 336 * j] for i in range(1, 7) for j in range(1, 7)], [[672, 672], [1344, 336]]]
    llava = []
    for pinpoints in pins:
        processor = LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, size=336, crop_size=336)
        llava.append({"pinpoints": pinpoints, "counts": [[*size, llava_count(processor, 336, size)] for size in sizes]})
    gemma = []
    for crop, most, ratio in ((256, 4, 1.2), (100, 9, 1.0), (1, 3, 2.0)):
        processor, counts = Gemma3ImageProcessorPil(), []
        for height, width in sizes:
            made = processor.pan_and_scan(np.broadcast_to(np.uint8(0), (3, height, width)), crop, most, ratio)
            counts.append([height, width, len(made)])
        gemma.append({"min_crop": crop, "max_crops": most, "min_ratio": ratio, "counts": counts})
    return {"versions": versions("transformers"), "llava_next": llava, "gemma3": gemma,
            "about": "LLaVA-NeXT with tiles of 336 and patches of 14: [height, width, tokens]; Gemma-3 with pan and scan: [height, width, "
                     "crops]"}


def main():
    write_json(FOLDER / "decode.json", decoding())
    write_json(FOLDER / "resize.json", resizing(), None)
    write_json(FOLDER / "smart_resize.json", smart_resizes(), None)
    write_json(FOLDER / "qwen_pixels.json", pixel_values())
    write_json(FOLDER / "processors.json", processors(), None)
    write_json(FOLDER / "token_counts.json", token_counts(), None)
    print("image")


if __name__ == "__main__":
    main()
