// What ranks believe of each other: frames and datagrams, good and bad, and whom a start that is overdue names.
#include "common/comm/join_file.h"
#include "common/comm/watch_internal.h"
#include "common/text/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS = 4, HOST = 3 };

static bool read_text(const char *text, watch_message_t *out) {
    return watch_message_read(text, strlen(text) + 1, out);
}

static void test_messages(void **state) {
    (void)state;
    watch_message_t message;
    assert_true(read_text("B 1 18446744073709551615 writing a checkpoint", &message));
    assert_int_equal(message.kind, WATCH_BEAT);
    assert_true(message.waiting && message.collectives == UINT64_MAX);
    assert_string_equal(message.phase, "writing a checkpoint");
    assert_true(read_text("F 1 2 1 rank 2, \"a b\": die Straße ist lang", &message));
    assert_int_equal(message.kind, WATCH_FAILED);
    assert_int_equal(message.weight, FAILURE_CONSEQUENCE);
    assert_int_equal(message.code, 2);
    assert_true(message.overdue);
    assert_string_equal(message.sentence, "rank 2, \"a b\": die Straße ist lang");
    assert_true(read_text("E 255", &message));
    assert_int_equal(message.kind, WATCH_END);
    assert_int_equal(message.code, 255);
    assert_true(read_text("S", &message));
    assert_int_equal(message.kind, WATCH_STOP);
    assert_true(read_text("D 0", &message));
    assert_int_equal(message.kind, WATCH_DONE);
    assert_false(message.lost);
    assert_true(read_text("D 1", &message));
    assert_true(message.lost);
}

// What one rank writes the other reads, also when all fields are at their largest.
static void test_written(void **state) {
    (void)state;
    watch_message_t sent[] = {
        {.kind = WATCH_BEAT, .waiting = true, .collectives = UINT64_MAX},
        {.kind = WATCH_FAILED, .weight = FAILURE_CAUSE, .code = 255, .overdue = true},
        {.kind = WATCH_END, .code = 1},
        {.kind = WATCH_STOP},
        {.kind = WATCH_DONE, .lost = true},
    };
    memset(sent[0].phase, 'p', PHASE_BYTES - 1);
    memset(sent[1].sentence, 's', SENTENCE_BYTES - 1);
    for (size_t i = 0; i < sizeof(sent) / sizeof(sent[0]); i++) {
        char frame[FRAME_BYTES];
        watch_message_t got;
        size_t size = watch_message_write(&sent[i], frame);
        assert_true(size <= sizeof(frame));
        assert_true(watch_message_read(frame, size, &got));
        assert_memory_equal(&got, &sent[i], sizeof(got));
    }
}

static void test_bad_messages(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",
        "B",
        "B ",
        "B 2 1 x",
        "B 1",
        "B x 1 x",
        "B 1 -1 x",
        "B 1 18446744073709551616 x",
        "B 1 99999999999999999999999999 x",
        "B  1 1 x",
        "B1 1 x",
        "b 1 1 x",
        "F 0 1 0 x",
        "F 3 1 0 x",
        "F 2 256 0 x",
        "F 2 -1 0 x",
        "F 2 4294967297 0 x",
        "F 2 1 2 x",
        "F 2 1",
        "F 2 1x 0 x",
        "E",
        "E -1",
        "E 256",
        "E 4294967296",
        "E 1 2",
        "E +1",
        "S ",
        "S 1",
        "D",
        "D 2",
        "D 1 1",
        "X 1",
        "\x1b",
        " E 1",
        "1 1 learner",
    };
    watch_message_t message;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (read_text(bad[i], &message)) fail_msg("\"%s\" is taken for a frame", bad[i]);
    assert_false(watch_message_read(NULL, 0, &message));
    assert_false(watch_message_read("E 1", 3, &message));    // its end is missing
    assert_false(watch_message_read("E 1\0x", 6, &message)); // goes on after it
    assert_false(watch_message_read("S\0S", 4, &message));
    char large[FRAME_BYTES + 1] = "F 2 1 0 ";
    memset(large + 8, 'x', sizeof(large) - 9);
    large[FRAME_BYTES - 1] = 0;
    assert_true(watch_message_read(large, FRAME_BYTES, &message));
    assert_int_equal(strlen(message.sentence), SENTENCE_BYTES - 1);
    large[FRAME_BYTES - 1] = 'x';
    large[FRAME_BYTES] = 0;
    assert_false(watch_message_read(large, FRAME_BYTES + 1, &message));
}

static void printable(const char *text, size_t bytes, const char *wanted) {
    char out[64];
    utf8_printable(text, strlen(text), out, bytes);
    assert_string_equal(out, wanted);
}

