"""Plain English from word lists and sentence patterns, so that a small vocabulary is one of English and not of one task."""

import random

NOUNS = """answer apple autumn baker balance basket beach bell bird bottle bread bridge brother building butter candle carpet
castle chair change child church circle city cloud coast coffee colour corner country cousin dance daughter desk dinner
distance doctor door dream engine evening example family farmer father field finger fire flower forest friend future
garden glass gold grandmother ground harbour hat head heart hill history holiday home horse house hour idea island journey
key kitchen lamp language leaf lesson letter library light machine market matter meadow memory message metal milk mirror
moment money month moon morning mother mountain music name needle neighbour night notice number ocean office orange order
page painter paper parent park part path pattern pencil people piece place plan plant point question rain reader reason
result river road room school sea season shadow shape sheep shirt shop side silence silver sister sky smile snow song sound
spring square star station step stone story street student summer sun table teacher thing thought time tower town train
tree village voice wall watch water weather week wheel wind window winter woman wood word work world writer year""".split()
ADJECTIVES = """ancient beautiful better big black blue bright brown careful certain clean clear clever cold common cool
curious dark deep different difficult dry early easy empty famous fast fine first free fresh full gentle golden good great
green grey happy hard heavy high important interesting kind large last late left light little long lonely lost low narrow
natural new next old only open ordinary other perfect plain pleasant poor possible quick quiet ready red rich right round
second serious sharp short simple slow small soft special strange strong sweet tall thick thin third tired usual warm weak
white whole wide wild wise wonderful wooden yellow young""".split()
VERBS = """answered asked became began believed broke brought built called carried caught changed chose cleaned closed
counted covered crossed described discovered drew dropped enjoyed expected explained felt filled finished followed forgot
found gathered gave heard helped hid hoped imagined invented joined kept knew learned left liked listened lived looked lost
loved made measured mentioned met moved needed noticed opened painted passed picked placed planned played prepared promised
pulled pushed reached read remembered repaired returned said saw sent shared showed sold started stopped studied talked
thought told took touched travelled tried turned understood used visited waited walked wanted washed watched wished
wondered worked wrote""".split()
ADVERBS = """again almost already always away carefully early easily gently happily here later never nearly now often once
only perhaps quickly quietly rather sadly seldom slowly softly sometimes soon still suddenly then there together today
usually very well yesterday""".split()
NAMES = "Anna Ben Clara David Edith Frank Grace Henry Ivy Jack Kate Leo Mary Nora Oscar Paul Rose Sam Tom Victor".split()
PATTERNS = [
    "The {a} {n} {v} the {n} before the {n} {v}.",
    "{N} {v} that the {n} was {d} {a}, but nobody {v} why.",
    "When the {n} {v}, every {n} in the {n} {v} {d}.",
    "It was a {a}, {a} {n}, and {N} {v} it {d}.",
    'They {v} the {n} because it was {a}, and she {v}: "What is this {n} doing here?"',
    "There were three {a} {n}s on the {n}; two of them {v} away from the {n}.",
    "If you have a {n} and a {n}, then you can always find the {n} between them.",
    "He {v} at the {n} for an hour, which is why the {n} {v} {d}.",
    "In the {a} {n}, {N} and {N} {v} about their {n} with some {n}s.",
    "We would like to know how many {n}s there are, and whether each {n} is {a} or {a}.",
    "{N}'s {n} didn't change; it's the {n} that {v}, isn't it?",
    "Nothing is more {a} than a {n} under the {n}, however {a} it may be.",
    "This {n} should not be {a}, though its {n} could have been {d} {a}.",
    "On the left side of the picture we see a {n}, and on the right there is a {a} {n}.",
    "First she {v} the {n}. Then she {v} into the {n}. At last she {v} out of it.",
    "What will happen to the {n} after the {n} {v} {d}?",
    "Read the text (about {i} pages) and write down which {n} is the {a} one - or none at all!",
    "By {i} o'clock over {j} {n}s had {v} through the {n}, so we {v} with them.",
]


def lines(seed, count):
    """Yields `count` sentences; every word of the lists above occurs."""
    rng = random.Random(seed)
    bags = {}

    def draw(words, kind):
        # Drawing without replacement gives every word nearly the same count.
        if not bags.get(kind):
            bags[kind] = rng.sample(words, len(words))
        return bags[kind].pop()

    lists = {"n": NOUNS, "a": ADJECTIVES, "v": VERBS, "d": ADVERBS, "N": NAMES}
    for index in range(count):
        text = PATTERNS[index % len(PATTERNS)]
        for kind, words in lists.items():
            while "{" + kind + "}" in text:
                text = text.replace("{" + kind + "}", draw(words, kind), 1)
        yield text.replace("{i}", str(rng.randint(2, 12))).replace("{j}", str(rng.randint(20, 900)))
