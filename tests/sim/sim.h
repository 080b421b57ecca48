#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H
// tests/sim/ops.c: the op list on the simulator. *state: NULL, or a word that the rows' names must have.
void test_ops_missing(void **state);
void test_ops_reference(void **state);
void test_ops_gradients(void **state);
void test_ops_rows(void **state);
void test_ops_half(void **state);
void test_ops_cpu_bits(void **state);
// tests/sim/matrix.c: linear and the head.
void test_matrix_tiles(void **state);
void test_matrix_storage(void **state);
void test_matrix_leaves(void **state);
void test_matrix_sampled(void **state);
void test_matrix_shared(void **state);
void test_matrix_faults(void **state);
// tests/sim/backward.c: gradients of bf16 matrices, in other company.
void test_backward_rows(void **state);
void test_backward_leaves(void **state);
void test_backward_parts(void **state);
void test_backward_attention(void **state);
// tests/sim/attention.c
void test_attention_long(void **state);
void test_attention_company(void **state);
void test_attention_hidden(void **state);
void test_attention_faults(void **state);
void test_rope_angles(void **state);
// tests/sim/runtime.c: the stand-ins of the CUDA runtime, and the device's host side over them.
void test_runtime_deferred(void **state);
void test_runtime_pinned(void **state);
void test_runtime_events(void **state);
void test_runtime_event_times(void **state);
void test_runtime_kernels(void **state);
void test_runtime_copies(void **state);
void test_runtime_host_access(void **state);
void test_runtime_leaks(void **state);
void test_runtime_device(void **state);
void test_runtime_beside(void **state);
void test_runtime_capture(void **state);
// tests/sim/library.c: products by cuBLASLt, over its stand-in.
void test_library_probe(void **state);
void test_library_results(void **state);
void test_library_memory(void **state);
void test_library_fingerprint(void **state);
// The number of the line of faults.cu that is marked "LINE name".
int line_of(const char *name);
// tests/sim/indices.c: indices out of range.
void test_indices(void **state);
#endif
