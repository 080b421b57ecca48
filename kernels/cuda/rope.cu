// rope_table and rope: an element is a function of its inputs alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_shim.h"

enum { ROPE_THREADS = 128, ROPE_BYTES = 16 };

typedef struct turn {
    double cosine, sine;
} turn_t;

// cos and sin of an fp32 angle to within 0.51 units in the last place of a double. Both members of the seam compute
// every step with IEEE operations in the same order, so that the table has one meaning on a GPU and on a CPU; a
// library's sincos differs from another's in the last bit.
//
// The angle loses whole quarter turns first. pi / 2 is the sum of three doubles: the product with the first is taken
// exactly, in two parts, and its upper part is so near the angle that their difference is exact. That holds up to 2^40;
// positions are below 2^31 and frequencies at most 1.
static __device__ __forceinline__ turn_t rope_turn(double angle) {
    const double first = 1.5707963267948966, second = 6.123233995736766e-17, third = -1.4973849048591698e-33;
    double quarter = rint(angle * 0.6366197723675814);
    double upper = quarter * first, lower = fma(quarter, first, -upper);
    double next = quarter * second, next_lower = fma(quarter, second, -next);
    double near = angle - upper, rest = near - lower; // near is exact; what rest rounds away comes back with the tail
    double rest_tail = near - rest;
    rest_tail = (near - (rest + rest_tail)) + (rest_tail - lower);
    double x = rest - next, x_tail = rest - x;
    x_tail = (rest - (x + x_tail)) + (x_tail - next);
    double tail = x_tail + (rest_tail - fma(quarter, third, next_lower));
    double r = x + tail;
    tail = (x - r) + tail;
    // Taylor's series of r within pi / 4; the terms left out are below 2^-60 of the sum.
    double z = r * r;
    double s = fma(z, -8.22063524662433e-18, 2.8114572543455206e-15);
    s = fma(z, s, -7.647163731819816e-13);
    s = fma(z, s, 1.6059043836821613e-10);
    s = fma(z, s, -2.505210838544172e-08);
    s = fma(z, s, 2.7557319223985893e-06);
    s = fma(z, s, -0.0001984126984126984);
    s = fma(z, s, 0.008333333333333333);
    s = fma(z, s, -0.16666666666666666);
    double c = fma(z, 4.110317623312165e-19, -1.5619206968586225e-16);
    c = fma(z, c, 4.779477332387385e-14);
    c = fma(z, c, -1.1470745597729725e-11);
    c = fma(z, c, 2.08767569878681e-09);
    c = fma(z, c, -2.755731922398589e-07);
    c = fma(z, c, 2.48015873015873e-05);
    c = fma(z, c, -0.001388888888888889);
    c = fma(z, c, 0.041666666666666664);
    double half = 0.5 * z, most = 1.0 - half;
    double sine = r + fma(r * z, s, tail * most);
    double cosine = most + (((1.0 - most) - half) + (z * z * c - r * tail));
    int turns = (int)((long long)quarter & 3);
    turn_t out = {turns & 1 ? sine : cosine, turns & 1 ? cosine : sine};
    if (turns == 1 || turns == 2) out.cosine = -out.cosine;
    if (turns >= 2) out.sine = -out.sine;
    return out;
}

typedef struct rope_axes {
    const int32_t *position[3];
} rope_axes_t;

static __device__ __forceinline__ float rope_value(double value, bool half) {
    float out = (float)value;
    return half ? __bfloat162float(__float2bfloat16_rn(out)) : out;
}

static __global__ void __launch_bounds__(ROPE_THREADS)
    rope_table_kernel(rope_axes_t axes, const int32_t *axis, const float *frequency, bool half_precision, int64_t count,
                      int half, uint32_t *fault, float *cosine, float *sine) {
    int64_t at = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (at >= count) return;
    int j = (int)(at % half), own = axis[j];
    if (!cuda_index(own, 3, fault, CUDA_FAULT_ROPE)) return;
    const int32_t *position = own == 0 ? axes.position[0] : own == 1 ? axes.position[1] : axes.position[2];
    if (!cuda_index(position ? 0 : -1, 1, fault, CUDA_FAULT_ROPE)) return;
    float angle = __fmul_rn((float)position[at / half], frequency[j]);
    turn_t turn = rope_turn((double)angle);
    cosine[at] = rope_value(turn.cosine, half_precision);
    sine[at] = rope_value(turn.sine, half_precision);
}

