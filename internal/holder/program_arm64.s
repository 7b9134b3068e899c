#include "textflag.h"

DATA ·programStart(SB)/8, $·program(SB)
GLOBL ·programStart(SB), NOPTR, $8
DATA ·programEnd(SB)/8, $·afterProgram(SB)
GLOBL ·programEnd(SB), NOPTR, $8

// See program_amd64.s.
TEXT ·program(SB), NOSPLIT|NOFRAME, $0-0
	MOVD 0(RSP), R9        // number of arguments
	SUB  $16, RSP
	CMP  $3, R9
	BNE  hold

	MOVD $3, R0            // the namespace's file
	MOVD $0x10000000, R1   // CLONE_NEWUSER
	MOVD $268, R8          // setns
	SVC
	CMP  $0, R0
	BNE  fail
	MOVD $0, R0
	MOVD $0, R1
	MOVD $159, R8          // setgroups, to none
	SVC
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $149, R8          // setresgid
	SVC
	CMP  $0, R0
	BNE  fail
	MOVD $147, R8          // setresuid
	SVC
	CMP  $0, R0
	BNE  fail
	MOVD $0x20008011, R0   // CLONE_NEWPID, CLONE_PARENT, SIGCHLD
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $220, R8          // clone
	SVC
	CMP  $0, R0
	BLT  fail
	BEQ  child
	MOVD R0, 0(RSP)
	MOVD $4, R0            // a pipe, for the child's pid
	MOVD RSP, R1
	MOVD $8, R2
	MOVD $64, R8           // write
	SVC
	MOVD $0, R0
	MOVD $94, R8           // exit_group
	SVC

fail:
	MOVD $1, R0
	MOVD $94, R8           // exit_group
	SVC

child:
	MOVD $3, R0
	MOVD $57, R8           // close
	SVC
	MOVD $4, R0
	MOVD $57, R8           // close
	SVC
	MOVD $157, R8          // setsid
	SVC

hold:
	MOVD $0x6170, R0       // "pause", 16 bits at a time
	MOVK $(0x7375<<16), R0
	MOVK $(0x65<<32), R0
	MOVD R0, 0(RSP)
	MOVD $15, R0           // PR_SET_NAME
	MOVD RSP, R1
	MOVD $167, R8          // prctl
	SVC

	MOVD $-1, R0
	MOVD R0, 0(RSP)
	MOVD $2, R0            // SIG_SETMASK
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $135, R8          // rt_sigprocmask
	SVC
	MOVD $0x14000, R0      // SIGCHLD and SIGTERM
	MOVD R0, 0(RSP)

reap:
	MOVD $-1, R0
	MOVD $0, R1
	MOVD $1, R2            // WNOHANG
	MOVD $0, R3
	MOVD $260, R8          // wait4
	SVC
	CMP  $0, R0
	BGT  reap

	MOVD RSP, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $137, R8          // rt_sigtimedwait
	SVC
	CMP  $15, R0           // SIGTERM
	BNE  reap

	MOVD $0, R0
	MOVD $94, R8           // exit_group
	SVC
	BRK

TEXT ·afterProgram(SB), NOSPLIT|NOFRAME, $0-0
	RET
