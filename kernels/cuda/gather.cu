// gather, scatter and pooling. Rows that meet in one gradient are added in the order of their indices: the rows of a
// destination are listed first (counted, placed, sorted), then one block adds them up.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_rows.h"

enum { SCAN_THREADS = 512, LIST_THREADS = 128 };

// Where row i of the index comes from and goes to.
typedef struct move {
    const int32_t *index;
    const int32_t *claim; // scatter: who may write a row; NULL: gather
    int bound;            // of the index
    uint32_t *fault;
} move_t;

// to is the row of y; from the row of x, -1 for zeros. False: nothing is to be done.
static __device__ __forceinline__ bool move_rows(const move_t &move, int64_t i, int64_t *from, int64_t *to) {
    int index = move.index[i];
    *from = move.claim ? i : index;
    *to = move.claim ? index : i;
    if (index == -1) return !move.claim;
    if (!cuda_index(index, move.bound, move.fault, move.claim ? CUDA_FAULT_SCATTER : CUDA_FAULT_GATHER)) return false;
    if (!move.claim || move.claim[index] == (int)i) return true;
    *(volatile uint32_t *)move.fault = CUDA_FAULT_SCATTER; // two rows for one place
    return false;
}

// Copies rows as they are, in units of a row's alignment. Strides in units.
template <typename unit_t>
static __global__ void __launch_bounds__(ROWS_THREADS)
    copy_kernel(rows_grid_t grid, move_t move, const unit_t *x, int64_t x_stride, unit_t *y, int64_t y_stride) {
    int64_t row, from, to;
    int unit;
    if (!rows_place(grid, &row, &unit) || !move_rows(move, row, &from, &to)) return;
    unit_t value = {};
    if (from >= 0) value = x[from * x_stride + unit];
    y[to * y_stride + unit] = value;
}

// The same from one dtype to another.
static __global__ void __launch_bounds__(ROWS_THREADS)
    convert_kernel(rows_grid_t grid, move_t move, rows_t x, rows_t y, int columns) {
    int64_t row, from, to;
    int unit;
    float value[PACK] = {};
    if (!rows_place(grid, &row, &unit) || !move_rows(move, row, &from, &to)) return;
    if (from >= 0) rows_get(x, from, unit * PACK, columns, value);
    rows_put(y, to, unit * PACK, columns, value);
}

// Every row of a scatter writes its number where it wants to go; one of several stays. No entry is read that was not
// written, so the memory needs no zeros.
static __global__ void __launch_bounds__(ROWS_THREADS)
    claim_kernel(const int32_t *index, int count, int bound, uint32_t *fault, int32_t *claim) {
    int i = (int)(blockIdx.x * ROWS_THREADS + threadIdx.x);
    if (i >= count || index[i] == -1) return;
    if (cuda_index(index[i], bound, fault, CUDA_FAULT_SCATTER)) *(volatile int32_t *)&claim[index[i]] = i;
}

// dx[i] += dy[index[i]], and that row of dy becomes 0.
static __global__ void __launch_bounds__(ROWS_THREADS)
    scatter_backward_kernel(rows_grid_t grid, move_t move, rows_t dy, rows_t dx, int columns) {
    int64_t row, from, to;
    int unit;
    float sum[PACK], value[PACK];
    if (!rows_place(grid, &row, &unit) || !move_rows(move, row, &from, &to)) return;
    rows_get(dy, to, unit * PACK, columns, value);
    if (dx.data) {
        rows_get(dx, from, unit * PACK, columns, sum);
        for (int i = 0; i < PACK; i++) sum[i] = __fadd_rn(sum[i], value[i]);
        rows_put(dx, from, unit * PACK, columns, sum);
    }
    for (int i = 0; i < PACK; i++) value[i] = 0.0f;
    rows_put(dy, to, unit * PACK, columns, value);
}

static __global__ void __launch_bounds__(ROWS_THREADS)
    pool_kernel(rows_grid_t grid, const int32_t *index, int count, uint32_t *fault, rows_t x, int x_rows, rows_t y,
                int columns) {
    int64_t row;
    int unit;
    float sum[PACK] = {}, value[PACK];
    if (!rows_place(grid, &row, &unit)) return;
    index += row * count;
    for (int j = 0; j < count; j++) {
        if (!cuda_index(index[j], x_rows, fault, CUDA_FAULT_POOL)) return;
        rows_get(x, index[j], unit * PACK, columns, value);
        for (int i = 0; i < PACK; i++) sum[i] = __fadd_rn(sum[i], value[i]);
    }
    for (int i = 0; i < PACK; i++) sum[i] = __fdiv_rn(sum[i], (float)count);
    rows_put(y, row, unit * PACK, columns, sum);
}

