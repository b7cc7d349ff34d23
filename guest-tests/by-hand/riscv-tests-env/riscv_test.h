// riscv-tests for Linux user mode: a test that passes exits 0, one that fails
// exits with the number of the case that failed.

#ifndef USER_MODE_RISCV_TEST_H
#define USER_MODE_RISCV_TEST_H

#define TESTNUM gp

#define RVTEST_RV64U .macro init; .endm
#define RVTEST_RV64UF .macro init; fscsr x0; .endm
#define RVTEST_RV32U RVTEST_RV64U
#define RVTEST_RV32UF RVTEST_RV64UF
#define RVTEST_FP_ENABLE fscsr x0

#define RVTEST_CODE_BEGIN .text; .globl _start; _start: init;
#define RVTEST_CODE_END
#define RVTEST_PASS fence; li a7, 93; li a0, 0; ecall;
#define RVTEST_FAIL fence; li a7, 93; mv a0, TESTNUM; ecall;

#define RVTEST_DATA_BEGIN .align 4; .globl begin_signature; begin_signature:
#define RVTEST_DATA_END .align 4; .globl end_signature; end_signature:

#endif
