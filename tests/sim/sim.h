#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H
// tests/sim/ops.c: rows of the op list on the simulator.
void test_ops_reference(void **state);
void test_ops_gradients(void **state);
void test_ops_rows(void **state);
void test_ops_cpu_bits(void **state);
void test_attention_reference(void **state);
#endif
