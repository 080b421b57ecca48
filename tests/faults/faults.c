// Faults: what makes the Nth allocation, write, send, ... of a process fail, hang or kill it. Linked into a second
// `poise`, build/NAME/tests/poise_faults, by the linker's --wrap: calls of Poise's own objects come through here, those
// of libraries do not (HDF5's pwrite apart, which is how stores reach the disk). Production code knows nothing of it.
//
//   POISE_FAULT=CLASS[.DETAIL]:N[+][:ACTION][@RANK][,...]
//     CLASS: one of fault_name. N counts from 1; "N+": that and all later.
//     DETAIL: only calls on a path that holds it (open, write, fsync, rename), or messages of that type (send), count.
//     ACTION: fail (default), kill (SIGKILL), stop (SIGSTOP), hang, crash (SIGSEGV).
//   POISE_FAULT_COUNTS=PREFIX: writes "CLASS[.DETAIL] COUNT" lines to PREFIX.RANK when the process
//     ends, and "peak_kb N": the most memory that was resident.
//
//   POISE_FAULT_EACH=...                             one run for each N, see tests/faults/each.h
//   POISE_PLANT=...                                  what sanitizers and valgrind must see, see tests/faults/planted.h
//
// RANK is the rank in MPI_COMM_WORLD (0 without mpirun); left out: every rank. Scorer children take no part.
#include "learner/optimizer.h"
#include "tests/faults/each.h"
#include "tests/faults/planted.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zmq.h>

typedef enum fault_class {
    FAULT_ALLOC,
    FAULT_OPEN,
    FAULT_WRITE,
    FAULT_FSYNC,
    FAULT_RENAME,
    FAULT_SEND,
    FAULT_RECEIVE,
    FAULT_COLLECTIVE,
    FAULT_UPDATE, // the beginning of an optimizer step, or of summing its leaves again
    FAULT_CLASSES
} fault_class_t;
static const char *const fault_name[FAULT_CLASSES] = {"alloc", "open",    "write",      "fsync", "rename",
                                                      "send",  "receive", "collective", "update"};
static const int fault_errno[FAULT_CLASSES] = {ENOMEM, ENOSPC, ENOSPC, EIO, EIO, EHOSTUNREACH, EAGAIN, EIO, EIO};

typedef enum fault_action { ACTION_FAIL, ACTION_KILL, ACTION_STOP, ACTION_HANG, ACTION_CRASH, ACTIONS } fault_action_t;
static const char *const action_name[] = {"fail", "kill", "stop", "hang", "crash"};

enum { MOST_FAULTS = 8 };
typedef struct fault {
    fault_class_t class;
    fault_action_t action;
    long number;
    bool later;
    char detail[32];  // empty: every call of the class
    atomic_long seen; // calls that have the detail
} fault_t;
static fault_t fault[MOST_FAULTS];
static int faults;
static bool counting;
static atomic_long count[FAULT_CLASSES];
static char rank_text[16] = "0";
static bool ranked; // what launch/run starts for itself is none of the ranks that a fault may name

// Whether the command line has the word.
static bool runs(const char *word) {
    char line[4096];
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? 0 : read(file, line, sizeof(line) - 1);
    if (file >= 0) close(file);
    return size > 0 && memmem(line, (size_t)size, word, strlen(word) + 1);
}

static bool fault_parse(const char *text, size_t length) {
    char copy[128], class[32], action[16] = "fail";
    if (length >= sizeof(copy)) return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    char *at = strchr(copy, '@');
    if (at) *at = 0;
    fault_t parsed = {0};
    char *colon = strchr(copy, ':'), *end;
    if (!colon || (size_t)(colon - copy) >= sizeof(class)) return false;
    snprintf(class, sizeof(class), "%.*s", (int)(colon - copy), copy);
    char *dot = strchr(class, '.');
    if (dot) *dot = 0;
    if (dot) snprintf(parsed.detail, sizeof(parsed.detail), "%s", dot + 1);
    parsed.number = strtol(colon + 1, &end, 10);
    if (*end == '+') parsed.later = true, end++;
    if (*end == ':') snprintf(action, sizeof(action), "%s", end + 1);
    int c = 0, a = 0;
    while (c < FAULT_CLASSES && strcmp(class, fault_name[c]) != 0) c++;
    while (a < ACTIONS && strcmp(action, action_name[a]) != 0) a++;
    if (c == FAULT_CLASSES || a == ACTIONS || parsed.number < 1 || faults == MOST_FAULTS) return false;
    parsed.class = (fault_class_t)c;
    parsed.action = (fault_action_t)a;
    if (!at || (ranked && !strcmp(at + 1, rank_text))) fault[faults++] = parsed;
    return true;
}

