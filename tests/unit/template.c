// The template evaluator: what is refused and how it is said, its bounds, and where each byte of the text is from.
// That rendering equals Jinja's: parity.chat, and tests/oracle/compare_templates.py.
#include "common/text/template.h"
#include "tests/lib/check.h"

static const char variables[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"  Caf\\u00e9 <x> \"},"
                                "{\"role\":\"assistant\",\"content\":\"b\"}],\"word\":\"given\"}";

static status_t render(const char *source, template_text_t *out) {
    template_t *template;
    *out = (template_text_t){0};
    json_t *given = json_loads(variables, 0, NULL), *own = json_pack("{s:s}", "bos_token", "<s>");
    status_t status = template_parse(source, strlen(source), &template);
    if (!status) {
        status = template_render(template, given, own, out);
        template_free(template);
    }
    json_decref(given);
    json_decref(own);
    return status;
}

static void check(const char *source, const char *expected) {
    template_text_t text;
    CHECK_OK(render(source, &text));
    assert_string_equal(text.text, expected);
    template_text_free(&text);
}

static void check_fails(const char *source, const char *part) {
    template_text_t text;
    CHECK_FAILS(render(source, &text), part);
    assert_null(text.text);
}

// marks: '.' from the template, 'g' given.
static void check_marks(const char *source, const char *expected, const char *marks) {
    template_text_t text;
    CHECK_OK(render(source, &text));
    assert_string_equal(text.text, expected);
    assert_int_equal(text.length, strlen(marks));
    for (size_t i = 0; i < text.length; i++) assert_int_equal(text.given[i] ? 'g' : '.', marks[i]);
    template_text_free(&text);
}

static void test_space(void **state) {
    (void)state;
    check("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc");
    check("a  {%- if true -%}  b  {%- endif -%}  c", "abc");
    check("  {%+ if true +%}\nb{% endif %}", "  \nb");
    check("a {{- 'b' -}} c {# note #}\nd", "abc d");
    check("{% raw %}{{ x }}{% endraw %}", "{{ x }}");
    check("a\r\nb\rc", "a\nb\nc");
}

static void test_scopes(void **state) {
    (void)state;
    check("{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "12 13 1");
    check("{% set n = namespace(x=1) %}{% for i in [1, 2] %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}", "4");
    check("{% macro m(a, b=a) %}{{ a }}{{ b }}{{ word }}{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}", "11given12given");
    check("{% for i in [1] %}{% continue %}{% else %}none{% endfor %}", "none"); // as in Jinja
    check("{% for i in [1, 2, 3] if i != 2 %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}",
          "12False22True");
    check("{{ missing }}{{ missing is defined }}{{ missing|default('d') }}", "Falsed");
}

static void test_refused(void **state) {
    (void)state;
    check_fails("a\n{% include 'x' %}", "line 2: the statement 'include' is not supported");
    check_fails("\n\n{{ 1|urlize }}", "line 3: the filter 'urlize' is not supported");
    check_fails("{{ missing.x }}", "'missing' is undefined");
    check_fails("{{ messages[0].missing.x }}", "no attribute 'missing'");
    check_fails("{{ raise_exception('no ' ~ word) }}", "refuses the messages: no given");
    check_fails("{{ messages.append(1) }}", "no usable attribute 'append'");
    check_fails("{{ ''.__class__ }}{{ ''.__class__.x }}", "no usable attribute '__class__'");
    check_fails("{% if true %}", "'endif' is missing");
    check_fails("{% endif %}", "unknown or stands in a wrong place");
    check_fails("{{ 'a }}", "a string has no end");
    check_fails("{{ 1 +", "the tag has no end");
    check_fails("{{ (1] }}", "']' stands where ')' is wanted");
    check_fails("{{ 'a' + 1 }}", "'+' does not work on a str and a int");
    check_fails("{{ messages|map('upper') }}", "generator");
    check_fails("{% for i in messages recursive %}{% endfor %}", "recursive");
    check_fails("\xff", "UTF-8");
    check_fails("{{ '\\ud800' }}", "no character");
}

static void test_bounds(void **state) {
    (void)state;
    check_fails("{{ range(10**9) }}", "at most 100000");
    check_fails("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "too m");
    check_fails("{{ 'ab' * 10**12 }}", "more than the template is allowed");
    check_fails("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", "MiB");
    check_fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested more than 100 deep");
    check_fails("{% set n = namespace() %}{% set n.n = n %}{{ n }}", "nested too deep");
    check_fails("{{ 9223372036854775807 + 1 }}", "64 bits");
    check_fails("{{ 2 ** 64 }}", "64 bits");
    check_fails("{{ '%99999999s' % 'a' }}", "too large");
    char *deep = malloc(4001);
    memset(deep, '(', 4000);
    deep[4000] = 0;
    memcpy(deep, "{{", 2);
    check_fails(deep, "deep");
    free(deep);
}

static void test_marks(void **state) {
    (void)state;
    check_marks("{{ bos_token }}[{{ word }}]", "<s>[given]", "....ggggg.");
    check_marks("{{ '<|' + word + '|>' }}", "<|given|>", "..ggggg..");
    check_marks("{{ word[1:-1]|upper ~ 'x' }}", "IVEx", "ggg.");
    check_marks("{{ messages[0].content|trim }}", "Caf\u00e9 <x>", "ggggggggg");
    check_marks("{{ word.replace('v', '--') }}", "gi--en", "gg..gg");
    check_marks("{{ {'k': word}|tojson }}", "{\"k\": \"given\"}", ".......ggggg..");
    check_marks("{{ ['a', word]|join(', ') }}", "a, given", "...ggggg");
    check_marks("{{ '%s|%s' % (word, 1) }}", "given|1", "ggggg..");
    check_marks("{{ word.split('v')|list }}", "['gi', 'en']", "..gg....gg..");
    check_marks("{{ word|reverse }}{{ word|e }}", "neviggiven", "gggggggggg");
    check_marks("{% set x %}{{ word }}!{% endset %}{{ x|indent(1, true) }}", " given!", ".ggggg.");
    check_marks("{{ word|string|list|last }}{{ word.upper().lower() * 2 }}", "ngivengiven", "ggggggggggg");
    check_marks("{{ messages[1].role }}{{ messages[1].keys()|first }}", "assistantrole", "ggggggggggggg");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_space),  cmocka_unit_test(test_scopes), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bounds), cmocka_unit_test(test_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
