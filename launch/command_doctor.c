// poise doctor: looks at this machine and says what is wrong and how to mend it.
#include "common/comm/comm.h"
#include "launch/commands.h"
#include "launch/doctor.h"
#include "launch/report_gnuplot.h"

#include <hdf5.h>
#include <inttypes.h>
#include <mpi.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zmq.h>

void doctor_say(doctor_t *doctor, verdict_t verdict, const char *what, const char *mend, const char *format, ...) {
    static const char *const names[] = {"ok", "warning", "problem"};
    va_list arguments;
    va_start(arguments, format);
    printf("%-8s %-12s ", names[verdict], what);
    vprintf(format, arguments);
    printf("%s%s\n", mend ? "; " : "", mend ? mend : "");
    va_end(arguments);
    fflush(stdout);
    doctor->warnings += verdict == VERDICT_WARNING;
    doctor->problems += verdict == VERDICT_PROBLEM;
}

// ---- CPU ----

static status_t fingerprint_of(const char *name, uint64_t *out, char kernels[32]) {
    device_t *device;
    TRY(device_open(name, 1, &device));
    snprintf(kernels, 32, "%s", device->kernels);
    status_t status = device_fingerprint(device, out);
    device_close(device);
    return status;
}

// The kernel sets of this CPU must all compute what the portable one computes.
static void check_kernels(doctor_t *doctor) {
    static const char *const sets[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};
    uint64_t portable = 0, found = 0;
    char kernels[32];
    for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
        status_t status = fingerprint_of(sets[i], &found, kernels);
        if (i == 0) portable = found;
        if (!status && found == portable)
            doctor_say(doctor, VERDICT_OK, "kernels", NULL, "%s, fingerprint %016" PRIx64 "%s", sets[i], found,
                       i ? ", equal to the portable one" : "");
        else if (!status)
            doctor_say(doctor, VERDICT_PROBLEM, "kernels",
                       "use device: cpu:portable, and report this with the name of the CPU",
                       "%s computes other bits (%016" PRIx64 ") than the portable kernels", sets[i], found);
        else if (i && status_kind(status) == STATUS_UNAVAILABLE)
            doctor_say(doctor, VERDICT_OK, "kernels", NULL, "%s is not for this CPU", sets[i]);
        else
            doctor_say(doctor, VERDICT_PROBLEM, "kernels", "see the sentence before", "%s: %s", sets[i],
                       status_message(status));
        status_free(status);
    }
    status_t status = fingerprint_of("cpu", &found, kernels);
    if (!status) doctor_say(doctor, VERDICT_OK, "kernels", NULL, "device: cpu chooses %s", kernels);
    status_free(status);
}

// ---- limits ----

// A number of /proc/meminfo, in MiB; -1 when it is not there.
static int64_t memory_mib(const char *key) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[256];
    int64_t out = -1;
    size_t length = strlen(key);
    while (file && out < 0 && fgets(line, sizeof(line), file))
        if (!strncmp(line, key, length) && line[length] == ':') out = strtoll(line + length + 1, NULL, 10) / 1024;
    if (file) fclose(file);
    return out;
}

// What the control group grants, in MiB; -1: no limit of its own.
static int64_t group_memory_mib(void) {
    static const char *const files[] = {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        FILE *file = fopen(files[i], "r");
        char text[64] = "";
        bool got = file && fgets(text, sizeof(text), file);
        if (file) fclose(file);
        if (!got || *text < '0' || *text > '9') continue;
        long long bytes = strtoll(text, NULL, 10);
        if (bytes < (1LL << 50)) return bytes >> 20;
    }
    return -1;
}

static void check_memory(doctor_t *doctor) {
    int64_t total = memory_mib("MemTotal"), available = memory_mib("MemAvailable"), group = group_memory_mib();
    if (group >= 0 && group < total) total = group;
    if (group >= 0 && group < available) available = group;
    bool little = available >= 0 && available < 2048;
    doctor_say(doctor, little ? VERDICT_WARNING : VERDICT_OK, "memory",
               little ? "the quickstart wants about 2,000; end other programs" : NULL,
               "%" PRId64 " MiB, of them %" PRId64 " available", total, available);
    struct statvfs about;
    if (statvfs("/dev/shm", &about)) {
        doctor_say(doctor, VERDICT_WARNING, "/dev/shm",
                   "ranks of one node talk over TCP; in a container mount a tmpfs there", "it does not exist");
        return;
    }
    int64_t size = (int64_t)((uint64_t)about.f_blocks * about.f_frsize >> 20);
    int64_t free_mib = (int64_t)((uint64_t)about.f_bavail * about.f_frsize >> 20);
    little = free_mib < 128;
    doctor_say(doctor, little ? VERDICT_WARNING : VERDICT_OK, "/dev/shm",
               little ? "start the container with --shm-size=1g, or empty it" : NULL,
               "%" PRId64 " MiB, of them %" PRId64 " free", size, free_mib);
}

