// Faults that only a tool can see, planted in a rank of a real job: what the tool must report.
#ifndef TESTS_FAULTS_PLANTED_H
#define TESTS_FAULTS_PLANTED_H

// POISE_PLANT=KIND[,KIND...]@RANK, KIND: leak, race, uninitialised, overflow or undefined. Commits them once, in the
// rank `rank` names; otherwise does nothing.
void planted_commit(const char *rank);

#endif