__attribute__((constructor)) static void faults_open(void) {
    const char *text = getenv("POISE_FAULT"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank) rank = getenv("PMIX_RANK");
    if (!rank) rank = getenv("SLURM_PROCID");
    ranked = rank != NULL && !runs("rollout");
    if (rank) snprintf(rank_text, sizeof(rank_text), "%s", rank);
    if (runs("__scorer")) return;
    while (text && *text) {
        size_t length = strcspn(text, ",");
        if (!fault_parse(text, length)) {
            dprintf(2, "POISE_FAULT: '%s' is not CLASS:N[+][:ACTION][@RANK]\n", text);
            _exit(99);
        }
        text += length + (text[length] == ',');
    }
    counting = getenv("POISE_FAULT_COUNTS") != NULL;
    if (getenv("POISE_FAULT_EACH")) each_run();
}

int fault_class_of(const char *name) {
    int c = 0;
    while (c < FAULT_CLASSES && strcmp(name, fault_name[c]) != 0) c++;
    return c == FAULT_CLASSES ? -1 : c;
}

void fault_begin(int class, long number) {
    for (int c = 0; c < FAULT_CLASSES; c++) count[c] = 0;
    counting = getenv("POISE_FAULT_COUNTS") != NULL;
    faults = number > 0;
    fault[0] = (fault_t){.class = (fault_class_t) class, .number = number};
}

extern int __real_open(const char *path, int flags, ...);

static void counts_write(void) {
    if (!counting) return;
    counting = false;
    char path[4096];
    snprintf(path, sizeof(path), "%s.%s", getenv("POISE_FAULT_COUNTS"), rank_text);
    int file = __real_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    for (int c = 0; file >= 0 && c < FAULT_CLASSES; c++) dprintf(file, "%s %ld\n", fault_name[c], (long)count[c]);
    for (int i = 0; file >= 0 && i < faults; i++)
        if (fault[i].detail[0])
            dprintf(file, "%s.%s %ld\n", fault_name[fault[i].class], fault[i].detail, (long)fault[i].seen);
    char status[4096];
    int self = __real_open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t size = self < 0 ? 0 : read(self, status, sizeof(status) - 1);
    status[size > 0 ? size : 0] = 0;
    const char *peak = strstr(status, "VmHWM:");
    if (file >= 0 && peak) dprintf(file, "peak_kb %ld\n", strtol(peak + 6, NULL, 10));
    if (self >= 0) close(self);
    if (file >= 0) close(file);
}
__attribute__((destructor)) static void faults_close(void) {
    counts_write();
}

// Whether a fault of the class looks at details.
static bool fault_wants_detail(fault_class_t class) {
    for (int i = 0; i < faults; i++)
        if (fault[i].class == class && fault[i].detail[0]) return true;
    return false;
}

static void fault_tell(const fault_t *f, long number, const void *caller) {
    Dl_info place = {0};
    if (!dladdr(caller, &place)) return;
    dprintf(2, "fault: rank %s: %s of %s%s%s %ld, called from %#lx\n", rank_text, action_name[f->action],
            fault_name[f->class], f->detail[0] ? "." : "", f->detail, number,
            (unsigned long)((const char *)caller - (const char *)place.dli_fbase));
}

// Counts a call; true: it must fail, errno is set.
static bool fault_hits(fault_class_t class, const char *detail, const void *caller) {
    long all = atomic_fetch_add(&count[class], 1) + 1;
    for (int i = 0; i < faults; i++) {
        fault_t *f = &fault[i];
        if (f->class != class || (f->detail[0] && (!detail || !strstr(detail, f->detail)))) continue;
        long number = f->detail[0] ? atomic_fetch_add(&f->seen, 1) + 1 : all;
        if (f->later ? number < f->number : number != f->number) continue;
        if (number == f->number) fault_tell(f, number, caller);
        if (f->action == ACTION_KILL) raise(SIGKILL);
        if (f->action == ACTION_STOP) raise(SIGSTOP);
        if (f->action == ACTION_CRASH) raise(SIGSEGV);
        while (f->action == ACTION_HANG) pause();
        if (f->action != ACTION_FAIL) continue;
        errno = fault_errno[class];
        return true;
    }
    return false;
}
#define HITS(class)            fault_hits((class), NULL, __builtin_return_address(0))
#define HITS_ON(class, detail) fault_hits((class), (detail), __builtin_return_address(0))