// ---- the rows of each destination ----

typedef struct lists {
    const int32_t *index;
    int count;        // entries of the index
    int destinations; // an entry is below this, or -1 where `gaps` are allowed
    bool gaps;
    cuda_fault_t op;
    uint32_t *fault;
    unsigned *end; // [destinations] counts, then starts, then ends of the lists
    int *order;    // [count] the entries of destination 0, of 1, ...
} lists_t;

static __device__ __forceinline__ bool lists_entry(const lists_t &lists, int *entry) {
    *entry = (int)(blockIdx.x * ROWS_THREADS + threadIdx.x);
    if (*entry >= lists.count || (lists.gaps && lists.index[*entry] == -1)) return false;
    return cuda_index(lists.index[*entry], lists.destinations, lists.fault, lists.op);
}

static __global__ void __launch_bounds__(ROWS_THREADS) lists_count_kernel(lists_t lists) {
    int entry;
    if (lists_entry(lists, &entry)) atomicAdd(&lists.end[lists.index[entry]], 1u);
}

// Counts become starts, in one block: a thread has a run of destinations, and learns what lies before it.
static __global__ void __launch_bounds__(SCAN_THREADS) lists_start_kernel(lists_t lists) {
    CUDA_SHARED(unsigned, warp_sum, [SCAN_THREADS / 32]);
    int thread = (int)threadIdx.x, lane = thread % 32, run = (lists.destinations + SCAN_THREADS - 1) / SCAN_THREADS;
    int first = thread * run, last = first + run < lists.destinations ? first + run : lists.destinations;
    unsigned sum = 0, before = 0;
    for (int i = first; i < last; i++) sum += lists.end[i];
    unsigned upto = sum;
    for (int by = 1; by < 32; by *= 2) {
        unsigned other = __shfl_up_sync(0xffffffffu, upto, (unsigned)by);
        if (lane >= by) upto += other;
    }
    if (lane == 31) warp_sum[thread / 32] = upto;
    __syncthreads();
    for (int warp = 0; warp < thread / 32; warp++) before += warp_sum[warp];
    before += upto - sum;
    for (int i = first; i < last; i++) {
        unsigned count = lists.end[i];
        lists.end[i] = before;
        before += count;
    }
}

// The order within a list depends on who comes first; the sort takes that away again.
static __global__ void __launch_bounds__(ROWS_THREADS) lists_place_kernel(lists_t lists) {
    int entry;
    if (lists_entry(lists, &entry)) lists.order[atomicAdd(&lists.end[lists.index[entry]], 1u)] = entry;
}

static __device__ __forceinline__ void list_exchange(int *list, int low, int high, int count) {
    if (high >= count) return;
    int a = list[low], b = list[high];
    if (a <= b) return;
    list[low] = b;
    list[high] = a;
}

// Bitonic, every comparison putting the smaller entry first, so that a list of any length can be thought of as filled
// up with largest numbers. n log^2 n steps, shared by the block; most lists have one entry.
static __device__ __forceinline__ void list_sort(int *list, int count) {
    int thread = (int)threadIdx.x, pairs = 1;
    while (2 * pairs < count) pairs *= 2;
    for (int size = 2; size / 2 < count; size *= 2) {
        for (int p = thread; p < pairs; p += LIST_THREADS) {
            int base = p / (size / 2) * size, offset = p % (size / 2);
            list_exchange(list, base + offset, base + size - 1 - offset, count);
        }
        __syncthreads();
        for (int half = size / 4; half; half /= 2) {
            for (int p = thread; p < pairs; p += LIST_THREADS) {
                int low = p / half * 2 * half + p % half;
                list_exchange(list, low, low + half, count);
            }
            __syncthreads();
        }
    }
}

