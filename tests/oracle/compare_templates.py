"""Random templates and conversations, rendered by Poise (build/release/tests/tool_render) and by transformers' Jinja.

    compare_templates.py [CASES [SEED]]

Prints what differs: another text, a text where the reference raises, an error where it has a text. Errors that say that
something is not supported are counted apart.
"""

import json
import random
import subprocess
import sys

from oracle_common import ROOT
from transformers.utils.chat_template_utils import render_jinja_template

NAMES = ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "numbers", "words", "table", "deep", "word",
         "number", "nothing", "real", "missing", "ns.a", "ns.b", "x", "y", "message"]
TEXTS = ["", "a", "Hello World", "  spaced\t", "é😀ß", "one,two,,three", "line\nbreak\r\nmore", "x-y_z", "<|im_end|>", "ABC abc",
         "12", "3.5", " 7 ", "a b  c", "it's", 'say "hi"', "\\", "{}", "%s", "ǆ İı", "true", "\u2028\x1c", "tab\there", "ﬁ ŉ"]
FILTERS = ["trim", "length", "count", "upper", "lower", "capitalize", "title", "first", "last", "default('d')", "d('e', true)",
           "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'))", "tojson(sort_keys=true)",
           "list", "string", "int", "float", "int(7)", "abs", "round", "round(1)", "round(1, 'floor')", "reverse", "sort",
           "sort(reverse=true)", "sort(attribute='role')", "unique|list", "join", "join(', ')", "join('-', attribute='role')",
           "replace('a', 'b')", "replace('', '.')", "replace('o', '0', 1)", "items|list", "dictsort", "dictsort(reverse=true)",
           "map('upper')|list", "map(attribute='role')|list", "map(attribute='x.0', default='q')|list",
           "selectattr('role')|list", "selectattr('role', 'equalto', 'user')|list", "rejectattr('content', 'string')|list",
           "select|list", "reject('none')|list", "select('string')|list", "select('in', ['a', 'b'])|list", "indent", "indent(2, true)",
           "indent('> ', blank=true)", "safe", "e", "min", "max", "sum", "batch(2)|list", "attr('x')", "wordcount",
           "format('z')", "center(9)", "trim('a ')", "map('length')|list", "map('int')|sum", "length|string", "list|length"]
TESTS = ["defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean",
         "true", "false", "odd", "even", "divisibleby(3)", "divisibleby 2", "equalto('a')", "eq 1", "ne('')", "lt 3", "gt(1)", "le 2",
         "ge 2", "in('abc')", "in [1, 2]", "lower", "upper", "callable", "sameas(none)", "sameas true", "escaped"]
METHODS = ["strip()", "lstrip()", "rstrip()", "strip('a ')", "split()", "split(',')", "split(',', 1)", "rsplit(None, 1)", "rsplit('l', 1)",
           "split(maxsplit=1)", "splitlines()", "splitlines(true)", "startswith('H')", "endswith(('d', 'a'))", "upper()", "lower()",
           "title()", "capitalize()", "swapcase()", "replace('l', 'L')", "replace('l', 'L', 1)", "find('o')", "rfind('o')", "index('a')",
           "count('l')", "count('')", "join(['p', 'q'])", "join(words)", "partition(' ')", "rpartition(',')", "removeprefix('He')",
           "removesuffix('d')", "ljust(8)", "rjust(8, '*')", "center(9)", "center(8, '-')", "zfill(6)", "isdigit()", "isalpha()",
           "isupper()", "islower()", "isspace()", "istitle()", "isalnum()", "get('role')", "get('x', 'dflt')", "get(1)", "items()|list",
           "keys()|list", "values()|list", "items()", "keys()", "index(1)", "format(1, 'b')", "find('l', 3)", "find('l', -3, 11)",
           "startswith('l', 2)", "endswith('x', 0, -1)", "append(1)", "pop()", "update({})", "copy()"]
