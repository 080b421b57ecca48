// Journal: what happened to the workers of a run, on stderr for people and as JSON Lines for programs.
//
// Lines go to OUTPUT/events.jsonl and to the file that POISE_EVENTS names (launch/run's), whole lines at a time:
//   {"time": seconds since 1970, "kind": "worker_gone", "rank": 2, "phase": "generating group 17 ...", "reason": "..."}
// and "group" where it is about one, "join" (a path) in opened. Kinds: opened, worker_joined, worker_refused,
// worker_back, worker_left, worker_gone, group_reissued, duplicate_dropped, closed. A journal that cannot be written is
// said once and does not end the run: what happened stands on stderr too.
#ifndef ROLLOUT_REWARD_JOURNAL_H
#define ROLLOUT_REWARD_JOURNAL_H

#include "kernels/base/status.h"
#include <stdint.h>

typedef struct journal {
    int file[2]; // -1: none
    bool told;   // that it cannot be written
} journal_t;

typedef struct journal_entry {
    const char *kind;
    int rank;           // world rank it is about
    const char *phase;  // what that rank was at; NULL: none
    const char *reason; // why; NULL: none
    const char *join;   // opened: the file by which rollout pools find the run; NULL: none
    bool about_group;   // the next one counts
    uint64_t group;     // serial
} journal_entry_t;

// output: the run folder ("" : none). Lines of an earlier start of the same run stay.
void journal_open(journal_t *journal, const char *output);
void journal_close(journal_t *journal);
// `sentence`: for stderr, after "poise: ".
void journal_write(journal_t *journal, const journal_entry_t *entry, const char *sentence, ...)
    __attribute__((format(printf, 3, 4)));

#endif
