// The pool's static partition, keyed random numbers against published vectors, and arenas.
#include "kernels/base/threads.h"
#include "kernels/base/arena.h"
#include "kernels/base/philox.h"
#include "tests/lib/check.h"

enum { MOST_WORKERS = 4, MOST_TASKS = 1000, REPEATS = 300 };

// ---- threads ----

// Written without locks: the partition gives each slot to one worker, and threads_run orders the rounds.
typedef struct tally {
    int times[MOST_TASKS], worker[MOST_TASKS];
    int last[MOST_WORKERS]; // the task that the worker took before
} tally_t;

static void count_task(void *context, int task, int worker) {
    tally_t *tally = context;
    tally->times[task]++;
    tally->worker[task] = worker;
    if (tally->last[worker] >= task) tally->times[task] += MOST_TASKS; // out of order
    tally->last[worker] = task;
}

// Every task once, worker w the w-th contiguous share, shares that differ by one task at most.
static void check_partition(const tally_t *tally, int tasks, int workers) {
    int share[MOST_WORKERS] = {0};
    for (int i = 0; i < tasks; i++) {
        if (tally->times[i] != 1) fail_msg("task %d of %d counts %d", i, tasks, tally->times[i]);
        assert_in_range(tally->worker[i], 0, workers - 1);
        if (i > 0) assert_true(tally->worker[i] >= tally->worker[i - 1]);
        share[tally->worker[i]]++;
    }
    for (int w = 0; tasks > 1 && w < workers; w++) assert_in_range(share[w], tasks / workers, tasks / workers + 1);
}

static void every_task_runs_once(void **state) {
    (void)state;
    static const int tasks[] = {0, 1, 2, 3, 4, 5, 7, 64, MOST_TASKS};
    for (int workers = 1; workers <= MOST_WORKERS; workers++) {
        threads_t *threads;
        CHECK_OK(threads_open(workers, &threads));
        assert_int_equal(threads_count(threads), workers);
        for (size_t t = 0; t < sizeof(tasks) / sizeof(tasks[0]); t++) {
            tally_t tally = {0}, again = {0};
            memset(tally.last, -1, sizeof(tally.last));
            memset(again.last, -1, sizeof(again.last));
            threads_run(threads, tasks[t], count_task, &tally);
            check_partition(&tally, tasks[t], workers);
            threads_run(threads, tasks[t], count_task, &again);
            assert_memory_equal(tally.worker, again.worker, sizeof(tally.worker)); // by number, not by who comes first
        }
        threads_close(threads);
    }
}

static void add_one(void *context, int task, int worker) {
    (void)worker;
    ((int *)context)[task]++;
}

// A wake-up that is lost, or a worker that is late for the next round, shows in the sums (or never ends).
static void rounds_follow_each_other(void **state) {
    (void)state;
    for (int workers = 1; workers <= MOST_WORKERS; workers++) {
        threads_t *threads;
        int sum[9] = {0};
        CHECK_OK(threads_open(workers, &threads));
        for (int round = 0; round < REPEATS; round++) threads_run(threads, 1 + round % 9, add_one, sum);
        threads_close(threads);
        for (int task = 0; task < 9; task++) {
            int expected = 0;
            for (int round = 0; round < REPEATS; round++) expected += task < 1 + round % 9;
            assert_int_equal(sum[task], expected);
        }
    }
}

static void pools_open_and_close(void **state) {
    (void)state;
    threads_t *threads;
    CHECK_FAILS(threads_open(0, &threads), "must be 1 or more, not 0");
    assert_null(threads);
    threads_close(NULL);
    for (int i = 0; i < 20; i++) { // closed before a thread has begun, too
        CHECK_OK(threads_open(MOST_WORKERS, &threads));
        threads_close(threads);
    }
}

// ---- philox ----

static void check_block(philox_block_t block, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    assert_int_equal(block.word[0], a);
    assert_int_equal(block.word[1], b);
    assert_int_equal(block.word[2], c);
    assert_int_equal(block.word[3], d);
}

