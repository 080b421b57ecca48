"""Text in the style of the quickstart: questions, captions, bare answers and traces about a grid of clothes."""

import random

ITEMS = ["trouser", "pullover", "dress", "sandal", "sneaker", "bag", "boot", "tshirt"]
ALIKE = [["boot", "sandal", "sneaker"], ["pullover", "dress", "tshirt"], ["trouser", "bag"]]

OPENINGS = [
    "Let me look at the picture row by row.",
    "I will go through the picture row by row.",
    "First I list what I see.",
    "Let me list the items in each row.",
    "I start at the top left and read every row.",
    "To answer this I need to look closely at each item.",
    "The picture is a small grid of clothes and shoes.",
    "Okay, the question is about the items in this picture.",
]
FILLERS = [
    "Some of these look alike, so I take care.",
    "It helps to name every item before I answer.",
    "I should not miss any of them.",
    "Let me check the shape of each one.",
    "Shoes can look like each other, so I look twice.",
    "The order matters here.",
    "I keep count while I read.",
    "Then I can answer the question.",
    "Nothing else is in the picture.",
    "That seems right.",
]


def grid(rng, rows, columns):
    kinds = rng.sample(ITEMS, rng.randint(2, 4))
    return [[rng.choice(kinds) for _ in range(columns)] for _ in range(rows)]


def listing(cells, counted=()):
    count, lines = 0, []
    for number, row in enumerate(cells, 1):
        names = []
        for item in row:
            if item in counted:
                count += 1
                names.append(f"{item} {count}")
            else:
                names.append(item)
        lines.append(f"row {number}: {', '.join(names)}.")
    return " ".join(lines), count


def question(rng, cells):
    """A question about the grid, the answer, the last sentence of the reasoning, and the kinds that it counts."""
    rows, columns = len(cells), len(cells[0])
    flat = [item for row in cells for item in row]
    r, c = rng.randrange(rows), rng.randrange(columns)
    kind = rng.randrange(5)
    if kind == 0:
        item = rng.choice(flat)
        n = flat.count(item)
        verb = "is 1" if n == 1 else f"are {n}"
        return f"How many {item} are in the picture?", str(n), f"So there {verb} of them.", (item,)
    if kind == 1 and len(set(flat)) > 1:
        pair = rng.sample(sorted(set(flat)), 2)
        n = sum(flat.count(item) for item in pair)
        return (f"How many {pair[0]} and {pair[1]} are in the picture altogether?", str(n),
                f"So there are {n} of them altogether.", tuple(pair))
    if kind == 2:
        item = cells[r][c]
        return (f"Which item is in row {r + 1}, column {c + 1}?", item,
                f"The item in row {r + 1}, column {c + 1} is {item}.", ())
    if kind == 3:
        item = cells[r][c]
        options = [item] + rng.sample([i for i in ITEMS if i not in cells[r]], 2)
        rng.shuffle(options)
        return f"Which of these is in row {r + 1}: {', '.join(options)}?", item, f"Row {r + 1} has {item}.", ()
    item = rng.choice(ITEMS)
    there = item in cells[r]
    text = f"So there is {'a' if there else 'no'} {item} in row {r + 1}."
    return f"True or false: there is a {item} in row {r + 1}.", "true" if there else "false", text, ()


def trace(rng, cells, answer, conclusion, counted):
    fillers = [rng.choice(OPENINGS)] + rng.sample(FILLERS, rng.randint(0, 2))
    listed, _ = listing(cells, counted)
    return f"<think>{' '.join(fillers)} {listed} {conclusion}</think><answer>{answer}</answer>"


def lines(seed, count):
    """Yields `count` samples, each a handful of strings as they occur in a chat."""
    rng = random.Random(seed)
    for _ in range(count):
        cells = grid(rng, *rng.choice([(2, 3), (2, 3), (2, 2), (3, 3)]))
        ask, answer, conclusion, counted = question(rng, cells)
        yield "Describe the picture."
        yield listing(cells)[0]
        yield ask
        yield answer
        yield trace(rng, cells, answer, conclusion, counted)


def training_lines(seed, count):
    """The same, cut after every opening tag: else the vocabulary would hold `>boot` beside `boot` and ` boot`."""
    for text in lines(seed, count):
        yield from text.replace("<think>", "<think>\0").replace("<answer>", "<answer>\0").split("\0")
