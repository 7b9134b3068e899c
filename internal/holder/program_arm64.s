#include "textflag.h"

DATA ·programStart(SB)/8, $·program(SB)
GLOBL ·programStart(SB), NOPTR, $8
DATA ·programEnd(SB)/8, $·afterProgram(SB)
GLOBL ·programEnd(SB), NOPTR, $8

// See program_amd64.s.
TEXT ·program(SB), NOSPLIT|NOFRAME, $0-0
	SUB  $16, RSP
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
