"""Strings on which tokenizers differ: by hand, and by a keyed random generator over awkward alphabets. None holds a NUL."""

import unicodedata

from oracle_common import random

BY_HAND = [
    "", " ", "  ", "   a", "a   ", "\n", "\r\n", "\r", "\n\n\n", " \n", "\n ", " \n \n x", "\t", "\t\tx", "a\tb", "a \t b", "x\n\ny", "x \n\n y",
    "x\r\n\r\ny", "x.\r\n", "x.\n\n y", "...\n\n\nend", "end. \n", "\u00a0", "a\u00a0b", "\u3000x", "a\u2003b", "\u2028", "a\u2029b", "\u0085x",
    "a\u200bb", "a\u200db", "\ufeffa", "a\u00adb", "\u180e", "\x07\x1b[0m", "\x7f", "\x0b", "\x0c", "a\x0bb",
    "\x1c\x1d\x1e\x1f", "a\x1fb",
    "I'm", "I'M", "we're", "WE'RE", "you've", "he'll", "HE'LL", "she'd", "it's", "IT'S", "don't", "DON'T", "'s", "'S", "''s", "'sit", "'restless",
    "'t'd'll", "x's's", "'\u017f", "it'\u017f", "'\u212a", "l'\u00e9t\u00e9", "\u2019s", "don\u2019t", "rock 'n' roll", "'", "''", "' s", "'ve'", "'Ve", "'lL",
    "0", "10", "123456", "3.14", "1,000", "-5", "+7", "1e-9", "0x1F", "12:30", "v2.0", "a1b2", "1a", "a1", " 1", "  1", "\n1", "1 2 3", "row 1: 2",
    "\u0663\u0664", "\u00bd", "\u2167", "\u00b2", "x\u00b2", "\u2460", "\u0be7\u0bb0", "\u4e00\u4e8c", "\U0001d7d8", "1\u0301", "\u09f4",
    "hello world", "Hello, World!", " hello", "HELLO", "hElLo", "snake_case_name", "camelCaseName", "a-b", "a_b", "_a", "__init__", "#tag",
    "@user", "$x$", "50%", "(a)", "[a]", "{a}", "((a))", "a.b.c", "a..b", "a...", ".a", ",a", ";a", "!a", "?a", " .a", " (a", "/usr/bin", "C:\\x",
    "http://example.org/a?b=c&d=e#f", "x@y.org", "\"quoted\"", "`code`", "```c\nint main(void) {\n    return 0;\n}\n```", "a == b && c != d",
    "<think>", "</think>", "<answer>", "</answer>", "<think></think>", "<think>a</think><answer>b</answer>", "them.</think><answer>3</answer>",
    "x.</think>\n<answer>boot</answer>\n", "<think>\nrow 1: bag 1, boot, bag 2.\n</think>\n<answer>\n2\n</answer>", "</think", "think>", "<<think>>",
    " <think> a </think> ", "?</think>", "!</think>", "3</think>", ")</think>", ".\n</think>", "</think></think>", "><", "><answer", ".</", "</",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|><|vision_pad|>",
    "<|im_start|>user\nHow many boot are in the picture?<|im_end|>\n", "a<|im_end|>b", "a <|im_end|> b", "<|im_end|> b", "a\n<|im_end|>\nb",
    "<|im_start", "<|im_start|", "|im_start|>", "<|IM_END|>", "<| im_end |>", "<|im_end|><|im_end|>", "<<|im_end|>>", "<|im_<|im_end|>end|>",
    "<|im_\u0065\u0301nd|>", "e<|im_end|>\u0301", "\u0301<|im_end|>e\u0301",
    "caf\u00e9", "cafe\u0301", "\u00e9", "e\u0301", "A\u030a", "\u212b", "\u1e69", "s\u0323\u0307", "s\u0307\u0323", "\u1100\u1161\u11a8", "\uac01", "\uac00\u11a8",
    "\ufb01", "\u2126", "\uf900", "\u0344", "\u0958", "q\u0307\u0323", "\u0301", "a\u0301\u0301", "\u0e33", "\u0b95\u0bcb", "\u0b95\u0bc7\u0bbe", "\U0001d15e",
    "\u6771\u4eac", "\u4eca\u65e5\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "stra\u00dfe", "STRASSE", "\u0130stanbul", "\u01c5", "na\u00efve", "\u00e6\u00f8\u00e5", "\u0142\u00f3d\u017a",
    "\U0001f642", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "a\U0001f642b", " \U0001f642", "\U0001f642\U0001f642",
    "\U00010348", "\U0001f9ff x", "\u0378", "\ue000", "\ufffd", "\uffff", "\U0010ffff", "\U000e0041", "\u20ac5", "\u00a31,000", "\u2014dash\u2014", "\u201cquote\u201d",
    "a" * 50, "ab" * 40, "!" * 40, " " * 40, "\n" * 20, "1" * 30, "\u00e9" * 20, "x " * 20, " \n" * 10, "=-" * 20, "the " * 10,
    "How many sneaker are in the picture?", "True or false: there is a sandal in row 1.", "Which item is in row 1, column 2?",
    "row 1: boot, bag, sandal. row 2: dress, tshirt, pullover.", "Let me look at the picture row by row.", "boot", " boot", "boots", "reboot", "Boot",
]
ALPHABETS = {
    "letters": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "blanks": " \t\n\r  \n \u00a0\u3000\u2009\x0b\x0c\u0085\u2028",
    "marks": ".,:;!?'\"`()[]{}<>/\\|@#$%^&*-_+=~",
    "digits": "0123456789\u0663\u00bd\u2167\uff15",
    "accents": "\u00e9\u00e8\u00fc\u00f1\u0301\u0308\u0323\u00df\u0130\u017f\u212b\u0327",
    "scripts": "\u0416\u0451\u05d0\u0634\u0915\u094d\u0937\u0e01\u0e33\u1100\u1161\uac00\u4e2d\u6587\u30ab\u3099\u3042",
    "pictures": "\U0001f642\U0001f468\u200d\u2764\ufe0f\U0001f1eb\U0001f3fd\U00010348\U0001d7d8",
}
PIECES = ["'s", "'T", "'re", "'LL", "</think>", "<think>", "<answer>", "</answer>", "<|im_end|>", "<|im_start|>", "\r\n", "  ", " \n", "...", " the",
          "boot", " row", "ing", "http://", "://", "\n\n", ".</", "<|", "|>"]


