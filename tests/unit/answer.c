// The extractor that packing, reward and evaluation share.
#include "tests/lib/check.h"

#include "common/text/answer.h"

static double tags(const char *text, tag_style_t style) {
    return answer_tag_score(text, strlen(text), style);
}

static void test_tags(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double loose, strict;
    } cases[] = {
        {"<think>a</think><answer>b</answer>", 1, 0},
        {"<think>\na\n</think>\n<answer>\nb\n</answer>", 1, 1},
        {"<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1, 1},
        {"<think> a </think>\n<answer> b </answer>", 1, 0},
        {"", 0, 0},
        {"think answer", 0, 0},
        {"<think>", 0.25, 0},
        {"<think>a</think>", 0.5, 0},
        {"<answer>b</answer>", 0.5, 0},
        {"<think>a</think>b</think><answer>c</answer>", 0.75, 0},         // the closing tag twice
        {"<think>a<think>b</think><answer>c</answer>", 0.75, 0},          // the opening tag twice
        {"<answer>c</answer><think>a</think>", 0.5, 0},                   // the answer first
        {"</answer><answer></think><think>", 0.25, 0},                    // backwards: only the last is in order
        {"<answer><answer></answer><think>a</think>", 0.25, 0},           // doubled tags do not precede anything
        {"<answer><answer><think>a</think>", 0.5, 0},                     //
        {"<think>a</think><answer>b</answer><answer>c</answer>", 0.5, 0}, // a second answer
        {"<THINK>a</THINK>", 0, 0},
        {"< think >a", 0, 0},
        {"<think>\na</think>\n<answer>\nb</answer>", 1, 0.5},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (tags(cases[i].text, TAG_WHITESPACE_TOLERANT) != cases[i].loose)
            fail_msg("'%s' scores %g", cases[i].text, tags(cases[i].text, TAG_WHITESPACE_TOLERANT));
        if (tags(cases[i].text, TAG_STRICT_NEWLINE) != cases[i].strict)
            fail_msg("'%s' scores %g with newlines", cases[i].text, tags(cases[i].text, TAG_STRICT_NEWLINE));
    }
}

static void check_extract(const char *text, const char *expected) {
    const char *start;
    size_t span;
    bool found = answer_extract(text, strlen(text), &start, &span);
    if (found != (expected != NULL)) fail_msg("'%s': %s", text, found ? "found" : "not found");
    if (expected && (span != strlen(expected) || memcmp(start, expected, span) != 0))
        fail_msg("'%s' gives '%.*s'", text, (int)span, start);
}

static void test_extract(void **state) {
    (void)state;
    check_extract("<think>x</think><answer> Final Answer: A. </answer>", "Final Answer: A.");
    check_extract("<answer>a</answer><answer>\n b \n</answer> tail", "b");
    check_extract("<answer>a</answer><answer>b", "a");
    check_extract("<answer>a<answer>b</answer>", "b");
    check_extract("<answer>a</answer></answer>", "a");
    check_extract("</answer><answer>", NULL);
    check_extract("<answer></answer>", "");
    check_extract("<answer>", NULL);
    check_extract("answer", NULL);
    check_extract("", NULL);
    check_extract("<answer>a < b</answer>", "a < b");
    check_extract("<answer>cut</answer", NULL);
    const char *start, *text = "<think>a</think><think>b</think>";
    size_t span;
    assert_true(answer_think(text, strlen(text), &start, &span));
    assert_int_equal(span, 1);
    assert_memory_equal(start, "a", 1);
    assert_false(answer_think("<think>a", 8, &start, &span));
    assert_false(answer_think("</think><think>", 15, &start, &span));
    assert_true(answer_think("</think><think></think>", 23, &start, &span));
    assert_int_equal(span, 0);
}

static void check_normal(const char *text, const char *const *options, int count, const char *expected) {
    char *out;
    CHECK_OK(answer_normalise(text, strlen(text), options, count, &out));
    if (strcmp(out, expected) != 0) fail_msg("'%s' becomes '%s', not '%s'", text, out, expected);
    free(out);
}