KEYS = ["role", "content", "x", "y", "name", "type", "text", "a", "items", "keys", "get", "_p", "upper"]
CONSTANTS = ["0", "1", "2", "-1", "3", "10", "2.5", "0.1", "1e3", "1e20", "true", "false", "none", "True", "None", "[]", "{}", "()", "[1, 2, 3]",
             "['a', 'B', 'c']", "(1, 'x')", "{'role': 'u', 'x': [1]}", "{1: 2}", "{'b': 1, 'a': {'c': none}}", "range(3)", "range(5, 0, -2)",
             "[[1, 2], [3]]", "'%s-%d' % ('a', 3)", "'%5.2f|%-4s|%04d|%x' % (1.5, 'a', 7, 255)", "'{}/{}'.format(1, 'b')",
             "'{0:>5}{x:.2f}'.format('q', x=2)", "dict(a=1, b='c')", "namespace(a=1)", "'a' 'b'", "1_000", "0x1f", "'\\u00e9\\n\\x41\\q'",
             "['x', none, 1.0, true, {'k': \"it's\"}]"]
TEXT_FILTERS = ["trim", "upper", "lower", "capitalize", "title", "replace('a', 'b')", "replace('', '.')", "indent", "indent(2, true)",
                "indent('> ', blank=true)", "reverse", "safe", "e", "first", "last", "string", "tojson", "tojson(ensure_ascii=true)", "center(9)",
                "trim('a ')", "default('z', true)", "list", "wordcount", "length"]
TEXT_METHODS = [method for method in METHODS if not any(method.startswith(word) for word in
                ("get", "items", "keys", "values", "append", "pop", "update", "copy", "index"))]
LIST_FILTERS = ["reverse|list", "first", "last", "length", "map('string')|list", "map('length')|list", "select|list", "reject('none')|list",
                "select('string')|list", "batch(2)|list", "batch(2, 'f')|list", "join('-')", "tojson", "map('tojson')|join(' ')", "list",
                "select('number')|sum", "map('string')|sort", "map('string')|map('upper')|unique|list"]
MESSAGE_FILTERS = ["map(attribute='role')|list", "selectattr('role', 'equalto', 'user')|list", "rejectattr('role', 'in', ['user', 'tool'])|list",
                   "selectattr('content', 'string')|list", "selectattr('name', 'defined')|list", "map(attribute='x', default='q')|list",
                   "sort(attribute='role')", "map(attribute='content')|map('string')|list", "groupby('role')", "max(attribute='role')"]