// The known answers for philox4x32-10 that come with Random123. The purpose is part of counter word 1.
static void philox_gives_the_published_words(void **state) {
    (void)state;
    const philox_purpose_t none = (philox_purpose_t)0;
    check_block(philox_draw(0, none, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
    check_block(philox_draw(UINT64_MAX, none, UINT64_MAX, UINT32_MAX, UINT32_MAX), 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
                0x6d5451fd);
    uint64_t key = 0x299f31d0a4093822, low = 0x243f6a88, high = 0x85a308d3;
    check_block(philox_draw(key, none, high << 32 | low, 0x13198a2e, 0x03707344), 0xd16cfe09, 0x94fdcceb, 0x5001e420,
                0x24126ea1);
    high ^= (uint64_t)PHILOX_TEST << 24;
    check_block(philox_draw(key, PHILOX_TEST, high << 32 | low, 0x13198a2e, 0x03707344), 0xd16cfe09, 0x94fdcceb,
                0x5001e420, 0x24126ea1);
}

static void permutations_are_bijections(void **state) {
    (void)state;
    static const uint64_t counts[] = {1, 2, 3, 4, 5, 16, 17, 100, 257, 1000};
    for (size_t n = 0; n < sizeof(counts) / sizeof(counts[0]); n++) {
        int moved = 0, differs = 0;
        for (uint64_t epoch = 0; epoch < 3; epoch++) {
            bool seen[1000] = {false};
            for (uint64_t i = 0; i < counts[n]; i++) {
                uint64_t place = philox_permute(7, epoch, i, counts[n]);
                assert_true(place < counts[n]);
                assert_false(seen[place]);
                seen[place] = true;
                moved += place != i;
                differs += place != philox_permute(8, epoch, i, counts[n]);
            }
        }
        if (counts[n] >= 16) assert_true(moved > (int)counts[n] && differs > (int)counts[n]);
    }
}

static void draws_keep_their_bounds(void **state) {
    (void)state;
    assert_true(philox_uniform(0) == 0.0f);
    assert_true(philox_uniform(UINT32_MAX) == 1.0f - 0x1p-24f);
    int found[6] = {0};
    for (uint32_t i = 0; i < 6000; i++) {
        uint32_t value = philox_below(3, PHILOX_TEST, 1, i, 0, 6);
        assert_in_range(value, 0, 5);
        found[value]++;
    }
    for (int i = 0; i < 6; i++) assert_in_range(found[i], 850, 1150); // 5 standard deviations
}

// ---- arena ----

static void arenas_keep_marks_and_limits(void **state) {
    (void)state;
    arena_t arena;
    void *first, *second, *again;
    CHECK_OK(arena_open(&arena, "a test", 4 * ARENA_ALIGNMENT));
    CHECK_OK(arena_take(&arena, 1, &first));
    assert_int_equal((uintptr_t)first % ARENA_ALIGNMENT, 0);
    size_t mark = arena_mark(&arena);
    assert_int_equal(mark, ARENA_ALIGNMENT);
    CHECK_OK(arena_take(&arena, 3 * ARENA_ALIGNMENT, &second));
    assert_ptr_equal((char *)second, (char *)first + ARENA_ALIGNMENT);
    memset(second, 0xAB, (size_t)3 * ARENA_ALIGNMENT);
    CHECK_FAILS(arena_take(&arena, 1, &again), "the arena 'a test' has 0 of 256 bytes left");
    arena_release(&arena, mark);
    CHECK_OK(arena_take(&arena, ARENA_ALIGNMENT + 1, &again));
    assert_ptr_equal(again, second);
    assert_int_equal(arena.used, 3 * ARENA_ALIGNMENT);
    assert_int_equal(arena.peak, 4 * ARENA_ALIGNMENT);
    CHECK_FAILS(arena_take(&arena, SIZE_MAX, &again), "a test"); // rounding up must not wrap
    CHECK_FAILS(arena_take(&arena, SIZE_MAX - ARENA_ALIGNMENT, &again), "a test");
    assert_int_equal(arena.used, 3 * ARENA_ALIGNMENT);
    arena_close(&arena);
    assert_null(arena.base);
    CHECK_OK(arena_open(&arena, "nothing", 0));
    CHECK_FAILS(arena_take(&arena, 1, &again), "0 of 0 bytes");
    arena_close(&arena);
}

// The same takes give the same layout; more than any machine has may be measured.
static void measuring_plans_what_is_taken(void **state) {
    (void)state;
    arena_t dry, real;
    CHECK_OK(arena_open_measuring(&dry, "dry"));
    assert_true(dry.measuring);
    for (int pass = 0; pass < 2; pass++) {
        arena_t *arena = pass ? &real : &dry;
        if (pass) CHECK_OK(arena_open(&real, "real", dry.peak));
        void *taken;
        CHECK_OK(arena_take(arena, 1000, &taken));
        size_t mark = arena_mark(arena);
        CHECK_OK(arena_take(arena, 5000, &taken));
        arena_release(arena, mark);
        CHECK_OK(arena_take(arena, 70, &taken));
        assert_int_equal((char *)taken - arena->base, 1024);
        if (pass) memset(taken, 1, 70);
        assert_int_equal(arena->peak, 1024 + 5056);
    }
    void *taken;
    CHECK_FAILS(arena_take(&real, 6000, &taken), "'real'");
    CHECK_OK(arena_take(&dry, dry.capacity / 2, &taken));
    arena_close(&real);
    arena_close(&dry);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),         cmocka_unit_test(rounds_follow_each_other),
        cmocka_unit_test(pools_open_and_close),         cmocka_unit_test(philox_gives_the_published_words),
        cmocka_unit_test(permutations_are_bijections),  cmocka_unit_test(draws_keep_their_bounds),
        cmocka_unit_test(arenas_keep_marks_and_limits), cmocka_unit_test(measuring_plans_what_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