// dx[destination] += dy[entry / share] / share, entry by entry; a block for each destination. share is 1 but for
// pooling.
template <bool pooled>
static __global__ void __launch_bounds__(LIST_THREADS)
    lists_add_kernel(lists_t lists, rows_t dy, int share, rows_t dx, int columns) {
    int64_t destination = blockIdx.x;
    unsigned start = destination ? lists.end[destination - 1] : 0;
    int count = (int)(lists.end[destination] - start), *list = lists.order + start;
    if (count > 1) list_sort(list, count);
    for (int c = (int)threadIdx.x * PACK; count && c < columns; c += LIST_THREADS * PACK) {
        float sum[PACK], value[PACK];
        rows_get(dx, destination, c, columns, sum);
        for (int k = 0; k < count; k++) {
            rows_get(dy, pooled ? list[k] / share : list[k], c, columns, value);
            for (int i = 0; i < PACK; i++)
                sum[i] = __fadd_rn(sum[i], pooled ? __fdiv_rn(value[i], (float)share) : value[i]);
        }
        rows_put(dx, destination, c, columns, sum);
    }
}

static status_t lists_add(device_t *device, lists_t lists, const matrix_t *dy_matrix, int share,
                          const matrix_t *dx_matrix) {
    size_t ends = ((size_t)lists.destinations * sizeof(unsigned) + 15) / 16 * 16;
    char *scratch;
    TRY(device_workspace(device, ends + (size_t)lists.count * sizeof(int), (void **)&scratch));
    int columns = dx_matrix->columns;
    if (device->measuring || lists.count == 0 || lists.destinations == 0 || columns == 0) return STATUS_OK;
    void *stream = cuda_stream(device);
    lists.fault = cuda_fault(device);
    lists.end = (unsigned *)scratch;
    lists.order = (int *)(scratch + ends);
    rows_t dy = rows_of(dy_matrix), dx = rows_of(dx_matrix);
    dim3 blocks((unsigned)((lists.count + (int64_t)ROWS_THREADS - 1) / ROWS_THREADS));
    TRY(device->table->zero(device, lists.end, ends));
    TRY(CUDA_LAUNCH(lists_count_kernel, blocks, dim3(ROWS_THREADS), 0, stream, lists));
    TRY(CUDA_LAUNCH(lists_start_kernel, dim3(1), dim3(SCAN_THREADS), 0, stream, lists));
    TRY(CUDA_LAUNCH(lists_place_kernel, blocks, dim3(ROWS_THREADS), 0, stream, lists));
    auto kernel = share > 1 ? lists_add_kernel<true> : lists_add_kernel<false>;
    return CUDA_LAUNCH(kernel, dim3((unsigned)lists.destinations), dim3(LIST_THREADS), 0, stream, lists, dy, share, dx,
                       columns);
}

// ---- the ops ----

template <typename unit_t> static status_t copy_units(const rows_args_t *args, move_t move, int rows, void *stream) {
    int64_t size = (int64_t)dtype_bytes(args->x.dtype), unit = sizeof(unit_t);
    auto kernel = copy_kernel<unit_t>;
    const unit_t *x = (const unit_t *)args->x.data;
    unit_t *y = (unit_t *)args->y.data;
    int64_t x_stride = args->x.stride * size / unit, y_stride = args->y.stride * size / unit;
    rows_grid_t grid = rows_share(rows, (int)(args->x.columns * size / unit), 1);
    if (rows_none(&grid)) return STATUS_OK;
    return CUDA_LAUNCH(kernel, rows_blocks(&grid), rows_threads(&grid), 0, stream, grid, move, x, x_stride, y,
                       y_stride);
}

static status_t move_run(const rows_args_t *args, move_t move, int rows, void *stream) {
    if (args->x.dtype != args->y.dtype) {
        rows_grid_t grid = rows_share(rows, args->x.columns, PACK);
        rows_t x = rows_of(&args->x), y = rows_of(&args->y);
        int columns = args->x.columns;
        if (rows_none(&grid)) return STATUS_OK;
        return CUDA_LAUNCH(convert_kernel, rows_blocks(&grid), rows_threads(&grid), 0, stream, grid, move, x, y,
                           columns);
    }
    uintptr_t size = dtype_bytes(args->x.dtype), all = (uintptr_t)args->x.data | (uintptr_t)args->y.data;
    all |= (uintptr_t)args->x.stride * size | (uintptr_t)args->y.stride * size | (uintptr_t)args->x.columns * size;
    if (all % 16 == 0) return copy_units<uint4>(args, move, rows, stream);
    if (all % 4 == 0) return copy_units<uint32_t>(args, move, rows, stream);
    if (all % 2 == 0) return copy_units<uint16_t>(args, move, rows, stream);
    return copy_units<uint8_t>(args, move, rows, stream);
}