static void test_printable(void **state) {
    (void)state;
    watch_message_t message;
    assert_true(read_text("F 2 1 0 \x1b[2J\x1b]0;title\x07 a\nb\tc\x7f", &message));
    assert_string_equal(message.sentence, "?[2J?]0;title? a b c?");
    assert_true(read_text("B 0 1 \r\x1b[A", &message));
    assert_string_equal(message.phase, " ?[A");
    printable("\xc2\x9b"
              "2J",
              64, "?2J");                 // a C1 control
    printable("\x9b\xff\xc3", 64, "???"); // no UTF-8
    printable("a\xe2\x80\xae"
              "b",
              64, "a?b");                          // turns the direction of text
    printable("\xe2\x82\xac", 64, "\xe2\x82\xac"); // the euro sign stays
    printable("a\xe2\x82\xac", 4, "a");            // not within a character
    printable("a\xe2\x82\xac", 5, "a\xe2\x82\xac");
    printable("abc", 1, "");
}

static bool hello(const char *text, watch_hello_t *out) {
    return watch_hello_read(text, strlen(text) + 1, RANKS, HOST, out);
}

static void test_hello(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "1",
                                      "1 1",
                                      "1 1 ",
                                      "1 2 learner",
                                      "-1 1 x",
                                      "4 1 learner",
                                      "3 1 learner",
                                      "1 1 a b",
                                      "4294967297 1 x",
                                      "1 1 \x1b[",
                                      "1 1 \xc3\xa4",
                                      "x 1 x",
                                      "1 1 0123456789abcdef"};
    watch_hello_t got;
    char frame[FRAME_BYTES];
    assert_true(hello("2 0 rollout", &got));
    assert_int_equal(got.rank, 2);
    assert_false(got.essential);
    assert_string_equal(got.role, "rollout");
    assert_true(hello("0 1 0123456789abcde", &got));
    size_t size = watch_hello_write(&got, frame);
    assert_string_equal(frame, "0 1 0123456789abcde");
    assert_int_equal(size, strlen(frame) + 1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (hello(bad[i], &got)) fail_msg("\"%s\" is taken for a rank's", bad[i]);
}

static void test_lost(void **state) {
    (void)state;
    char sentence[SENTENCE_BYTES];
    int rank = -1;
    static const char line[] = "2 learner rank 2 has died\x1b\nmore";
    assert_true(watch_lost_read(line, strlen(line), &rank, sentence));
    assert_int_equal(rank, 2);
    assert_string_equal(sentence, "learner rank 2 has died?");
    assert_false(watch_lost_read("2147483648 x", 12, &rank, sentence));
    assert_false(watch_lost_read("-1 x", 4, &rank, sentence));
    assert_false(watch_lost_read("\n1 x", 4, &rank, sentence));
    assert_false(watch_lost_read("", 0, &rank, sentence));
}

static bool datagram(int32_t kind, int32_t rank, local_message_t *out) {
    local_message_t sent = {.kind = kind, .rank = rank, .waits = -5, .phase = "loading"};
    return local_message_read(&sent, sizeof(sent), RANKS, 1, out);
}

static void test_datagrams(void **state) {
    (void)state;
    local_message_t got, sent = {.kind = LOCAL_ANSWER, .rank = 2};
    char longer[sizeof(sent) + 1] = {0};
    assert_true(datagram(LOCAL_ASK, 0, &got) && datagram(LOCAL_ANSWER, 3, &got) && datagram(LOCAL_SAID, 2, &got));
    assert_true(got.kind == LOCAL_SAID && got.rank == 2 && got.waits == 1);
    assert_string_equal(got.phase, "loading");
    assert_false(datagram(0, 2, &got));
    assert_false(datagram(LOCAL_SAID + 256, 2, &got));
    assert_false(datagram(LOCAL_SAID, 1, &got)); // this rank itself
    assert_false(datagram(LOCAL_SAID, -1, &got));
    assert_false(datagram(LOCAL_SAID, RANKS, &got));
    assert_false(local_message_read(&sent, sizeof(sent) - 1, RANKS, 1, &got));
    memcpy(longer, &sent, sizeof(sent));
    assert_false(local_message_read(longer, sizeof(longer), RANKS, 1, &got));
    assert_false(local_message_read(longer, 0, RANKS, 1, &got));
    memset(sent.phase, '\x1b', sizeof(sent.phase)); // no end, and nothing for a terminal
    assert_true(local_message_read(&sent, sizeof(sent), RANKS, 1, &got));
    assert_int_equal(strlen(got.phase), PHASE_BYTES - 1);
    assert_int_equal(strspn(got.phase, "?"), PHASE_BYTES - 1);
}

// One letter a rank: a(bsent), s(ilent), h(angs), w(aits).
static void expect(const char *states, int speaker, const char *sentence) {
    static const char letters[] = "ashw";
    local_view_t view[RANKS] = {0};
    char said[SENTENCE_BYTES / 2];
    int size = (int)strlen(states);
    for (int rank = 0; rank < size; rank++) {
        view[rank].state = (local_state_t)(strchr(letters, states[rank]) - letters);
        snprintf(view[rank].phase, PHASE_BYTES, "phase %d", rank);
    }
    assert_int_equal(watch_local_speaker(view, size), speaker);
    watch_local_sentence(view, size, "joining", said, sizeof(said));
    assert_string_equal(said, sentence);
}

