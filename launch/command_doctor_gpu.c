// poise doctor: the GPUs, real or pretended, and what they need.
#include "launch/doctor.h"

#include "common/comm/nccl_load.h"
#include "common/comm/placement.h"
#include "kernels/sim/nccl.h"
#include "kernels/streams.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// NULL in a program that is not linked with them.
#pragma weak sim_nccl
#pragma weak device_cuda_table
#pragma weak device_sim_table

enum { GPUS_SHOWN = 16, LIST_BYTES = 2048 };

static const device_streams_t *streams_of(const char *member) {
    const device_table_t *table = !strcmp(member, "cuda") ? &device_cuda_table : &device_sim_table;
    return device_known(member) ? table->streams : NULL;
}

// How many GPUs the member sees; their places are not wanted here. 0 where it sees none.
static int gpu_count(const char *member) {
    char list[LIST_BYTES];
    int count = 0;
    status_t status = device_known(member) ? device_list(member, list, sizeof(list)) : STATUS_OK;
    for (const char *at = status || !device_known(member) ? "" : list; (at = strchr(at, ' ')); at++) count++;
    status_free(status);
    return count;
}

static void say_gpu(doctor_t *doctor, int ordinal, const device_about_t *about) {
    double left = (double)about->left / (1 << 20), total = (double)about->total / (1 << 20);
    if (!about->supported)
        doctor_say(doctor, VERDICT_PROBLEM, "GPU",
                   about->major < 8 ? "the kernels need 8.0 or later: use device: cpu"
                                    : "build Poise with that number in -DPOISE_CUDA_ARCHITECTURES",
                   "%d: %s (%s) has compute capability %d.%d, and this program's kernels were built for %s", ordinal,
                   about->name, about->place, about->major, about->minor, about->built_for);
    else
        doctor_say(doctor, VERDICT_OK, "GPU", NULL,
                   "%d: %s (%s), compute capability %d.%d (kernels for %s), %.0f MiB, of them %.0f free", ordinal,
                   about->name, about->place, about->major, about->minor, about->built_for, total, left);
}

static void say_versions(doctor_t *doctor, const device_about_t *about) {
    int driver = about->driver / 1000, runtime = about->runtime / 1000;
    bool old = driver < runtime;
    doctor_say(doctor, old ? VERDICT_PROBLEM : VERDICT_OK, "CUDA",
               old ? "install a newer driver, or build Poise with an older toolkit" : NULL,
               "the driver is for CUDA %d.%d, this program's runtime is %d.%d", driver, about->driver % 1000 / 10,
               runtime, about->runtime % 1000 / 10);
}

static status_t nccl_number(const char *member, int *out) {
    nccl_library_t call;
    void *loaded = NULL;
    if (!strcmp(member, "sim")) {
        if (!&sim_nccl) FAIL(STATUS_UNAVAILABLE, "this build has no stand-in of NCCL");
        call = sim_nccl;
    } else {
        TRY(nccl_load(&call, &loaded));
    }
    int code = call.get_version(out);
    if (loaded) nccl_unload(loaded);
    if (code != NCCL_SUCCESS) FAIL(STATUS_FAILED, "NCCL does not say its version");
    return STATUS_OK;
}

