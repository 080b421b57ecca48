// Inside the optimizer: the flat space, its owner's part, and the pieces that optimizer*.c share.
#ifndef LEARNER_OPTIMIZER_INTERNAL_H
#define LEARNER_OPTIMIZER_INTERNAL_H

#include "learner/optimizer.h"

enum {
    EXPONENT_START = 30,   // a first step's contributions may reach 2^17 and resolve 2^-30
    EXPONENT_PROBE = 60,   // looks for a gradient where EXPONENT_START saw none
    EXPONENT_QUIET = 44,   // of a tensor whose gradient has been exactly zero so far (LoRA's A while B is zero)
    EXPONENT_TARGET = 38,  // where the largest total of a step should sit, in bits: 2^9 below the limit
    EXPONENT_RETREAT = 14, // how far an exponent goes down when a contribution overflowed
    EXPONENT_LEAST = -100, // below: the gradient is beyond what fp32 training can mean
    EXPONENT_MOST = 110,   // 2^110 times any fp32 contribution is still finite in double, and exact
    TOTAL_LIMIT_BITS = 62, // longer totals are taken for an overflow of the sum
    CALIBRATION_BITS = 24, // a first total shorter than this is summed again, finer
};

// What is known of a tensor's gradient; part of the state that a checkpoint keeps.
typedef enum calibration { CALIBRATION_FRESH, CALIBRATION_PROBED, CALIBRATION_DONE } calibration_t;
typedef struct optimizer_scale {
    int exponent;
    int ceiling; // the exponent stays at or below; lowered by an overflow, rising by one a step
    calibration_t calibration;
} optimizer_scale_t;

// A part of one tensor that lies in this rank's range of blocks.
typedef struct optimizer_segment {
    int tensor;
    int64_t first; // element of the tensor
    int64_t count; // elements, padding left out
    int64_t local; // offset in this rank's masters and moments
} optimizer_segment_t;

struct optimizer {
    const config_t *config;
    model_t *model;
    device_t *device;
    comm_t *comm;
    comm_t *device_comm; // the same ranks by NCCL, on the device's memory; NULL: through the host's
    size_t host_bytes;   // beside the device's
    comm_t *sum_comm;    // what gradients go by: device_comm, or one of the same ranks for nothing else
    bool host_memory;    // the device's memory is the host's: nothing is staged
    trained_tensor_t *tensor;
    int tensors;
    int64_t *start;  // [tensors + 1] first element of each tensor in the flat space, multiples of GRADIENT_BLOCK
    int64_t blocks;  // of the flat space
    int64_t *offset; // [ranks + 1] elements: rank r owns offset[r] .. offset[r+1] - 1
    int64_t *bytes;  // [ranks + 1] scratch for all-gathers
    int64_t own_first, own_count;
    optimizer_segment_t *segment;
    int segments;
    int64_t *sum;                                 // device, [blocks * GRADIENT_BLOCK]
    int64_t *staged_sum;                          // host; the same memory as `sum` where host_memory
    float *master, *first_moment, *second_moment; // device, [own_count]
    float *flat;                                  // host, [blocks * GRADIENT_BLOCK]: what is gathered and published
    uint32_t *flags;                              // device, [tensors]
    uint32_t *host_flags;                         // host, [tensors]; the same memory where host_memory
    double *square_sum;                           // host, [blocks]
    int64_t *absmax;                              // host, [tensors]
    double *device_square_sum;                    // device, [blocks]; the host's where host_memory
    int64_t *device_absmax;                       // device, [tensors]; the host's where host_memory
    int64_t *reduced;                             // host, [3 * tensors]: collectives and checkpoints of small numbers
    optimizer_scale_t *scale;                     // [tensors]
    int64_t updates;                              // done: AdamW's t
    int64_t skipped_in_row;                       // steps left out since the last one that was not
    int64_t bucket_blocks;                        // blocks of a bucket: optimizer_reduce.c
    int buckets, bucket_next;                     // how many there are; how many of this try's have begun
    int early;                                    // of them: with some of backward still to come
    double early_since, hidden_s;                 // when the first of those began; from there to the end of backward
    size_t *bucket_op; // [buckets at most] the op that makes it final; SIZE_MAX: none touches it
    int64_t *part;     // [2 * ranks] scratch
    tape_listener_t listener;
    bool *changed; // [model->parameter_count] what a publication touches
};

// Cuts the flat space into buckets and opens what sums go by. Collective.
status_t optimizer_layout_buckets(optimizer_t *optimizer) STATUS_CHECKED;
// Buckets of at least so many blocks, the same on every rank; for tests, whose models are small.
void optimizer_cut_buckets(optimizer_t *optimizer, int64_t least_blocks);
// Begins what has not begun, waits, and puts this rank's sums where the device has them. Collective.
status_t optimizer_reduce_end(optimizer_t *optimizer) STATUS_CHECKED;
// Gathers one of the three sharded arrays (device, [own_count]) into optimizer->flat on every rank. Collective.
status_t optimizer_gather(optimizer_t *optimizer, const float *own, const char *phase) STATUS_CHECKED;
// Gathers the masters and writes them, rounded to the model's dtype, into its published tensors. Collective.
status_t optimizer_publish(optimizer_t *optimizer, int64_t version) STATUS_CHECKED;

#endif
