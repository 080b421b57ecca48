// A model of bare tensors with hand-made gradients, for tests of the optimizer.
#ifndef TESTS_LIB_OPTIMIZER_FIXTURE_H
#define TESTS_LIB_OPTIMIZER_FIXTURE_H

#include "kernels/base/philox.h"
#include "learner/optimizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIXTURE_TENSORS = 3 };

typedef struct fixture {
    device_t *device;
    model_t model;
    int64_t mark;
} fixture_t;

// Stops the test program when a status is an error: cmocka shows the sentence.
#define EXPECT_OK(expression)                                                                                          \
    do {                                                                                                               \
        status_t expect_status_ = (expression);                                                                        \
        if (expect_status_) fail_msg("%s", status_message(expect_status_));                                            \
    } while (0)

static inline void fixture_open(fixture_t *fixture, const char *const *names, const int (*shapes)[2]) {
    memset(fixture, 0, sizeof(*fixture));
    EXPECT_OK(device_open("cpu", 1, &fixture->device));
    model_t *model = &fixture->model;
    model->device = fixture->device;
    model->parameter_count = FIXTURE_TENSORS;
    EXPECT_OK(ALLOCATE(&model->spec, FIXTURE_TENSORS));
    EXPECT_OK(ALLOCATE(&model->parameter, FIXTURE_TENSORS));
    EXPECT_OK(ALLOCATE(&model->adapter, FIXTURE_TENSORS));
    for (int t = 0; t < FIXTURE_TENSORS; t++) {
        parameter_spec_t *spec = &model->spec[t];
        EXPECT_OK(memory_copy_string(names[t], &spec->name));
        spec->part = PART_LANGUAGE;
        spec->rows = shapes[t][0];
        spec->columns = shapes[t][1];
        spec->elements = (int64_t)spec->rows * spec->columns;
        float *values;
        EXPECT_OK(ALLOCATE(&values, spec->elements));
        model->parameter[t].value = matrix_view(values, DTYPE_F32, spec->rows, spec->columns);
        model->parameter[t].sink.sum = &fixture->mark;
    }
}

static inline void fixture_close(fixture_t *fixture) {
    model_t *model = &fixture->model;
    for (int t = 0; t < model->parameter_count; t++) {
        free(model->parameter[t].value.data);
        free(model->spec[t].name);
    }
    free(model->spec);
    free(model->parameter);
    free(model->adapter);
    device_close(fixture->device);
}

static inline float *fixture_values(fixture_t *fixture, int tensor) {
    return fixture->model.parameter[tensor].value.data;
}

// One contribution to one element, as kernels/device.h defines it.
static inline void fixture_contribute(const gradient_sink_t *sink, int64_t element, double gradient) {
    if (!isfinite(gradient)) {
        *sink->flags |= GRADIENT_NOT_FINITE;
        return;
    }
    double scaled = nearbyint(ldexp(gradient, sink->exponent));
    if (fabs(scaled) >= ldexp(1.0, GRADIENT_LIMIT_BITS)) {
        *sink->flags |= GRADIENT_OVERFLOW;
        return;
    }
    sink->sum[element] += (int64_t)scaled;
}

#endif
