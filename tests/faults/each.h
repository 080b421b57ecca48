// One run of the command line for each N of a fault class, each in a child forked before main: a start costs
// milliseconds.
//
//   POISE_FAULT_EACH=CLASS[,CLASS]...  the classes to go through ("all": each that a single process has)
//   POISE_FAULT_EACH_FOLDER=W          W/out is where the command line writes: emptied, then filled with a copy of
//   W/start
//                                      where there is one, before each run; W/good, W/stdout and W/stderr are the
//                                      driver's own
//   POISE_FAULT_EACH_MOST_CLASS=M      so many N of a class, drawn by the seed (default, 0: all)
//   POISE_FAULT_EACH_SEED=S            order of the N
//   POISE_FAULT_EACH_SECONDS=T         no new run after so many seconds (default, 0: no limit)
//   POISE_FAULT_EACH_DEADLINE=T        a run that takes longer hangs (default 60)
//   POISE_FAULT_EACH_RERUN=K           after every Kth failed run the command line is run undisturbed in what is left
//   (0: never) POISE_FAULT_EACH_PARTIAL=P[,P]...  names (fnmatch) of files that grow while the command runs: they may
//   be there in part POISE_FAULT_EACH_COUNTS=FILE       gets lines "CLASS<tab>TRIED<tab>OF"
//
// The first two runs are undisturbed: they must agree, and are what the others are held against. Times and rates in
// text files do not count. A run is good if it
//   - exits 0, and left exactly the files and printed exactly what the undisturbed run did (the fault was harmless), or
//   - exits 1 with one "poise: " sentence more on stderr than the undisturbed run; every file there is whole: as the
//   undisturbed run, or
//     W/start, has it; and nothing else is there, no temporary file either;
// and never ends by a signal or by a sanitizer, and never hangs. Exit code: 0, or 1 when there was a defect.
#ifndef TESTS_FAULTS_EACH_H
#define TESTS_FAULTS_EACH_H

// Returns only in the children, which go on to main.
void each_run(void);

// From faults.c: the number of a class (-1: none), and its name in order (NULL: no more).
int fault_class_of(const char *name);
// Forgets all counts and faults; number > 0: that call of the class will fail.
void fault_begin(int class, long number);

#endif