static void check_files(doctor_t *doctor) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return;
    bool few = limit.rlim_cur < 1024;
    doctor_say(doctor,
               limit.rlim_cur < 256 ? VERDICT_PROBLEM
               : few                ? VERDICT_WARNING
                                    : VERDICT_OK,
               "open files", few ? "raise it with 'ulimit -n 4096' before mpirun" : NULL,
               "limit %llu (hard limit %llu)", (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
}

// ---- libraries ----

static void check_gnuplot(doctor_t *doctor) {
    char *version = NULL;
    status_t status = gnuplot_version(&version);
    if (version)
        doctor_say(doctor, VERDICT_OK, "gnuplot", NULL, "%s", version);
    else
        doctor_say(doctor, VERDICT_WARNING, "gnuplot", "reports come without plots; install gnuplot-nox",
                   "it is not here");
    status_free(status);
    free(version);
}

static void check_hdf5(doctor_t *doctor) {
    unsigned major, minor, patch;
    hbool_t threadsafe = false;
    if (H5get_libversion(&major, &minor, &patch) < 0) {
        doctor_say(doctor, VERDICT_PROBLEM, "HDF5", "install libhdf5 again", "the library does not start");
        return;
    }
    (void)H5is_library_threadsafe(&threadsafe);
    bool same = major == H5_VERS_MAJOR && minor == H5_VERS_MINOR;
    doctor_say(doctor, same ? VERDICT_OK : VERDICT_PROBLEM, "HDF5",
               same ? NULL : "build Poise again with the library that is installed", "%u.%u.%u, %s%s", major, minor,
               patch, threadsafe ? "thread-safe" : "not thread-safe (one thread of a process uses it, so that is fine)",
               same ? "" : ", not the version Poise was built with");
}

// A message over loopback.
static bool loopback_works(void *context) {
    void *server = zmq_socket(context, ZMQ_PAIR), *client = zmq_socket(context, ZMQ_PAIR);
    char endpoint[256] = "", got[8] = "";
    size_t size = sizeof(endpoint);
    int deadline = 3000, none = 0;
    bool works = server && client;
    for (int i = 0; works && i < 2; i++) {
        works = !zmq_setsockopt(i ? client : server, ZMQ_RCVTIMEO, &deadline, sizeof(deadline)) &&
                !zmq_setsockopt(i ? client : server, ZMQ_SNDTIMEO, &deadline, sizeof(deadline)) &&
                !zmq_setsockopt(i ? client : server, ZMQ_LINGER, &none, sizeof(none));
    }
    works = works && !zmq_bind(server, "tcp://127.0.0.1:*") &&
            !zmq_getsockopt(server, ZMQ_LAST_ENDPOINT, endpoint, &size) && !zmq_connect(client, endpoint) &&
            zmq_send(client, "poise", 5, 0) == 5 && zmq_recv(server, got, sizeof(got), 0) == 5 &&
            !memcmp(got, "poise", 5);
    if (server) zmq_close(server);
    if (client) zmq_close(client);
    return works;
}

static void check_zeromq(doctor_t *doctor) {
    int major, minor, patch;
    char public_key[41], secret_key[41];
    zmq_version(&major, &minor, &patch);
    bool old = major < 4 || (major == 4 && minor < 3);
    doctor_say(doctor, old ? VERDICT_PROBLEM : VERDICT_OK, "ZeroMQ", old ? "install libzmq 4.3 or later" : NULL,
               "%d.%d.%d", major, minor, patch);
    bool curve = zmq_has("curve") && !zmq_curve_keypair(public_key, secret_key);
    doctor_say(doctor, curve ? VERDICT_OK : VERDICT_WARNING, "CURVE",
               curve ? NULL : "jobs on several nodes need a libzmq built with libsodium",
               curve ? "encrypted streams are available" : "this libzmq has no encryption");
    void *context = zmq_ctx_new();
    bool works = context && loopback_works(context);
    if (context) zmq_ctx_term(context);
    doctor_say(doctor, works ? VERDICT_OK : VERDICT_PROBLEM, "loopback",
               works ? NULL : "look at the firewall and whether the interface 'lo' is up ('ip link set lo up')",
               works ? "a message over tcp://127.0.0.1 arrived" : "no message over tcp://127.0.0.1 arrives");
}

// ---- MPI ----

static bool in_path(const char *program) {
    const char *path = getenv("PATH");
    char full[4096];
    while (path && *path) {
        size_t length = strcspn(path, ":");
        if (snprintf(full, sizeof(full), "%.*s/%s", (int)length, path, program) < (int)sizeof(full) &&
            !access(full, X_OK))
            return true;
        path += length + (path[length] == ':');
    }
    return false;
}

static bool set_to_one(const char *name) {
    const char *value = getenv(name);
    return value && !strcmp(value, "1");
}

static void check_mpi_settings(doctor_t *doctor, bool open_mpi) {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof(set), &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    const char *binding = getenv("OMPI_MCA_hwloc_base_binding_policy");
    bool slurm = getenv("SLURM_JOB_ID") != NULL;
    bool launcher = in_path("mpirun") || in_path("srun");
    doctor_say(doctor, launcher ? VERDICT_OK : VERDICT_PROBLEM, "launcher",
               launcher ? NULL : "install openmpi-bin, or load the cluster's MPI module", "%s",
               launcher ? in_path("srun") ? in_path("mpirun") ? "mpirun and srun" : "srun" : "mpirun"
                        : "neither mpirun nor srun is in PATH");
    if (!open_mpi || slurm) return;
    if (!geteuid()) {
        bool allowed = set_to_one("OMPI_ALLOW_RUN_AS_ROOT") && set_to_one("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM");
        doctor_say(doctor, allowed ? VERDICT_OK : VERDICT_WARNING, "root",
                   allowed ? NULL : "source launch/env, use launch/run, or run as another user",
                   allowed ? "mpirun may run as root" : "Open MPI's mpirun refuses root");
    }
    bool over = set_to_one("OMPI_MCA_rmaps_base_oversubscribe");
    doctor_say(doctor, over || cores >= 5 ? VERDICT_OK : VERDICT_WARNING, "slots",
               over || cores >= 5 ? NULL : "source launch/env or use launch/run to start more ranks than cores",
               "%d core%s%s", cores, cores == 1 ? "" : "s", over ? ", and more ranks than cores are allowed" : "");
    bool bound = !binding || strcmp(binding, "none") != 0;
    doctor_say(doctor, bound ? VERDICT_WARNING : VERDICT_OK, "binding",
               bound ? "source launch/env or use launch/run, or a rank's threads share one core" : NULL,
               bound ? "mpirun binds each rank to a core" : "ranks are not bound to cores");
}

static status_t mpi_self_test(doctor_t *doctor, int *rank, int *size) {
    comm_t *world;
    TRY(comm_open_world(20, NULL, &world));
    *rank = comm_world_rank(world);
    *size = comm_size(world);
    int64_t sum = 1;
    status_t status = comm_all_reduce_i64(world, &sum, 1, COMM_SUM, "doctor");
    if (!status && sum != *size) status = STATUS_NEW(STATUS_FAILED, "a sum over %d ranks gave %" PRId64, *size, sum);
    if (!status) doctor_check_places(doctor, world);
    return status_first(status, comm_close_world(world));
}

// Last, because a broken MPI may end the process. *rank is 0 where MPI does not say.
static void check_mpi(doctor_t *doctor, int *rank) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "unknown";
    int length, size = 0;
    *rank = 0;
    (void)MPI_Get_library_version(version, &length);
    version[strcspn(version, ",\n")] = 0;
    doctor_say(doctor, VERDICT_OK, "MPI", NULL, "%s", version);
    check_mpi_settings(doctor, strstr(version, "Open MPI") != NULL);
    status_t status = mpi_self_test(doctor, rank, &size);
    if (status)
        doctor_say(doctor, VERDICT_PROBLEM, "MPI test",
                   "look whether mpirun and the library Poise was built with belong together", "%s",
                   status_message(status));
    else
        doctor_say(doctor, VERDICT_OK, "MPI test", NULL, "a collective over %d rank%s worked", size,
                   size == 1 ? "" : "s");
    status_free(status);
}

status_t command_doctor(int argc, char **argv) {
    doctor_t doctor = {0};
    int rank;
    if (argc > 1) FAIL(STATUS_INVALID, "poise doctor takes no arguments, not '%s'", argv[1]);
    check_kernels(&doctor);
    doctor_check_cuda(&doctor);
    doctor_check_simulator(&doctor);
    check_memory(&doctor);
    check_files(&doctor);
    check_hdf5(&doctor);
    check_zeromq(&doctor);
    check_gnuplot(&doctor);
    check_mpi(&doctor, &rank);
    if (!rank)
        printf("\n%d problem%s, %d warning%s\n", doctor.problems, doctor.problems == 1 ? "" : "s", doctor.warnings,
               doctor.warnings == 1 ? "" : "s");
    if (doctor.problems)
        FAIL(STATUS_FAILED, "this machine has %d problem%s; the lines above say how to mend %s", doctor.problems,
             doctor.problems == 1 ? "" : "s", doctor.problems == 1 ? "it" : "them");
    return STATUS_OK;
}