extern "C" status_t CUDA_NAME(gather_rows)(device_t *device, const rows_args_t *args) {
    TRY(check_gather(args));
    if (device->measuring) return STATUS_OK;
    move_t move = {args->index, NULL, args->x.rows, cuda_fault(device)};
    return move_run(args, move, args->y.rows, cuda_stream(device));
}

extern "C" status_t CUDA_NAME(gather_rows_backward)(device_t *device, const rows_args_t *args,
                                                    const rows_gradients_t *gradients) {
    TRY(check_rows_backward("gather_rows backward", args, gradients));
    if (!gradients->dx.data) return STATUS_OK;
    lists_t lists = {args->index, args->y.rows, args->x.rows, true, CUDA_FAULT_GATHER, NULL, NULL, NULL};
    return lists_add(device, lists, &gradients->dy, 1, &gradients->dx);
}

// Scratch for the claims of a scatter, and who has which row.
static status_t scatter_claim(device_t *device, const rows_args_t *args, move_t *move) {
    int32_t *claim;
    TRY(device_workspace(device, (size_t)args->y.rows * sizeof(*claim), (void **)&claim));
    if (device->measuring) return STATUS_OK;
    const int32_t *index = args->index;
    int count = args->x.rows, bound = args->y.rows;
    uint32_t *fault = cuda_fault(device);
    *move = move_t{index, claim, bound, fault};
    if (count == 0) return STATUS_OK;
    return CUDA_LAUNCH(claim_kernel, dim3((unsigned)((count + (int64_t)ROWS_THREADS - 1) / ROWS_THREADS)),
                       dim3(ROWS_THREADS), 0, cuda_stream(device), index, count, bound, fault, claim);
}

extern "C" status_t CUDA_NAME(scatter_rows)(device_t *device, const rows_args_t *args) {
    move_t move;
    TRY(check_scatter(args));
    TRY(scatter_claim(device, args, &move));
    if (device->measuring) return STATUS_OK;
    return move_run(args, move, args->x.rows, cuda_stream(device));
}

extern "C" status_t CUDA_NAME(scatter_rows_backward)(device_t *device, const rows_args_t *args,
                                                     const rows_gradients_t *gradients) {
    move_t move;
    TRY(check_rows_backward("scatter_rows backward", args, gradients));
    TRY(scatter_claim(device, args, &move));
    rows_grid_t grid = rows_share(args->x.rows, args->x.columns, PACK);
    if (device->measuring || rows_none(&grid)) return STATUS_OK;
    rows_t dy = rows_of(&gradients->dy), dx = rows_of(&gradients->dx);
    int columns = args->x.columns;
    return CUDA_LAUNCH(scatter_backward_kernel, rows_blocks(&grid), rows_threads(&grid), 0, cuda_stream(device), grid,
                       move, dy, dx, columns);
}

extern "C" status_t CUDA_NAME(pool_rows)(device_t *device, const pool_args_t *args) {
    TRY(check_pool(args));
    if (device->measuring) return STATUS_OK;
    rows_grid_t grid = rows_share(args->y.rows, args->y.columns, PACK);
    if (rows_none(&grid)) return STATUS_OK;
    const int32_t *index = args->index;
    int count = args->count, x_rows = args->x.rows, columns = args->y.columns;
    uint32_t *fault = cuda_fault(device);
    rows_t x = rows_of(&args->x), y = rows_of(&args->y);
    return CUDA_LAUNCH(pool_kernel, rows_blocks(&grid), rows_threads(&grid), 0, cuda_stream(device), grid, index, count,
                       fault, x, x_rows, y, columns);
}

extern "C" status_t CUDA_NAME(pool_rows_backward)(device_t *device, const pool_args_t *args,
                                                  const pool_gradients_t *gradients) {
    TRY(check_pool_backward(args, gradients));
    if (!gradients->dx.data) return STATUS_OK;
    int64_t count = (int64_t)args->y.rows * args->count;
    if (count > INT32_MAX) FAIL(STATUS_INVALID, "pool_rows backward: %lld rows are too many", (long long)count);
    lists_t lists = {args->index, (int)count, args->x.rows, false, CUDA_FAULT_POOL, NULL, NULL, NULL};
    return lists_add(device, lists, &gradients->dy, args->count, &gradients->dx);
}