def sample(key, specials=True):
    """One random string: runs over alphabets, pieces that matter, now and then any code point at all."""
    rng = random("tricky", *key)
    parts = []
    names = list(ALPHABETS)
    for _ in range(int(rng.integers(1, 9))):
        choice = rng.random()
        if choice < 0.15:
            piece = PIECES[int(rng.integers(len(PIECES)))]
            parts.append(piece if specials or not piece.startswith("<|im") else "<|")
        elif choice < 0.25:
            parts.append("".join(any_character(rng) for _ in range(int(rng.integers(1, 4)))))
        else:
            alphabet = ALPHABETS[names[int(rng.choice(len(names), p=[0.35, 0.15, 0.15, 0.1, 0.1, 0.1, 0.05]))]]
            parts.append("".join(alphabet[int(i)] for i in rng.integers(0, len(alphabet), int(rng.integers(1, 7)))))
    return "".join(parts)


def any_character(rng):
    """Any code point below U+20000 that has long been assigned: newer ones differ between Unicode versions."""
    while True:
        limit = (0x250, 0x3000, 0x20000)[int(rng.integers(3))]
        character = chr(int(rng.integers(1, limit)))
        if is_old(character):
            return character


def is_old(character):
    """Assigned since Unicode 3.2: every library in use agrees on its category."""
    return unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co")


def strings(seed, count):
    """`count` generated strings for the seed; the same everywhere."""
    return [sample((seed, index)) for index in range(count)]


def random_ids(key, limit, count, barred):
    """Lists of random ids below the limit, without those barred."""
    rng = random("ids", *key)
    lists = [rng.integers(0, limit, int(rng.integers(1, 14))).tolist() for _ in range(count)]
    return [[i for i in ids if i not in barred] for ids in lists]