extern "C" status_t CUDA_NAME(rope_table)(device_t *device, const rope_table_args_t *args) {
    TRY(check_rope_table(args));
    if (device->measuring || args->rows == 0) return STATUS_OK;
    uint32_t *fault = cuda_fault(device);
    void *stream = cuda_stream(device);
    rope_axes_t axes = {{args->position[0], args->position[1], args->position[2]}};
    const int32_t *axis = args->axis;
    const float *frequency = args->inverse_frequency;
    float *cosine = args->cosine, *sine = args->sine;
    bool half_precision = args->precision == DTYPE_BF16;
    int half = args->half;
    int64_t count = (int64_t)args->rows * half;
    return CUDA_LAUNCH(rope_table_kernel, dim3((unsigned)((count + ROPE_THREADS - 1) / ROPE_THREADS)),
                       dim3(ROPE_THREADS), 0, stream, axes, axis, frequency, half_precision, count, half, fault, cosine,
                       sine);
}

// As many elements of x as 16 bytes hold, where rows are aligned so; else one by one.
template <typename x_t, int width> struct alignas(width * sizeof(x_t)) rope_pack { x_t value[width]; };

// A thread turns `width` pairs of one head. Products are rounded before they meet, as the CPU's are.
template <typename x_t, int width>
static __global__ void __launch_bounds__(ROPE_THREADS)
    rope_kernel(x_t *x, int64_t x_stride, const float *cosine, const float *sine, int64_t count, int heads, int half,
                bool inverse) {
    typedef rope_pack<x_t, width> pack_t;
    int64_t at = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (at >= count) return;
    int packs = half / width, j = (int)(at % packs) * width;
    int64_t row = at / packs / heads, head = at / packs % heads;
    pack_t *a_at = (pack_t *)(void *)(x + row * x_stride + head * 2 * half + j);
    pack_t *b_at = (pack_t *)(void *)(x + row * x_stride + head * 2 * half + half + j);
    pack_t a = *a_at, b = *b_at;
    for (int i = 0; i < width; i++) {
        float c = cosine[row * half + j + i], s = sine[row * half + j + i];
        float u = cuda_get(&a.value[i]), v = cuda_get(&b.value[i]);
        float uc = __fmul_rn(u, c), us = __fmul_rn(u, s), vc = __fmul_rn(v, c), vs = __fmul_rn(v, s);
        cuda_put(&a.value[i], inverse ? __fadd_rn(uc, vs) : __fadd_rn(uc, -vs));
        cuda_put(&b.value[i], inverse ? __fadd_rn(vc, -us) : __fadd_rn(vc, us));
    }
    *a_at = a;
    *b_at = b;
}

template <typename x_t> static status_t rope_typed(const rope_args_t *args, void *stream) {
    const int wide = ROPE_BYTES / (int)sizeof(x_t);
    bool aligned = (uintptr_t)args->x.data % ROPE_BYTES == 0 && args->x.stride % wide == 0 && args->half % wide == 0;
    auto kernel = aligned ? rope_kernel<x_t, wide> : rope_kernel<x_t, 1>;
    x_t *x = (x_t *)args->x.data;
    const float *cosine = args->cosine, *sine = args->sine;
    int64_t x_stride = args->x.stride;
    int heads = args->heads, half = args->half;
    bool inverse = args->inverse;
    int64_t count = (int64_t)args->x.rows * heads * (half / (aligned ? wide : 1));
    return CUDA_LAUNCH(kernel, dim3((unsigned)((count + ROPE_THREADS - 1) / ROPE_THREADS)), dim3(ROPE_THREADS), 0,
                       stream, x, x_stride, cosine, sine, count, heads, half, inverse);
}

extern "C" status_t CUDA_NAME(rope)(device_t *device, const rope_args_t *args) {
    TRY(check_rope(args));
    if (device->measuring || args->x.rows == 0) return STATUS_OK;
    void *stream = cuda_stream(device);
    return args->x.dtype == DTYPE_BF16 ? rope_typed<bf16_t>(args, stream) : rope_typed<float>(args, stream);
}