static void say_nccl(doctor_t *doctor, const char *member, int gpus) {
    int version = 0;
    status_t status = nccl_number(member, &version);
    if (!status)
        doctor_say(doctor, VERDICT_OK, "NCCL", NULL, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    else
        doctor_say(doctor, gpus > 1 ? VERDICT_WARNING : VERDICT_OK, "NCCL",
                   gpus > 1 ? "learners exchange gradients through the host's memory without it" : NULL, "%s",
                   status_message(status));
    status_free(status);
}

static void say_device(doctor_t *doctor, const char *member) {
    device_t *device;
    status_t status = device_open(member, 1, &device);
    if (!status) {
        doctor_say(doctor, VERDICT_OK, "CUDA", NULL, "device: %s runs %s kernels; %s", member, device->kernels,
                   device->note);
        device_close(device);
    } else {
        doctor_say(doctor, VERDICT_PROBLEM, "CUDA", NULL, "device: %s does not open: %s", member,
                   status_message(status));
    }
    status_free(status);
}

static void check_gpus(doctor_t *doctor, const char *member) {
    const device_streams_t *streams = streams_of(member);
    int gpus = gpu_count(member);
    device_about_t about;
    bool any = false;
    for (int i = 0; i < gpus && i < GPUS_SHOWN; i++) {
        status_t status = streams->about(i, &about);
        if (!status && !i) say_versions(doctor, &about);
        if (status)
            doctor_say(doctor, VERDICT_PROBLEM, "GPU", NULL, "%d cannot be used: %s", i, status_message(status));
        else
            say_gpu(doctor, i, &about);
        any = any || (!status && about.supported);
        status_free(status);
    }
    if (gpus > GPUS_SHOWN) doctor_say(doctor, VERDICT_OK, "GPU", NULL, "and so on: %d in all", gpus);
    if (any) say_device(doctor, member);
    say_nccl(doctor, member, gpus);
}

void doctor_check_cuda(doctor_t *doctor) {
    char list[LIST_BYTES];
    bool present = !access("/dev/nvidia0", F_OK);
    status_t status = device_list("cuda", list, sizeof(list));
    if (!status)
        check_gpus(doctor, "cuda");
    else
        doctor_say(doctor, present ? VERDICT_WARNING : VERDICT_OK, "CUDA", NULL, "%s%s", status_message(status),
                   present ? " (this machine has an NVIDIA GPU)" : "");
    status_free(status);
}

// The simulator runs the GPU's kernels on the CPU: for tests, and thousands of times slower.
void doctor_check_simulator(doctor_t *doctor) {
    device_t *device;
    if (!device_known("sim")) {
        doctor_say(doctor, VERDICT_OK, "simulator", NULL, "this build has none");
        return;
    }
    if (getenv("POISE_SIM_GPUS")) check_gpus(doctor, "sim"); // it pretends to have so many
    status_t status = device_open("sim", 1, &device);
    if (!status) {
        doctor_say(doctor, VERDICT_OK, "simulator", NULL,
                   "device: sim runs the GPU's kernels on this CPU, for tests; %s", device->note);
        device_close(device);
    } else {
        doctor_say(doctor, VERDICT_WARNING, "simulator", NULL, "%s", status_message(status));
    }
    status_free(status);
}

// Which GPU each rank would compute on, where there are any. Collective over the world.
void doctor_check_places(doctor_t *doctor, comm_t *world) {
    const char *member = gpu_count("cuda") ? "cuda" : getenv("POISE_SIM_GPUS") && gpu_count("sim") ? "sim" : NULL;
    char list[LIST_BYTES] = "", host[128] = "";
    int ordinal = 0;
    // A machine without GPUs must not keep the others waiting.
    int64_t none = member == NULL;
    status_t status = comm_all_reduce_i64(world, &none, 1, COMM_MAX, "doctor");
    if (status || none) {
        status_free(status);
        return;
    }
    gethostname(host, sizeof(host) - 1);
    status = placement_ordinal(world, member, &ordinal);
    if (!status) status = device_list(member, list, sizeof(list));
    const char *place = list;
    for (int i = 0; !status && i < ordinal && strchr(place, ' '); i++) place = strchr(place, ' ') + 1;
    if (status)
        doctor_say(doctor, VERDICT_PROBLEM, "placement", NULL, "%s", status_message(status));
    else
        doctor_say(doctor, VERDICT_OK, "placement", NULL, "rank %d, local rank %d of %s: %s:%d (%.*s)",
                   comm_rank(world), comm_local_rank(world), host, member, ordinal, (int)strcspn(place, " "), place);
    status_free(status);
}