static void test_normalise(void **state) {
    (void)state;
    static const char *const plain[][2] = {
        {"3", "3"},
        {"3.0", "3"},
        {" 3. ", "3"},
        {"03", "3"},
        {"+3", "3"},
        {"-0", "0"},
        {"-0.50", "-0.5"},
        {".5", "0.5"},
        {"1,000", "1000"},
        {"1,234,567.80", "1234567.8"},
        {"1,00", "1,00"},
        {"12,34,567", "12,34,567"},
        {"1000,000", "1000,000"},
        {"1e3", "1000"},
        {"1E-3", "0.001"},
        {"120", "120"},
        {"1.5e1", "15"},
        {"1e999", "1e999"},
        {"10e998", "1e999"},
        {"1e", "1e"},
        {"e5", "e5"},
        {"1e99999999999999999999", "1e999999999"},
        {"0.000", "0"},
        {"1.2.3", "1.2.3"},
        {"3 apples", "3 apples"},
        {"Final Answer: A.", "a"},
        {"final answer:  Answer: (B)", "b"},
        {"((c))", "c"},
        {"(c.)", "c"},
        {"(a) or (b)", "(a) or (b)"},
        {"A  dog\n\there", "a dog here"},
        {"ÄRGER", "ärger"},
        {"a\u00a0b", "a b"},
        {"", ""},
        {" . ", ""},
        {"()", ""},
        {"nan", "nan"},
        {"0x10", "0x10"},
        {"1_000", "1_000"},
        {"The answer: 3", "the answer: 3"},
        {"\xff"
         "a",
         "\xef\xbf\xbd"
         "a"},
        {"true", "true"},
        {"-", "-"},
        {"007.2500", "7.25"},
        {"1234567890123456789012345678901234", "1234567890123456789012345678901234"},
        {"100000000000000000000000000", "1e26"},
        {"0.00000000000000000000000000001", "1e-29"},
    };
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) check_normal(plain[i][0], NULL, 0, plain[i][1]);
    static const char *const words[] = {"Bag", "ankle boot", "T-shirt", "bag of 3"};
    check_normal("a", words, 4, "A");
    check_normal("(B)", words, 4, "B");
    check_normal("c)", words, 4, "C");
    check_normal("D:", words, 4, "D");
    check_normal("e", words, 4, "e"); // no such option
    check_normal("BAG", words, 4, "A");
    check_normal("Ankle  Boot.", words, 4, "B");
    check_normal("A. bag", words, 4, "A");
    check_normal("A. ankle boot", words, 4, "a. ankle boot"); // letter and text disagree
    check_normal("boot", words, 4, "boot");
    static const char *const numbers[] = {"1,000", "2.0", "2"};
    check_normal("1000", numbers, 3, "A");
    check_normal("2", numbers, 3, "2"); // two options say so
}

static void check_equal(const char *text, size_t length, const char *expected, bool equal) {
    bool out;
    CHECK_OK(answer_equal(text, length, expected, NULL, 0, &out));
    assert_int_equal(out, equal);
}

static void test_equal(void **state) {
    (void)state;
    check_equal("Final Answer: 1,000.", 20, "1000", true);
    check_equal("3\0junk", 6, "3", false); // a NUL does not end the answer
    check_equal("three", 5, "3", false);
    static const char *const words[] = {"bag", "boot"};
    bool out;
    CHECK_OK(answer_equal("B", 1, "boot", words, 2, &out));
    assert_true(out);
    CHECK_OK(answer_equal("boot", 4, "A", words, 2, &out));
    assert_false(out);
    // Nothing takes long: deep brackets, long digits, many tags.
    size_t size = 1 << 20;
    char *big = malloc(size);
    memset(big, '(', size / 2), memset(big + size / 2, ')', size / 2);
    check_equal(big, size, "x", false);
    memset(big, '7', size);
    check_equal(big, size, "7", false);
    for (size_t i = 0; i + 8 <= size; i += 8) memcpy(big + i, "<answer>", 8);
    const char *start;
    size_t span;
    assert_false(answer_extract(big, size, &start, &span));
    assert_true(answer_tag_score(big, size, TAG_WHITESPACE_TOLERANT) == 0);
    free(big);
}

static void test_segments(void **state) {
    (void)state;
    const char *text = "<think>a.</think><answer>b</answer>";
    // Tokens: "<think>" "a" ".</" "think" "><" "answer>b" "</answer>"
    const int32_t offsets[] = {0, 7, 7, 8, 8, 11, 11, 16, 16, 18, 18, 26, 26, 35};
    const uint8_t expected[] = {1, 1, 2, 2, 2, 2, 2};
    uint8_t labels[7];
    answer_segments(text, strlen(text), offsets, 7, labels);
    assert_memory_equal(labels, expected, 7);
    const int32_t clean[] = {0, 7, 7, 9, 9, 17, 17, 35};
    const uint8_t clean_expected[] = {1, 1, 2, 2};
    answer_segments(text, strlen(text), clean, 4, labels);
    assert_memory_equal(labels, clean_expected, 4);
    answer_segments("no tags", 7, (const int32_t[]){0, 2, 2, 7}, 2, labels);
    assert_true(labels[0] == SEGMENT_ANSWER && labels[1] == SEGMENT_ANSWER);
    answer_segments("x", 1, NULL, 0, labels);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tags),  cmocka_unit_test(test_extract),  cmocka_unit_test(test_normalise),
        cmocka_unit_test(test_equal), cmocka_unit_test(test_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
