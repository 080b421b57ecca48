// Listings of traces against gold listings.
#include "common/text/listing.h"
#include "tests/lib/check.h"

static const char gold[] = "row 1: boot, bag, sandal. row 2: dress, bag, boot.";

static bool equal(const char *text, const char *to) {
    listing_words_t words = {0};
    CHECK_OK(listing_words_add(&words, gold));
    CHECK_OK(listing_words_add(&words, "row 1: sneaker, Boot. row 2: tshirt"));
    assert_int_equal(words.count, 6);
    for (size_t i = 1; i < words.count; i++) assert_true(strcmp(words.word[i - 1], words.word[i]) < 0);
    bool same = listing_equal(&words, text, strlen(text), to);
    listing_words_free(&words);
    return same;
}

static void test_equal(void **state) {
    (void)state;
    assert_true(equal(gold, gold));
    assert_true(equal("Let me look. row 1: boot, bag, sandal.\nRow 2 : dress, bag 1, boot.\n", gold));
    assert_true(equal("row 1: boot 1, a bag, then sandal. row 2: dress, bag 2, boot 2. So boot and bag: 2.", gold));
    assert_true(equal("row 1: BOOT bag sandal row 2: dress/bag/boot", gold));
    assert_true(equal("row 1: boot 1.5, bag, sandal. row 2: dress, bag, boot", gold));
}

static void test_different(void **state) {
    (void)state;
    assert_false(equal("", gold));
    assert_false(equal("row 1: boot, bag, sandal.", gold));
    assert_false(equal("row 1: boot, bag, sandal. row 2: dress, bag.", gold));
    assert_false(equal("row 1: boot, bag, sneaker. row 2: dress, bag, boot.", gold));
    assert_false(equal("row 1: boot, bag, sandal, tshirt. row 2: dress, bag, boot.", gold));
    assert_false(equal("row 2: dress, bag, boot. row 1: boot, bag, sandal.", gold));
    assert_false(equal("row 1: bag, boot, sandal. row 2: dress, bag, boot.", gold));
    assert_false(equal("row 1: boot, bag. sandal. row 2: dress, bag, boot.", gold));
    assert_false(equal("row 1: boots, bag, sandal. row 2: dress, bag, boot.", gold));
    assert_false(equal("row 1: boot, bag, sandal, dress, bag, boot.", gold));
    assert_false(equal("row one: boot, bag, sandal. row 2: dress, bag, boot.", gold));
    assert_false(equal("no rows", "no rows"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equal), cmocka_unit_test(test_different)};
    return cmocka_run_group_tests_name("listing", tests, NULL, NULL);
}
