#include "tests/faults/each.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <ftw.h>
#include <regex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PATH_BYTES = 8192, SHOWN = 40 };

typedef struct each {
    char folder[1024];
    const char *partial;
    double deadline, end; // seconds; end 0: none
    long rerun;
    int defects, reruns;
} each_t;

// How a child ended; stdout and stderr lie in W.
typedef struct ending {
    bool hung;
    int status; // of wait
} ending_t;

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static _Noreturn void give_up(const char *what, const char *which) {
    dprintf(2, "POISE_FAULT_EACH: %s %s: %s\n", what, which, strerror(errno));
    _exit(99);
}

static double number_of(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtod(text, NULL) : otherwise;
}

static const char *in_folder(const each_t *each, const char *name) {
    static char path[4][PATH_BYTES];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, PATH_BYTES, "%s/%s", each->folder, name);
    return out;
}

// ---- folders ----

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *place) {
    (void)about, (void)kind;
    return place->level ? remove(path) : 0;
}

static void copy_tree(const char *from, const char *to) {
    char command[3 * PATH_BYTES];
    snprintf(command, sizeof(command), "cp -a '%s/.' '%s/'", from, to);
    if (system(command) != 0) give_up("cannot copy", from);
}

static void empty(const each_t *each) {
    const char *out = in_folder(each, "out"), *start = in_folder(each, "start");
    mkdir(out, 0777);
    if (nftw(out, remove_one, 32, FTW_DEPTH | FTW_PHYS)) give_up("cannot empty", out);
    if (!access(start, F_OK)) copy_tree(start, out);
}

// The file's text (malloc'd, 0-terminated); NULL: not there.
static char *text_of(const char *path, size_t *size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (file < 0 || fstat(file, &about) || !S_ISREG(about.st_mode)) {
        if (file >= 0) close(file);
        return NULL;
    }
    char *text = calloc(1, (size_t)about.st_size + 1);
    ssize_t got = text ? read(file, text, (size_t)about.st_size) : -1;
    close(file);
    if (got < 0) give_up("cannot read", path);
    *size = (size_t)got;
    return text;
}

// Blanks what a clock says, so that two runs of the same thing agree.
static void blank_times(char *text, size_t size) {
    static const char *const rules[] = {"\"[a-z_/]*(time|second)[a-z_/]*\": *[0-9.e+-]+",
                                        "[0-9][0-9:.e+]* *(s|tokens/s|samples/s|spent|left)([^a-z]|$)",
                                        "[0-9]+[.][0-9]+ (of|MiB/s|s )"};
    if (memchr(text, 0, size)) return;
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++) {
        regex_t rule;
        regmatch_t match;
        if (regcomp(&rule, rules[i], REG_EXTENDED)) give_up("cannot compile", rules[i]);
        for (char *at = text; !regexec(&rule, at, 1, &match, at == text ? 0 : REG_NOTBOL); at += match.rm_eo)
            memset(at + match.rm_so, ' ', (size_t)(match.rm_eo - match.rm_so));
        regfree(&rule);
    }
    // Numbers have lengths, and blanks have not.
    size_t kept = 0;
    for (size_t i = 0; i < size; i++)
        if (text[i] != ' ') text[kept++] = text[i];
    memset(text + kept, 0, size - kept);
}

// prefix: a may end early.
static bool same_file(const char *a, const char *b, bool prefix) {
    size_t a_size = 0, b_size = 0;
    char *x = text_of(a, &a_size), *y = text_of(b, &b_size);
    bool same = x && y && a_size == b_size && !memcmp(x, y, a_size);
    if (x && y && !same && !memchr(x, 0, a_size) && !memchr(y, 0, b_size)) {
        blank_times(x, a_size);
        blank_times(y, b_size);
        same = prefix ? !strncmp(x, y, strlen(x)) : !strcmp(x, y);
    }
    free(x);
    free(y);
    return same;
}

static bool is_partial(const each_t *each, const char *name) {
    char pattern[256];
    for (const char *at = each->partial; at && *at;) {
        size_t length = strcspn(at, ",");
        snprintf(pattern, sizeof(pattern), "%.*s", (int)length, at);
        if (!fnmatch(pattern, name, 0)) return true;
        at += length + (at[length] == ',');
    }
    return false;
}

// ---- comparing what a run left with what it should have left ----

typedef struct look {
    const each_t *each;
    bool finished; // all has to be there
    char *why;     // [PATH_BYTES] the first thing that is wrong
} look_t;