// The path of an open file, where some fault of the class asks for it.
static const char *path_of(fault_class_t class, int file, char path[4096]) {
    if (file < 0 || !fault_wants_detail(class)) return NULL;
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, 4095);
    if (length < 0) return NULL;
    path[length] = 0;
    return path;
}
// The type of a message (docs/wire-protocol.md: a map that begins with schema and type); NULL: it is none.
static const char *type_of(const void *data, size_t size, char type[32]) {
    if (!fault_wants_detail(FAULT_SEND)) return NULL;
    const unsigned char *at = memmem(data, size < 32 ? size : 32, "\xa4type", 5);
    if (!at) return NULL;
    at += 5;
    const unsigned char *end = (const unsigned char *)data + size;
    size_t length = at < end && (*at & 0xe0) == 0xa0 ? *at & 0x1f : 0;
    if (!length || at + 1 + length > end) return NULL;
    memcpy(type, at + 1, length);
    type[length] = 0;
    return type;
}
// WRAP declares the real function and begins its replacement.
#define WRAP(type, name, ...)                                                                                          \
    extern type __real_##name(__VA_ARGS__);                                                                            \
    extern type __wrap_##name(__VA_ARGS__);                                                                            \
    type __wrap_##name(__VA_ARGS__)

WRAP(void *, malloc, size_t size) {
    return HITS(FAULT_ALLOC) ? NULL : __real_malloc(size);
}
WRAP(void *, calloc, size_t number, size_t size) {
    return HITS(FAULT_ALLOC) ? NULL : __real_calloc(number, size);
}
WRAP(void *, realloc, void *old, size_t size) {
    return HITS(FAULT_ALLOC) ? NULL : __real_realloc(old, size);
}
WRAP(int, posix_memalign, void **out, size_t alignment, size_t size) {
    return HITS(FAULT_ALLOC) ? ENOMEM : __real_posix_memalign(out, alignment, size);
}
WRAP(char *, strdup, const char *text) {
    return HITS(FAULT_ALLOC) ? NULL : __real_strdup(text);
}
WRAP(char *, strndup, const char *text, size_t size) {
    return HITS(FAULT_ALLOC) ? NULL : __real_strndup(text, size);
}
WRAP(int, vasprintf, char **out, const char *format, va_list arguments) {
    return HITS(FAULT_ALLOC) ? -1 : __real_vasprintf(out, format, arguments);
}
extern int __wrap_asprintf(char **out, const char *format, ...) __attribute__((format(printf, 2, 3)));
int __wrap_asprintf(char **out, const char *format, ...) {
    if (HITS(FAULT_ALLOC)) return -1;
    va_list arguments;
    va_start(arguments, format);
    int length = __real_vasprintf(out, format, arguments);
    va_end(arguments);
    return length;
}
WRAP(FILE *, open_memstream, char **text, size_t *size) {
    return HITS(FAULT_ALLOC) ? NULL : __real_open_memstream(text, size);
}
WRAP(void *, mmap, void *address, size_t size, int protection, int flags, int file, off_t offset) {
    return HITS(FAULT_ALLOC) ? MAP_FAILED : __real_mmap(address, size, protection, flags, file, offset);
}