static void test_speaker(void **state) {
    (void)state;
    static const char all[] =
        "all ranks of this machine wait in \"joining\"; a rank of another machine, or MPI itself, hangs";
    expect("hwww", 1, "rank 0 hangs in \"phase 0\"");
    expect("whhw", 0, "rank 1 hangs in \"phase 1\", rank 2 hangs in \"phase 2\"");
    expect("ashw", 3, "rank 1 stands still or cannot be reached in \"joining\"");
    expect("hwaa", 1, "rank 0 hangs in \"phase 0\"");
    expect("waww", 0, "rank 1 is not there (it has died, or runs on another machine) in \"joining\"");
    expect("hhsh", 0, "rank 2 stands still or cannot be reached in \"joining\"");
    expect("ahhh", 1, "rank 0 is not there (it has died, or runs on another machine) in \"joining\"");
    expect("hhhh", 0, all);
    expect("wwww", 0, all);
    expect("aaaa", -1,
           "rank 0 is not there (it has died, or runs on another machine) in \"joining\", "
           "rank 1 is not there (it has died, or runs on another machine) in \"joining\", "
           "rank 2 is not there (it has died, or runs on another machine) in \"joining\", "
           "rank 3 is not there (it has died, or runs on another machine) in \"joining\"");
}

// However many hang, and however small the place is.
static void test_many(void **state) {
    (void)state;
    enum { MANY = 1000 };
    static const size_t sizes[] = {1, 2, 30, 100, SENTENCE_BYTES / 2};
    local_view_t *view = calloc(MANY, sizeof(*view));
    char *said = malloc(SENTENCE_BYTES / 2);
    assert_true(view && said);
    for (int rank = 0; rank < MANY; rank++) {
        view[rank].state = rank ? LOCAL_HANGS : LOCAL_WAITS;
        memset(view[rank].phase, 'x', PHASE_BYTES - 1);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        memset(said, '#', SENTENCE_BYTES / 2);
        watch_local_sentence(view, MANY, "joining", said, sizes[i]);
        assert_true(strlen(said) < sizes[i]);
        for (size_t at = sizes[i]; at < SENTENCE_BYTES / 2; at++) assert_int_equal(said[at], '#');
    }
    assert_non_null(strstr(said, "rank 1 hangs"));
    free(said);
    free(view);
}

#define KEY "0123456789abcdefghijABCDEFGHIJ.-:+=^!/*?"

static bool join(const char *endpoint, const char *key, const char *secret, const char *host, const char *pid) {
    char text[2048];
    join_file_t file;
    int size = snprintf(text, sizeof(text),
                        "{\"schema\": 1, \"endpoint\": \"%s\", \"public_key\": \"%s\", \"secret_key\": \"%s\", "
                        "\"host\": \"%s\", \"pid\": %s}",
                        endpoint, key, secret, host, pid);
    bool good = join_file_parse(text, (size_t)size, &file);
    assert_true(good == (file.endpoint[0] != 0)); // nothing is left of one that is refused
    return good;
}

static void test_join_file(void **state) {
    (void)state;
    char large[600];
    join_file_t file;
    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = 0;
    assert_true(join("tcp://node7:40123", "", "", "node7", "4711"));
    assert_true(join("tcp://node7:40123", KEY, KEY, "node7", "4711"));
    assert_false(join("", "", "", "node7", "4711"));
    assert_false(join(large, "", "", "node7", "4711"));
    assert_false(join("tcp://node7:40123", "", "", large, "4711"));
    assert_false(join("tcp://node7:40123", KEY, "", "node7", "4711"));
    assert_false(join("tcp://node7:40123", "abc", "abc", "node7", "4711"));
    assert_false(join("tcp://node7:40123", KEY "x", KEY, "node7", "4711"));
    assert_false(join("tcp://node7:40123", "0123456789abcdefghijABCDEFGHIJ.-:+=^!/*~", KEY, "node7", "4711"));
    assert_false(join("tcp://node7:40123\\u001b[2J", "", "", "node7", "4711"));
    assert_false(join("tcp://node7:40123", "", "", "node7\\u000apoise: all is well", "4711"));
    assert_false(join("tcp://node7:40123", "", "", "node7", "-1"));
    assert_false(join("tcp://node7:40123", "", "", "node7", "\"4711\""));
    assert_false(join_file_parse("", 0, &file));
    assert_false(join_file_parse("[1]", 3, &file));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages),  cmocka_unit_test(test_written), cmocka_unit_test(test_bad_messages),
        cmocka_unit_test(test_printable), cmocka_unit_test(test_hello),   cmocka_unit_test(test_lost),
        cmocka_unit_test(test_datagrams), cmocka_unit_test(test_speaker), cmocka_unit_test(test_many),
        cmocka_unit_test(test_join_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