static void look_at_file(look_t *look, const char *name) {
    char path[3][PATH_BYTES];
    static const char *const tree[] = {"out", "good", "start"};
    for (int i = 0; i < 3; i++) snprintf(path[i], PATH_BYTES, "%s/%s/%.2300s", look->each->folder, tree[i], name);
    const char *base = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
    bool partial = is_partial(look->each, base), expected = !access(path[1], F_OK);
    if (same_file(path[0], path[1], false) || (partial && !expected)) return;
    if (!look->finished && same_file(path[0], path[2], false)) return;
    if (!look->finished && partial && same_file(path[0], path[1], true)) return;
    if (!look->finished && !strcmp(base, "result.json")) {
        size_t size;
        char *text = text_of(path[0], &size);
        bool says = text && strstr(text, "\"exit\": 1") && text[size - 1] == '}';
        free(text);
        if (says) return;
    }
    bool whole = !expected && access(path[2], F_OK);
    snprintf(look->why, PATH_BYTES, "%.300s %s", name, whole ? "is left" : "is not what it should be");
}

// Goes through tree "out" or "good" below `under` ("" or "NAME/...").
static void look_through(look_t *look, const char *tree, const char *under) {
    char path[PATH_BYTES], name[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/%s/%s", look->each->folder, tree, under);
    DIR *folder = opendir(path);
    if (!folder) give_up("cannot read", path);
    for (struct dirent *entry; !*look->why && (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        struct stat about;
        snprintf(name, sizeof(name), "%.2000s%.255s", under, entry->d_name);
        snprintf(path, sizeof(path), "%s/%s/%.2300s", look->each->folder, tree, name);
        if (lstat(path, &about)) continue;
        bool directory = S_ISDIR(about.st_mode);
        if (directory) {
            strcat(name, "/");
            look_through(look, tree, name);
        } else if (!strcmp(tree, "out")) {
            look_at_file(look, name);
        }
        snprintf(path, sizeof(path), "%s/out/%.2300s", look->each->folder, name);
        if (!*look->why && !strcmp(tree, "good") && access(path, F_OK) && !is_partial(look->each, entry->d_name))
            snprintf(look->why, PATH_BYTES, "%.300s is not there", name);
    }
    closedir(folder);
}

static void look_at_all(const each_t *each, bool finished, char why[PATH_BYTES]) {
    look_t look = {.each = each, .finished = finished, .why = why};
    look_through(&look, "out", "");
    if (finished && !*why) look_through(&look, "good", "");
    if (finished && !*why && !same_file(in_folder(each, "stdout"), in_folder(each, "good.stdout"), false))
        snprintf(why, PATH_BYTES, "standard output is not what it should be");
}

static bool has_line(const char *text, const char *line) {
    size_t length = strlen(line);
    for (const char *at = text; at && (at = strstr(at, line)); at += length)
        if ((at == text || at[-1] == '\n') && (!at[length] || at[length] == '\n')) return true;
    return false;
}

// Lines of stderr that begin with "poise: " and that the undisturbed run does not print; *last: whether the last line
// is one.
static int sentences(const each_t *each, bool *last) {
    size_t size;
    char *usual = text_of(in_folder(each, "good.stderr"), &size), *text = text_of(in_folder(each, "stderr"), &size);
    int count = 0;
    *last = false;
    for (char *kept = text, *line = text ? strtok_r(text, "\n", &kept) : NULL; line;
         line = strtok_r(NULL, "\n", &kept)) {
        if (!strncmp(line, "fault: ", 7)) continue;
        *last = !strncmp(line, "poise: ", 7) && strlen(line) > 20 && !has_line(usual, line);
        count += *last;
    }
    free(text);
    free(usual);
    return count;
}

// ---- one run ----

static int redirect(const char *path, int to) {
    int file = open(path, to ? O_WRONLY | O_CREAT | O_TRUNC | O_APPEND : O_RDONLY, 0666);
    if (file < 0 || dup2(file, to) < 0) give_up("cannot open", path);
    return close(file);
}

// In the child it returns true, to go on to main.
static bool run_one(each_t *each, int class, long number, ending_t *out) {
    pid_t child = fork();
    if (child < 0) give_up("cannot", "fork");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        redirect("/dev/null", 0);
        redirect(in_folder(each, "stdout"), 1);
        redirect(in_folder(each, "stderr"), 2);
        fault_begin(class, number);
        return true;
    }
    double end = now_seconds() + each->deadline;
    *out = (ending_t){0};
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    while (waitpid(child, &out->status, WNOHANG) == 0) {
        const struct timespec wait = {.tv_nsec = 20000000};
        sigtimedwait(&children, NULL, &wait);
        if (now_seconds() < end || out->hung) continue;
        out->hung = true;
        kill(child, SIGKILL);
    }
    kill(-child, SIGKILL); // what it started
    return false;
}

static void judge(each_t *each, const ending_t *ending, char why[PATH_BYTES]) {
    bool last;
    int said = sentences(each, &last), code = WEXITSTATUS(ending->status);
    *why = 0;
    if (ending->hung)
        snprintf(why, PATH_BYTES, "does not end within %g s", each->deadline);
    else if (WIFSIGNALED(ending->status))
        snprintf(why, PATH_BYTES, "ended by signal %d", WTERMSIG(ending->status));
    else if (code > 1)
        snprintf(why, PATH_BYTES, "exit code %d", code);
    else if (code == 1 && (said != 1 || !last))
        snprintf(why, PATH_BYTES, "%d sentences on stderr that say why, not one at the end", said);
    else
        look_at_all(each, code == 0, why);
}

static bool fired(const each_t *each) {
    size_t size;
    char *text = text_of(in_folder(each, "stderr"), &size);
    bool did = text && !strncmp(text, "fault: ", 7);
    did = did || (text && strstr(text, "\nfault: "));
    free(text);
    return did;
}

static void show(each_t *each, const char *class, long number, const char *why) {
    if (++each->defects > SHOWN) return;
    size_t size;
    char command[2 * PATH_BYTES], *text = text_of(in_folder(each, "stderr"), &size);
    printf("DEFECT: %s %ld: %s\n", class, number, why);
    char *fault = text ? strstr(text, "called from ") : NULL;
    if (fault) {
        unsigned long place = strtoul(fault + strlen("called from "), NULL, 16);
        snprintf(command, sizeof(command), "addr2line -pfie /proc/%d/exe %#lx | sed 's/^/  /'", (int)getpid(),
                 place - 1);
        fflush(stdout);
        if (system(command)) printf("  (no addr2line)\n");
    }
    char *found = text ? strstr(text, "ERROR: ") : NULL; // a sanitizer's: its first frames say where
    char *shown = text && size > 1500 ? text + size - 1500 : text;
    if (found) shown = found;
    if (found && strlen(found) > 3000) found[3000] = 0;
    for (char *kept = shown, *line = shown ? strtok_r(shown, "\n", &kept) : NULL; line;
         line = strtok_r(NULL, "\n", &kept))
        printf("  | %.300s\n", line);
    fflush(stdout);
    free(text);
}

// ---- all of a class ----

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// 1 .. count in an order of the seed's; malloc'd.
static long *shuffled(long count, uint64_t seed) {
    long *order = calloc((size_t)count + 1, sizeof(*order));
    if (!order) give_up("no memory for", "the order");
    for (long i = 0; i < count; i++) order[i] = i + 1;
    for (long i = count - 1; i > 0; i--) {
        long j = (long)(mix(seed ^ (uint64_t)i << 20) % (uint64_t)(i + 1)), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    return order;
}

// Undisturbed, twice. Returns true in a child.
static bool run_undisturbed(each_t *each) {
    ending_t ending;
    char why[PATH_BYTES] = "";
    for (int i = 0; i < 2; i++) {
        empty(each);
        if (run_one(each, 0, 0, &ending)) return true;
        if (ending.hung || ending.status) {
            show(each, "no fault", 0, "the undisturbed run fails");
            _exit(1);
        }
        if (i) break;
        mkdir(in_folder(each, "good"), 0777);
        if (nftw(in_folder(each, "good"), remove_one, 32, FTW_DEPTH | FTW_PHYS)) give_up("cannot empty", "good");
        copy_tree(in_folder(each, "out"), in_folder(each, "good"));
        if (rename(in_folder(each, "stdout"), in_folder(each, "good.stdout"))) give_up("cannot move", "stdout");
        if (rename(in_folder(each, "stderr"), in_folder(each, "good.stderr"))) give_up("cannot move", "stderr");
    }
    look_at_all(each, true, why);
    if (*why) {
        show(each, "no fault", 0, why);
        printf("the undisturbed run does not repeat itself\n");
        _exit(1);
    }
    return false;
}

// How often the last undisturbed run came to a call of the class: the counts it wrote.
static long calls_of(const each_t *each, const char *name) {
    char wanted[64];
    size_t size;
    const char *path = in_folder(each, "counts.0");
    char *text = text_of(path, &size);
    snprintf(wanted, sizeof(wanted), "%s ", name);
    const char *line = text ? strstr(text, wanted) : NULL;
    if (!line) give_up("no counts in", path);
    long count = strtol(line + strlen(wanted), NULL, 10);
    free(text);
    return count;
}

// Returns true in a child.
static bool run_again(each_t *each, const char *name, long number) {
    ending_t ending;
    char why[PATH_BYTES] = "";
    if (run_one(each, 0, 0, &ending)) return true;
    each->reruns++;
    if (ending.hung || ending.status)
        snprintf(why, sizeof(why), "the run after it ends with %s %d", ending.hung ? "a hang," : "status",
                 WIFEXITED(ending.status) ? WEXITSTATUS(ending.status) : -WTERMSIG(ending.status));
    else
        look_at_all(each, true, why);
    if (*why) {
        char longer[PATH_BYTES + 32];
        snprintf(longer, sizeof(longer), "after another run: %s", why);
        show(each, name, number, longer);
    }
    return false;
}

// Returns true in a child.
static bool run_class(each_t *each, const char *name) {
    int class = fault_class_of(name);
    if (class < 0) give_up("no such class:", name);
    long count = calls_of(each, name), tried = 0, harmless = 0, most;
    char limit[64];
    snprintf(limit, sizeof(limit), "POISE_FAULT_EACH_MOST_%s", name);
    most = (long)number_of(limit, 0);
    char why[PATH_BYTES];
    ending_t ending;
    static long *order; // reachable in the children, whose leaks are looked for
    long failed = 0;
    order = shuffled(count, (uint64_t)number_of("POISE_FAULT_EACH_SEED", 1));
    for (long i = 0; i < count && (!most || tried < most) && (!each->end || now_seconds() < each->end); i++) {
        empty(each);
        if (run_one(each, class, order[i], &ending)) return true;
        if (!fired(each)) continue; // threads do not always come by in the same order
        tried++;
        judge(each, &ending, why);
        bool bad = *why, fine = !bad && !ending.status;
        if (bad) show(each, name, order[i], why);
        harmless += fine;
        if (bad || fine || !each->rerun || ++failed % each->rerun) continue;
        if (run_again(each, name, order[i])) return true;
    }
    free(order);
    printf("%s: %ld of %ld failed, %ld of them harmless\n", name, tried, count, harmless);
    fflush(stdout);
    const char *counts = getenv("POISE_FAULT_EACH_COUNTS");
    FILE *file = counts ? fopen(counts, "a") : NULL;
    if (file) fprintf(file, "%s\t%ld\t%ld\n", name, tried, count);
    if (file) fclose(file);
    return false;
}

void each_run(void) {
    static each_t each;
    char classes[256];
    const char *folder = getenv("POISE_FAULT_EACH_FOLDER"), *wanted = getenv("POISE_FAULT_EACH");
    if (!folder || strlen(folder) >= sizeof(each.folder)) give_up("needs", "POISE_FAULT_EACH_FOLDER");
    strcpy(each.folder, folder);
    if (!strcmp(wanted, "all")) wanted = "open,write,fsync,rename,send,receive,collective,alloc";
    snprintf(classes, sizeof(classes), "%s", wanted);
    unsetenv("POISE_FAULT_EACH");
    each.partial = getenv("POISE_FAULT_EACH_PARTIAL");
    each.deadline = number_of("POISE_FAULT_EACH_DEADLINE", 60);
    each.rerun = (long)number_of("POISE_FAULT_EACH_RERUN", 0);
    double seconds = number_of("POISE_FAULT_EACH_SECONDS", 0);
    each.end = seconds > 0 ? now_seconds() + seconds : 0;
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL); // taken by sigtimedwait
    char *kept = classes;
    setenv("POISE_FAULT_COUNTS", in_folder(&each, "counts"), 1);
    if (run_undisturbed(&each)) return;
    unsetenv("POISE_FAULT_COUNTS");
    for (char *name = strtok_r(classes, ",", &kept); name; name = strtok_r(NULL, ",", &kept))
        if (run_class(&each, name)) return;
    printf("%d runs after a failed one, %d defects\n", each.reruns, each.defects);
    fflush(stdout);
    _exit(each.defects ? 1 : 0);
}