extern int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return (flags & O_CREAT) && HITS_ON(FAULT_OPEN, path) ? -1 : __real_open(path, flags, mode);
}
WRAP(FILE *, fopen, const char *path, const char *mode) {
    return *mode != 'r' && HITS_ON(FAULT_OPEN, path) ? NULL : __real_fopen(path, mode);
}
WRAP(ssize_t, write, int file, const void *data, size_t size) {
    char path[4096];
    return HITS_ON(FAULT_WRITE, path_of(FAULT_WRITE, file, path)) ? -1 : __real_write(file, data, size);
}
// A stream that failed says so to ferror as well; glibc keeps that in a flag of the FILE.
static size_t spoil(FILE *stream, size_t result) {
    enum { GLIBC_ERROR_SEEN = 0x20 };
    stream->_flags |= GLIBC_ERROR_SEEN;
    return result;
}
WRAP(size_t, fwrite, const void *data, size_t size, size_t number, FILE *stream) {
    char path[4096];
    return HITS_ON(FAULT_WRITE, path_of(FAULT_WRITE, fileno(stream), path)) ? spoil(stream, 0)
                                                                            : __real_fwrite(data, size, number, stream);
}
WRAP(int, fflush, FILE *stream) {
    return stream && HITS(FAULT_WRITE) ? (int)spoil(stream, (size_t)EOF) : __real_fflush(stream);
}
WRAP(int, fclose, FILE *stream) {
    bool fails = HITS(FAULT_WRITE);
    int result = __real_fclose(stream); // a failing fclose closes all the same
    if (fails) errno = fault_errno[FAULT_WRITE];
    return fails ? EOF : result;
}
WRAP(int, fsync, int file) {
    char path[4096];
    return HITS_ON(FAULT_FSYNC, path_of(FAULT_FSYNC, file, path)) ? -1 : __real_fsync(file);
}
WRAP(int, rename, const char *from, const char *to) {
    return HITS_ON(FAULT_RENAME, to) ? -1 : __real_rename(from, to);
}
WRAP(int, renameat2, int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    return HITS_ON(FAULT_RENAME, to) ? -1 : __real_renameat2(from_folder, from, to_folder, to, flags);
}
// Defined in the executable, these are what HDF5 finds; which of the two it calls depends on how it was built.
extern ssize_t pwrite(int file, const void *data, size_t size, off_t offset);
extern ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset);
extern ssize_t __pwrite64(int file, const void *data, size_t size, off64_t offset);
ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
    char path[4096];
    return HITS_ON(FAULT_WRITE, path_of(FAULT_WRITE, file, path)) ? -1 : __pwrite64(file, data, size, offset);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    char path[4096];
    return HITS_ON(FAULT_WRITE, path_of(FAULT_WRITE, file, path)) ? -1 : __pwrite64(file, data, size, offset);
}

WRAP(int, zmq_send, void *socket, const void *data, size_t size, int flags) {
    char type[32];
    return HITS_ON(FAULT_SEND, type_of(data, size, type)) ? -1 : __real_zmq_send(socket, data, size, flags);
}
WRAP(int, zmq_msg_recv, zmq_msg_t *message, void *socket, int flags) {
    return HITS(FAULT_RECEIVE) ? -1 : __real_zmq_msg_recv(message, socket, flags);
}

#define WRAP_MPI(name, parameters, arguments)                                                                          \
    extern int __real_##name parameters;                                                                               \
    extern int __wrap_##name parameters;                                                                               \
    int __wrap_##name parameters {                                                                                     \
        return HITS(FAULT_COLLECTIVE) ? MPI_ERR_OTHER : __real_##name arguments;                                       \
    }
WRAP_MPI(MPI_Ibarrier, (MPI_Comm comm, MPI_Request *request), (comm, request))
WRAP_MPI(MPI_Ibcast, (void *data, int n, MPI_Datatype type, int root, MPI_Comm comm, MPI_Request *request),
         (data, n, type, root, comm, request))
WRAP_MPI(MPI_Iallreduce,
         (const void *in, void *out, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm, MPI_Request *request),
         (in, out, n, type, op, comm, request))
WRAP_MPI(MPI_Ireduce,
         (const void *in, void *out, int n, MPI_Datatype type, MPI_Op op, int root, MPI_Comm comm,
          MPI_Request *request),
         (in, out, n, type, op, root, comm, request))
WRAP_MPI(MPI_Iallgatherv,
         (const void *in, int n, MPI_Datatype type, void *out, const int *counts, const int *at, MPI_Datatype out_type,
          MPI_Comm comm, MPI_Request *request),
         (in, n, type, out, counts, at, out_type, comm, request))

WRAP(status_t, optimizer_begin, optimizer_t *optimizer) {
    planted_commit(rank_text);
    return HITS(FAULT_UPDATE) ? STATUS_NEW(STATUS_FAILED, "an injected fault") : __real_optimizer_begin(optimizer);
}

extern _Noreturn void __real__exit(int code);
extern _Noreturn void __wrap__exit(int code);
_Noreturn void __wrap__exit(int code) {
    counts_write();
    __real__exit(code);
}

// Open MPI unloads its plugins before leaks are looked for, and then none of its own can be told from ours by name.
extern int dlclose(void *handle);
int dlclose(void *handle) {
    (void)handle;
    return 0;
}