SAFE_TESTS = [test for test in TESTS if test.split()[0].split("(")[0] not in ("odd", "even", "divisibleby", "lt", "gt", "le", "ge", "in")]
BINARY = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, items):
        return self.r.choice(items)

    def text(self):
        return repr(self.pick(TEXTS)) if self.r.random() < 0.7 else json.dumps(self.pick(TEXTS), ensure_ascii=False)

    def atom(self):
        kind = self.r.random()
        return self.pick(NAMES) if kind < 0.5 else self.text() if kind < 0.7 else self.pick(CONSTANTS)

    def typed(self, kind, depth=0):
        """An expression that has this type, unless something odd happens."""
        leaf = depth > 2 or self.r.random() < 0.2

        def inner(of):
            return self.group(self.typed(of, depth + 1))
        if kind == "any":
            kind = self.pick(["text", "text", "number", "list", "dict", "bool", "odd"])
        if kind == "odd":
            return self.atom()
        if kind == "text":
            if leaf:
                return self.pick([self.text(), "word", "bos_token", "messages[0].role", "words[1]", "words|last", "missing|default('q')"])
            return self.pick([
                lambda: f"{inner('text')}|{self.pick(TEXT_FILTERS)}", lambda: f"{inner('text')}.{self.pick(TEXT_METHODS)}",
                lambda: f"{inner('text')} + {inner('text')}", lambda: f"{inner('any')} ~ {inner('any')}",
                lambda: f"{inner('text')}[{self.slice()}]", lambda: f"{inner('any')}|string", lambda: f"{inner('dict')}|tojson",
                lambda: f"{inner('list')}|tojson({self.pick(['', 'indent=2', 'sort_keys=true', 'ensure_ascii=true'])})",
                lambda: f"{inner('list')}|join({self.text()})", lambda: f"{inner('text')} * {self.pick(['0', '2', '3'])}",
                lambda: f"{inner('text')} if {inner('bool')} else {inner('text')}", lambda: f"{inner('number')}|string",
                lambda: f"'%s|%r' % ({inner('any')}, {inner('text')})", lambda: f"'{{}}-{{a!r}}'.format({inner('text')}, a={inner('any')})",
                lambda: f"{inner('text')}.replace({self.text()}, {self.text()})", lambda: f"{inner('text')} or {inner('text')}"])()
        if kind == "number":
            if leaf:
                return self.pick(["number", "real", "1", "-2", "2.5", "numbers[0]", "numbers|max", "7", "0.1", "words|length", "true"])
            return self.pick([
                lambda: f"{inner('number')} {self.pick(['+', '-', '*'])} {inner('number')}", lambda: f"{inner('text')}|length",
                lambda: f"{inner('number')} {self.pick(['/', '//', '%'])} {self.pick(['3', '2.5', '-2', '7'])}", lambda: f"-{inner('number')}",
                lambda: f"{inner('number')}|{self.pick(['abs', 'int', 'float', 'round', 'round(1)', 'round(1, chr)'.replace('chr', repr('ceil'))])}",
                lambda: f"{inner('text')}|int(3)", lambda: f"{inner('text')}|float", lambda: f"{inner('text')}.{self.pick(['find', 'count', 'rfind'])}({self.text()})",
                lambda: f"{inner('list')}|length", lambda: f"{self.pick(['2', '-3', '1.5'])} ** {self.pick(['2', '3', '0'])}"])()
        if kind == "list":
            if leaf:
                return self.pick(["messages", "numbers", "words", "[1, 'a', none]", "range(4)", "(1, 2.5)", "table.items()|list", "words[1:]", "deep"])
            return self.pick([
                lambda: f"[{inner('any')}, {inner('any')}]", lambda: f"{inner('text')}.split({self.pick(['', repr(','), repr('a'), 'none, 1', repr(' ') + ', 1'])})",
                lambda: f"{inner('list')}[{self.slice()}]", lambda: f"words + {inner('text')}.splitlines()", lambda: f"{inner('list')}|list",
                lambda: f"{inner('list')}|{self.pick(LIST_FILTERS)}", lambda: f"words|{self.pick(['sort', 'sort(true)', 'map(chr)|list'.replace('chr', repr('upper')), 'unique|list', 'sort(case_sensitive=true)'])}",
                lambda: f"messages|{self.pick(MESSAGE_FILTERS)}", lambda: f"{inner('dict')}|dictsort", lambda: f"{inner('dict')}.{self.pick(['keys', 'values', 'items'])}()|list",
                lambda: f"{inner('text')}.partition({self.pick([repr(' '), repr('l')])})", lambda: f"numbers|{self.pick(['sort', 'select(chr)|list'.replace('chr', repr('odd')), 'batch(3)|list', 'reverse|list'])}"])()
        if kind == "dict":
            if leaf:
                return self.pick(["table", "messages[0]", "messages|last", "{'b': 1, 'a': [2]}", "dict(q=1)", "{}", "deep[0]"])
            return self.pick([
                lambda: f"{{{self.text()}: {inner('any')}, 'k': {inner('any')}}}", lambda: f"dict(a={inner('any')}, b={inner('text')})",
                lambda: f"dict({inner('dict')}, z={inner('number')})"])()
        if leaf:
            return self.pick(["true", "false", "add_generation_prompt", "loop is defined", "not word", "number > 2"])
        return self.pick([
            lambda: f"{inner('number')} {self.pick(['<', '>', '<=', '>=', '==', '!='])} {inner('number')}", lambda: f"{inner('any')} == {inner('any')}",
            lambda: f"{inner('text')} {self.pick(['in', 'not in'])} {inner('text')}", lambda: f"{inner('text')} {self.pick(['<', '>', '==', '!='])} {inner('text')}",
            lambda: f"{inner('any')} in {inner('list')}", lambda: f"{self.text()} in {inner('dict')}", lambda: f"not {inner('any')}",
            lambda: f"{inner('any')} is {self.pick(['', 'not '])}{self.pick(SAFE_TESTS)}", lambda: f"{inner('bool')} {self.pick(['and', 'or'])} {inner('bool')}",
            lambda: f"{inner('text')}.{self.pick(['startswith', 'endswith'])}({self.text()})", lambda: f"{inner('text')}.{self.pick(['isdigit', 'isupper', 'isalpha', 'isspace', 'islower', 'istitle', 'isalnum'])}()",
            lambda: f"{inner('number')} is {self.pick(['odd', 'even', 'divisibleby(3)', 'lt 3'])}", lambda: f"1 < {inner('number')} < 9"])()

    def expression(self, depth=0):
        kind = self.r.random()
        if depth == 0 and kind < 0.93:
            return self.typed("any")
        if depth > 3 or kind < 0.12:
            return self.atom()
        inner = self.expression(depth + 1)
        if kind < 0.34:
            return f"{self.group(inner)}|{self.pick(FILTERS)}"
        if kind < 0.46:
            return f"{self.group(inner)}.{self.pick(METHODS)}"
        if kind < 0.55:
            return f"{self.group(inner)} is {'not ' if self.r.random() < 0.3 else ''}{self.pick(TESTS)}"
        if kind < 0.70:
            return f"{self.group(inner)} {self.pick(BINARY)} {self.group(self.expression(depth + 1))}"
        if kind < 0.78:
            return f"{self.group(inner)}[{self.pick(['0', '1', '-1', repr(self.pick(KEYS)), self.slice(), self.slice()])}]"
        if kind < 0.85:
            return f"{self.group(inner)}.{self.pick(KEYS)}"
        if kind < 0.90:
            return f"{inner} if {self.expression(depth + 1)}" + (f" else {self.atom()}" if self.r.random() < 0.8 else "")
        if kind < 0.94:
            return f"not {self.group(inner)}"
        if kind < 0.96:
            return f"-{self.group(inner)}"
        return self.pick([f"[{inner}, {self.atom()}]", f"({inner}, )", f"{{{self.text()}: {inner}}}", f"m({inner})", f"m(b={inner})",
                          f"{self.atom()} < {self.atom()} <= {self.atom()}"])

    def group(self, inner):
        return f"({inner})" if " " in inner or "|" in inner or inner.startswith("-") or self.r.random() < 0.1 else inner

    def slice(self):
        def bound():
            return self.pick(["", "", "0", "1", "-1", "2", "-2", "9", "none"])
        return f"{bound()}:{bound()}" + (f":{self.pick(['', '1', '-1', '2', '-2'])}" if self.r.random() < 0.4 else "")

    def space(self):
        return "".join(self.pick([" ", "\n", "  ", "\t", "", "\n\n", "text ", "é", "- ", "."]) for _ in range(self.r.randrange(4)))

    def tag(self, body):
        return self.pick(["{%", "{%", "{%-", "{%+"]) + " " + body + " " + self.pick(["%}", "%}", "-%}", "+%}"])

    def body(self, depth, loop=False):
        return "".join(self.statement(depth + 1, loop) for _ in range(self.r.randrange(1, 4)))

    def statement(self, depth=0, loop=False):
        kind = self.r.random()
        if kind < 0.3 or depth > 3:
            return self.space() + self.pick(["{{", "{{", "{{-"]) + f" {self.expression()} " + self.pick(["}}", "}}", "-}}"]) + self.space()
        if kind < 0.45:
            text = self.tag(f"if {self.expression()}") + self.body(depth, loop)
            if self.r.random() < 0.4:
                text += self.tag(f"elif {self.expression()}") + self.body(depth, loop)
            if self.r.random() < 0.6:
                text += self.tag("else") + self.body(depth, loop)
            return self.space() + text + self.tag("endif") + self.space()
        if kind < 0.65:
            over = self.pick(["messages", "messages[1:]", "numbers", "words", "table.items()", "range(3)", "word", "table", self.expression()])
            target = self.pick(["message", "x", "k, v", "x"]) if "items" not in over else "x, y"
            text = f"for {target} in {self.group(over)}" + (f" if {self.expression()}" if self.r.random() < 0.3 else "")
            text = self.tag(text) + self.body(depth, True)
            if self.r.random() < 0.7:
                text += "{{ loop." + self.pick(["index", "index0", "first", "last", "length", "revindex", "revindex0", "previtem", "nextitem",
                                                "cycle('a', 'b')", "changed(x)", "depth"]) + " }}"
            if self.r.random() < 0.2:
                text += self.tag(f"if {self.expression()}") + self.tag(self.pick(["break", "continue"])) + self.tag("endif")
                text += self.body(depth, True)
            if self.r.random() < 0.3:
                text += self.tag("else") + self.body(depth)
            return self.space() + text + self.tag("endfor") + self.space()
        if kind < 0.80:
            return self.tag(f"set {self.pick(['x', 'y', 'x, y', 'ns.a', 'ns.b', 'word'])} = {self.expression()}") + self.space()
        if kind < 0.84:
            return self.tag("set y" + self.pick(["", " | upper", " | trim | length"])) + self.body(depth) + self.tag("endset")
        if kind < 0.88:
            return (self.tag(f"macro m({self.pick(['a', 'a, b=1', 'a=x, b=a', 'a, b=[]'])})") + self.body(depth) +
                    self.pick(["", "{{ a }}{{ b }}", "{{ varargs }}", "{{ kwargs }}"]) + self.tag("endmacro"))
        if kind < 0.91:
            return self.tag(f"with x = {self.expression()}") + self.body(depth) + self.tag("endwith")
        if kind < 0.93:
            return self.tag("filter " + self.pick(["upper", "trim", "replace('a', 'b')", "indent"])) + self.body(depth) + self.tag("endfilter")
        if kind < 0.95:
            return self.tag("generation") + self.body(depth) + self.tag("endgeneration")
        if kind < 0.97:
            return self.space() + self.pick(["{#", "{#-", "{#+"]) + " note\n " + self.pick(["#}", "-#}", "+#}"]) + self.space()
        if kind < 0.98:
            return self.space() + self.tag("raw") + " {{ raw }} {% x %}\n " + self.tag("endraw") + self.space()
        return self.tag("call m(1)") + self.body(depth) + self.tag("endcall")

    def template(self):
        head = "{%- set ns = namespace(a=1, b='q') -%}" if self.r.random() < 0.8 else ""
        return head + "".join(self.statement() for _ in range(self.r.randrange(1, 5)))

    def message(self):
        message = {"role": self.pick(["system", "user", "assistant", "tool"])}
        content = self.pick(TEXTS)
        if self.r.random() < 0.3:
            content = [self.pick([{"type": "text", "text": self.pick(TEXTS)}, {"type": "image"}]) for _ in range(self.r.randrange(3))]
        message["content"] = content
        if self.r.random() < 0.2:
            message[self.pick(["name", "x", "_p", "items"])] = self.pick([1, "n", [1, 2], {"x": None}, 2.5, True])
        return message

    def variables(self):
        return {"messages": [self.message() for _ in range(self.r.randrange(1, 5))],
                "tools": self.pick([None, [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int"}}}}]]),
                "add_generation_prompt": self.r.random() < 0.5,
                "numbers": [self.r.randrange(-5, 20) for _ in range(4)], "words": [self.pick(TEXTS) for _ in range(4)],
                "table": {"b": 1, "a": "z", "C": [1, {"x": 2}], "role": "r"}, "deep": [{"x": [{"y": "z"}]}, {"x": [0]}],
                "word": self.pick(TEXTS), "number": self.r.randrange(-3, 9), "nothing": None, "real": self.pick([0.5, -1.25, 1e16, 3.0, 0.1])}


OWN = {"bos_token": "<s>", "eos_token": "</s>"}


def reference(template, variables):
    variables = dict(variables)
    messages = variables.pop("messages")
    tools = variables.pop("tools")
    try:
        return render_jinja_template([messages], tools=tools, chat_template=template, **variables, **OWN)[0][0], None
    except Exception as error:  # whatever a template can raise
        return None, f"{type(error).__name__}: {error}"


def main():
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    program = subprocess.Popen([ROOT / "build/release/tests/tool_render"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    counts = {"equal": 0, "both refuse": 0, "not supported": 0, "no text of its own": 0, "differ": 0}
    shown = 0
    for case in range(cases):
        maker = Maker(seed * 1000003 + case)
        template, variables = maker.template(), maker.variables()
        text, error = reference(template, variables)
        program.stdin.write(json.dumps({"template": template, "given": {"documents": None, **variables}, "own": OWN}) + "\n")
        program.stdin.flush()
        ours = json.loads(program.stdout.readline())
        if text is not None and any(word in text for word in ("<generator object", " object at 0x", "<function ", "<bound method", "<built-in")):
            kind = "no text of its own"
        elif text is None:
            kind = "both refuse" if "error" in ours else "differ"
        elif "error" in ours:
            kind = "not supported" if "not supported" in ours["error"] or "64 bits" in ours["error"] else "differ"
        else:
            kind = "equal" if ours["text"] == text else "differ"
        counts[kind] += 1
        if kind == "differ" and shown < 12:
            shown += 1
            print(f"--- case {case}\n{template!r}\n{variables}\nreference: {text!r} {error}\nours: {ours}\n")
    print(counts)
    return counts["differ"] != 0


if __name__ == "__main__":
    sys.exit(main())
