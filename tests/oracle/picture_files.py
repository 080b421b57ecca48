"""Random picture files of every kind that the formats know, for compare_images.py."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def plane(rng, height, width, top=255):
    """Waves, edges and noise; sometimes only noise, or flat."""
    y, x = np.mgrid[0:height, 0:width]
    kind = rng.integers(0, 5)
    if kind == 0:
        return rng.integers(0, top + 1, (height, width))
    if kind == 1:
        return np.full((height, width), rng.integers(0, top + 1))
    wave = np.sin(rng.uniform(0.01, 0.6) * x + rng.uniform(0, 6)) + np.cos(rng.uniform(0.01, 0.6) * y + rng.uniform(0, 6))
    edge = 0.4 * ((x * rng.uniform(0.3, 2) + y) % rng.integers(5, 23) < 5)
    values = 0.4 + 0.2 * wave + edge + rng.normal(0, 0.05, (height, width))
    return np.clip(np.rint(values * top), 0, top).astype(np.int64)


def picture(rng, height, width, channels=3):
    return np.stack([plane(rng, height, width) for _ in range(channels)], -1).astype(np.uint8)


def sides(rng, most=700):
    """Height and width: usual ones, around multiples of 14, thin ones, tiny ones."""
    kind = rng.integers(0, 6)
    if kind == 0:
        height, width = rng.integers(1, 40, 2)
    elif kind == 1:
        height, width = rng.integers(1, 12), rng.integers(1, most)
    elif kind == 2:
        height, width = 1, rng.integers(1, 400)
    elif kind == 3:
        height, width = 14 * rng.integers(1, most // 14, 2) + rng.integers(-1, 2, 2)
    else:
        height, width = np.exp(rng.uniform(np.log(8), np.log(most), 2)).astype(int)
    pair = (int(height), int(width))
    return pair if rng.random() < 0.5 else pair[::-1]


def chunk(kind, data, broken=False):
    check = zlib.crc32(kind + data) ^ broken
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_rows(rng, values, bits):
    """Rows of [height, width, channels] samples, packed and filtered as PNG wants them."""
    height, width, channels = values.shape
    if not height or not width:
        return b""
    if bits == 16:
        rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    elif bits == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        ones = (values.reshape(height, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(ones.reshape(height, -1).astype(np.uint8), axis=1)
    step = max(1, channels * bits // 8)
    out, previous = [], np.zeros(rows.shape[1], np.int64)
    for row in rows.astype(np.int64):
        left = np.concatenate([np.zeros(step, np.int64), row])[: len(row)]
        corner = np.concatenate([np.zeros(step, np.int64), previous])[: len(row)]
        kind = int(rng.integers(0, 5))
        if kind == 4:
            guess = left + previous - corner
            near = np.stack([abs(guess - left), abs(guess - previous), abs(guess - corner)])
            paeth = np.stack([left, previous, corner])[near.argmin(0), np.arange(len(row))]
        base = [0, left, previous, (left + previous) // 2, paeth if kind == 4 else 0][kind]
        out.append(bytes([kind]) + ((row - base) & 255).astype(np.uint8).tobytes())
        previous = row
    return b"".join(out)


def png(rng, height, width, exif=None, xmp=None):
    colour, bits = PNG_KINDS[rng.integers(0, len(PNG_KINDS))]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    entries = int(rng.integers(1, (1 << bits) + 1)) if colour == 3 else 0
    # A palette may be shorter than the indices that are used.
    top = (entries - 1 if rng.random() < 0.9 else (1 << bits) - 1) if colour == 3 else (1 << bits) - 1
    values = np.stack([plane(rng, height, width, top) for _ in range(channels)], -1)
    interlace = rng.random() < 0.3
    if interlace:
        data = b"".join(png_rows(rng, values[y::down, x::across], bits) for x, y, across, down in ADAM7)
    else:
        data = png_rows(rng, values, bits)
    packed, parts = zlib.compress(data, int(rng.integers(0, 10))), int(rng.integers(1, 4))
    middle = b""
    if rng.random() < 0.2:
        middle += chunk(b"gAMA", struct.pack(">I", int(rng.integers(20000, 90000))))
    if colour == 3:
        middle += chunk(b"PLTE", rng.integers(0, 256, 3 * entries).astype(np.uint8).tobytes())
    if rng.random() < 0.3 and colour in (0, 2, 3):
        size = {0: 2, 2: 6, 3: int(rng.integers(1, entries + 1)) if entries else 0}[colour]
        clear = rng.integers(0, min(256, 1 << bits), size).astype(np.uint8)
        if rng.random() < 0.7 and colour == 3:
            clear[:] = 255
            clear[rng.integers(0, size)] = 0
        elif rng.random() < 0.8 and colour != 3:
            # A colour that is there.
            at = values[rng.integers(0, height), rng.integers(0, width)]
            clear = np.asarray(at, ">u2").view(np.uint8)
        middle += chunk(b"tRNS", clear.tobytes())
    if rng.random() < 0.1 and colour in (2, 6):
        middle += chunk(b"PLTE", rng.integers(0, 256, 3 * 5).astype(np.uint8).tobytes())
    late = b""
    if exif:
        made = rng.integers(0, 3)
        if made == 2:
            text = b"\nexif\n%8d\n" % len(exif) + b"\n".join(exif.hex().encode()[i: i + 72] for i in range(0, 2 * len(exif), 72)) + b"\n"
            middle += chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
        elif made == 1:
            late += chunk(b"eXIf", exif)
        else:
            middle += chunk(b"eXIf", exif)
    if xmp:
        middle += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    cut = [len(packed) * i // parts for i in range(parts + 1)]
    idat = b"".join(chunk(b"IDAT", packed[a:b]) for a, b in zip(cut, cut[1:]))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlace))
    end = chunk(b"IEND", b"") if rng.random() < 0.95 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + idat + late + end


def exif_block(rng, orientation):
    """A TIFF directory with the orientation somewhere in it, in either order of bytes and several kinds of number."""
    order = "<>"[rng.integers(0, 2)]
    kind, form = [(3, "H"), (3, "H"), (3, "H"), (4, "I"), (1, "B"), (9, "i"), (11, "f"), (8, "h")][rng.integers(0, 8)]
    value = struct.pack(order + form, orientation).ljust(4, b"\0")
    entries = [struct.pack(order + "HHI", 0x0112, kind, 1) + value]
    tail = b"camera\0\0"
    start = 8 + 2 + 12 * 3 + 4
    if rng.random() < 0.5:
        entries.insert(int(rng.integers(0, 2)), struct.pack(order + "HHII", 0x010F, 2, 7, start))
    if rng.random() < 0.3:
        entries.append(struct.pack(order + "HHI", 0x0112, 3, 1) + struct.pack(order + "H", 2).ljust(4, b"\0"))
    body = struct.pack(order + "H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return (head + body).ljust(start, b"\0") + tail


def xmp_block(rng, orientation):
    if rng.random() < 0.5:
        return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    return b"<x:xmpmeta><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>" % orientation


def jpeg(rng, height, width, exif=None, xmp=None):
    mode = ["RGB", "RGB", "RGB", "L", "CMYK"][rng.integers(0, 5)]
    values = picture(rng, height, width, {"RGB": 3, "L": 1, "CMYK": 4}[mode])
    planes = [Image.fromarray(np.ascontiguousarray(values[..., i])) for i in range(values.shape[-1])]
    image = planes[0] if mode == "L" else Image.merge(mode, planes)
    options = {"quality": int(rng.integers(5, 101)), "progressive": bool(rng.random() < 0.4), "optimize": bool(rng.random() < 0.3)}
    if mode == "RGB":
        options["subsampling"] = int(rng.integers(0, 3))
        options["keep_rgb"] = bool(rng.random() < 0.1)
        if options["keep_rgb"]:
            options["subsampling"] = 0
    if rng.random() < 0.3:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    try:
        data = saved(image, "JPEG", options)
    except OSError:  # the writer's buffer was too small for its one piece
        data = saved(image, "JPEG", {"quality": options["quality"]})
    return with_segments(rng, data, exif, xmp)


def with_segments(rng, data, exif, xmp):
    extra = b""
    if exif:
        block = b"Exif\0\0" + exif
        extra += b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    if xmp:
        block = b"http://ns.adobe.com/xap/1.0/\0" + xmp
        extra += b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    return data[:2] + extra + data[2:]


def webp(rng, height, width, exif=None, xmp=None):
    alpha = rng.random() < 0.4
    values = picture(rng, height, width, 4 if alpha else 3)
    image = Image.fromarray(values, "RGBA" if alpha else "RGB")
    options = {"lossless": bool(rng.random() < 0.4), "quality": int(rng.integers(0, 101)), "method": int(rng.integers(0, 5)),
               "exact": bool(rng.random() < 0.5)}
    if exif:
        options["exif"] = exif
    if xmp:
        options["xmp"] = xmp
    if rng.random() < 0.2:
        options |= {"save_all": True, "duration": 40,
                    "append_images": [Image.fromarray(picture(rng, height, width, values.shape[-1]), image.mode) for _ in range(2)]}
    return saved(image, "WEBP", options)


def saved(image, kind, options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture_file(rng, height, width):
    """The bytes of a random file with a picture of this size; may be turned by EXIF or XMP."""
    exif = exif_block(rng, int(rng.integers(0, 10))) if rng.random() < 0.4 else None
    xmp = xmp_block(rng, int(rng.integers(0, 10))) if rng.random() < 0.2 else None
    make = [png, jpeg, webp][rng.integers(0, 3)]
    return make(rng, height, width, exif, xmp)
