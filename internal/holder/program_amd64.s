#include "textflag.h"

DATA ·programStart(SB)/8, $·program(SB)
GLOBL ·programStart(SB), NOPTR, $8
DATA ·programEnd(SB)/8, $·afterProgram(SB)
GLOBL ·programEnd(SB), NOPTR, $8

// A whole program: only system calls, no memory but its stack.
TEXT ·program(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ 0(SP), R12        // number of arguments
	SUBQ $16, SP
	CMPQ R12, $3
	JNE  hold

	// In another user namespace: become its root, and leave a child that is
	// first in a PID namespace which belongs to it.
	MOVQ $3, DI            // the namespace's file
	MOVQ $0x10000000, SI   // CLONE_NEWUSER
	MOVQ $308, AX          // setns
	SYSCALL
	CMPQ AX, $0
	JNE  fail
	MOVQ $0, DI
	MOVQ $0, SI
	MOVQ $116, AX          // setgroups, to none
	SYSCALL
	MOVQ $0, DI
	MOVQ $0, SI
	MOVQ $0, DX
	MOVQ $119, AX          // setresgid
	SYSCALL
	CMPQ AX, $0
	JNE  fail
	MOVQ $117, AX          // setresuid
	SYSCALL
	CMPQ AX, $0
	JNE  fail
	MOVQ $0x20008011, DI   // CLONE_NEWPID, CLONE_PARENT, SIGCHLD
	MOVQ $0, SI
	MOVQ $0, DX
	MOVQ $0, R10
	MOVQ $0, R8
	MOVQ $56, AX           // clone
	SYSCALL
	CMPQ AX, $0
	JLT  fail
	JEQ  child
	MOVQ AX, 0(SP)
	MOVQ $4, DI            // a pipe, for the child's pid
	MOVQ SP, SI
	MOVQ $8, DX
	MOVQ $1, AX            // write
	SYSCALL
	MOVQ $0, DI
	MOVQ $231, AX          // exit_group
	SYSCALL

fail:
	MOVQ $1, DI
	MOVQ $231, AX          // exit_group
	SYSCALL

child:
	MOVQ $3, DI
	MOVQ $3, AX            // close
	SYSCALL
	MOVQ $4, DI
	MOVQ $3, AX            // close
	SYSCALL
	MOVQ $112, AX          // setsid
	SYSCALL

hold:
	MOVQ $0x6573756170, AX // "pause"
	MOVQ AX, 0(SP)
	MOVQ $15, DI           // PR_SET_NAME
	MOVQ SP, SI
	MOVQ $157, AX          // prctl
	SYSCALL

	// Blocked signals queue up, default dispositions notwithstanding.
	MOVQ $-1, AX
	MOVQ AX, 0(SP)
	MOVQ $2, DI            // SIG_SETMASK
	MOVQ SP, SI
	MOVQ $0, DX
	MOVQ $8, R10
	MOVQ $14, AX           // rt_sigprocmask
	SYSCALL
	MOVQ $0x14000, AX      // SIGCHLD and SIGTERM
	MOVQ AX, 0(SP)

reap:
	MOVQ $-1, DI
	MOVQ $0, SI
	MOVQ $1, DX            // WNOHANG
	MOVQ $0, R10
	MOVQ $61, AX           // wait4
	SYSCALL
	CMPQ AX, $0
	JGT  reap

	MOVQ SP, DI
	MOVQ $0, SI
	MOVQ $0, DX
	MOVQ $8, R10
	MOVQ $128, AX          // rt_sigtimedwait
	SYSCALL
	CMPQ AX, $15           // SIGTERM
	JNE  reap

	MOVQ $0, DI
	MOVQ $231, AX          // exit_group
	SYSCALL
	INT  $3

TEXT ·afterProgram(SB), NOSPLIT|NOFRAME, $0-0
	RET
