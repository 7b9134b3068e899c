#include "go_asm.h"
#include "textflag.h"

// A stream is read from its end. What is left of it ends before a bit whose
// address in memory, times 8 and the number of the bit, is in BX or CX. A word
// that ends with the byte of that bit has R13 of them unread, at least 56.
//
// Of entries, see type entry, the lowest byte is what BZHI and SHRX look at.
// Rotated by 8 it is the one of the extra bits, and 56 bits further that of all.

#define TOTAL(l, m, o, sum) \
	LEAQ (l)(m*1), sum; \
	ADDQ o, sum; \
	SHRQ $56, sum; \
	CMPQ sum, $56

#define WORD(at, total) \
	MOVQ at, AX; \
	SHRQ $3, AX; \
	MOVQ -7(AX), AX; \
	MOVQ at, R13; \
	ORQ  $56, R13; \
	SUBQ total, at

#define EXTRA(entry) \
	RORXL $8, entry, R14; \
	SUBQ  R14, R13; \
	SHRXQ R13, AX, BP; \
	BZHIQ R14, BP, BP

// What is above 24 bits of these is not of the value.
#define LENGTH(entry, field) \
	EXTRA(entry); \
	RORXQ $32, entry, R14; \
	ADDL  R14, BP; \
	MOVL  BP, field(R9)

#define OFFSET(entry, field) \
	EXTRA(entry); \
	BTSQ R14, BP; \
	MOVL BP, field(R9)

#define STATE(entry, table) \
	SUBQ  entry, R13; \
	SHRXQ R13, AX, R14; \
	BZHIQ entry, R14, R14; \
	SHRL  $16, entry; \
	ADDQ  R14, entry; \
	MOVQ  table(DX)(entry*8), entry

#define SEQUENCE(l, m, o, d) \
	OFFSET(o, d+sequence_offset); \
	LENGTH(m, d+sequence_match); \
	LENGTH(l, d+sequence_literals); \
	STATE(l, d+tables_literalLengths); \
	STATE(m, d+tables_matchLengths); \
	STATE(o, d+tables_offsets)

#define LOAD(l, m, o, at, d) \
	MOVQ d+block_entries+0(DX), l; \
	MOVQ d+block_entries+8(DX), o; \
	MOVQ d+block_entries+16(DX), m; \
	MOVQ d+block_bits(DX), AX; \
	MOVQ d+block_left(DX), at; \
	LEAQ (at)(AX*8), at

#define STORE(l, m, o, at, d) \
	MOVQ l, d+block_entries+0(DX); \
	MOVQ o, d+block_entries+8(DX); \
	MOVQ m, d+block_entries+16(DX); \
	MOVQ d+block_bits(DX), AX; \
	SHLQ $3, AX; \
	SUBQ AX, at; \
	MOVQ at, d+block_left(DX)

#define RANGE \
	MOVQ   from+8(FP), R9; \
	MOVQ   to+16(FP), R15; \
	IMUL3Q $12, R9, R9; \
	IMUL3Q $12, R15, R15; \
	LEAQ   block_sequences(DX)(R9*1), R9; \
	LEAQ   block_sequences(DX)(R15*1), R15; \
	MOVQ   R15, end-8(SP); \
	CMPQ   R9, R15

#define RETURN \
	LEAQ block_sequences(DX), R14; \
	SUBQ R14, R9; \
	MOVQ R9, AX; \
	XORQ DX, DX; \
	MOVQ $12, CX; \
	DIVQ CX; \
	MOVQ AX, ret+24(FP)

// func decode(b *block, from, to int) int
TEXT ·decode(SB), NOSPLIT, $16-32
	MOVQ b+0(FP), DX
	MOVQ block_bits(DX), AX
	SHLQ $3, AX
	MOVQ AX, first-16(SP)
	LOAD(SI, R8, DI, BX, 0)
	RANGE
	JEQ  done

loop:
	TOTAL(SI, R8, DI, R14)
	JHI  done
	WORD(BX, R14)
	CMPQ BX, first-16(SP)
	JCS  over
	SEQUENCE(SI, R8, DI, 0)
	ADDQ $12, R9
	CMPQ R9, end-8(SP)
	JNE  loop

done:
	STORE(SI, R8, DI, BX, 0)
	RETURN
	RET

over:
	MOVQ $-1, ret+24(FP)
	RET

// func decodeBoth(b *[2]block, from, to int) int
TEXT ·decodeBoth(SB), NOSPLIT, $24-32
	MOVQ b+0(FP), DX
	MOVQ block_bits(DX), AX
	SHLQ $3, AX
	MOVQ AX, first-16(SP)
	MOVQ block__size+block_bits(DX), AX
	SHLQ $3, AX
	MOVQ AX, second-24(SP)
	LOAD(SI, R8, DI, BX, 0)
	LOAD(R10, R11, R12, CX, block__size)
	RANGE
	JEQ  done

loop:
	TOTAL(SI, R8, DI, R14)
	JHI  done
	TOTAL(R10, R11, R12, R15)
	JHI  done
	WORD(BX, R14)
	CMPQ BX, first-16(SP)
	JCS  over
	SEQUENCE(SI, R8, DI, 0)
	WORD(CX, R15)
	CMPQ CX, second-24(SP)
	JCS  over
	SEQUENCE(R10, R11, R12, block__size)
	ADDQ $12, R9
	CMPQ R9, end-8(SP)
	JNE  loop

done:
	STORE(SI, R8, DI, BX, 0)
	STORE(R10, R11, R12, CX, block__size)
	RETURN
	RET

over:
	MOVQ $-1, ret+24(FP)
	RET

// The multiple of an offset below 16 that is at least 16.
DATA steps<>+0(SB)/8, $0x1512141012101010
DATA steps<>+8(SB)/8, $0x1e1c1a1816141210
GLOBL steps<>(SB), RODATA|NOPTR, $16

// func resolve(c *copying)
TEXT ·resolve(SB), NOSPLIT, $24-8
	MOVQ c+0(FP), AX
	MOVQ copying_next(AX), SI
	MOVQ copying_end(AX), BX
	MOVQ copying_dst(AX), DI
	MOVQ copying_base(AX), R15
	MOVQ copying_lap(AX), R13
	MOVQ copying_recent+0(AX), R10
	MOVQ copying_recent+8(AX), R11
	MOVQ copying_recent+16(AX), R12
	MOVQ $0x00ffffff00ffffff, R9
	CMPQ SI, BX
	JEQ  resolved

resolving:
	MOVQ sequence_literals(SI), R8
	MOVL sequence_offset(SI), BP
	ANDQ R9, R8
	MOVQ R8, sequence_literals(SI)
	MOVL R8, CX
	SHRQ $32, R8

	// RFC 8878, 3.1.1.5. R14 is which of the offsets.
	CMPQ CX, $1
	MOVQ BP, R14
	ADCQ $0, R14
	CMPQ R14, $4
	JEQ  fourth

select:
	SUBQ    $3, BP
	CMPQ    R14, $3
	CMOVQEQ R12, BP
	CMOVQCC R11, R12
	CMPQ    R14, $2
	CMOVQEQ R11, BP
	CMOVQCC R10, R11
	CMPQ    R14, $1
	CMOVQEQ R10, BP

selected:
	MOVQ BP, R10
	MOVL BP, sequence_offset(SI)

	ADDQ CX, DI
	MOVQ DI, R14
	SUBQ BP, R14
	LEAQ (R14)(R13*1), DX
	CMPQ R14, R15
	CMOVQCS DX, R14
	PREFETCHT0 (R14)
	PREFETCHT0 31(R14)

	ADDQ R8, DI
	ADDQ $12, SI
	CMPQ SI, BX
	JNE  resolving

resolved:
	MOVQ R10, copying_recent+0(AX)
	MOVQ R11, copying_recent+8(AX)
	MOVQ R12, copying_recent+16(AX)
	RET

	// One less than the last one, and at least 1, if it is not a new offset of 1.
fourth:
	CMPQ BP, $3
	JNE  select
	MOVQ R11, R12
	MOVQ R10, R11
	LEAQ -1(R10), BP
	CMPQ BP, $1
	ADCQ $0, BP
	JMP  selected

// func carryOut(c *copying)
TEXT ·carryOut(SB), NOSPLIT, $24-8
	MOVQ c+0(FP), AX
	MOVQ copying_next(AX), SI
	MOVQ copying_end(AX), R12
	MOVQ copying_dst(AX), DI
	MOVQ copying_dstEnd(AX), R14
	MOVQ copying_lit(AX), BX
	MOVQ copying_litEnd(AX), R13
	MOVQ copying_base(AX), R15
	MOVQ copying_window(AX), DX
	MOVQ copying_lap(AX), AX
	MOVQ AX, lap-8(SP)
	ADDQ R15, AX
	MOVQ AX, lapEnd-16(SP)
	CMPQ SI, R12
	JEQ  stop

next:
	MOVL sequence_literals(SI), CX
	MOVL sequence_match(SI), R8
	MOVL sequence_offset(SI), R9
	LEAQ (BX)(CX*1), R10
	CMPQ R10, R13
	JHI  stop
	LEAQ (DI)(CX*1), R11
	LEAQ (R11)(R8*1), AX
	CMPQ AX, R14
	JHI  stop
	CMPQ R9, DX
	JHI  stop
	MOVQ R11, AX
	SUBQ R9, AX
	CMPQ AX, R15
	JCS  before

literals:
	MOVOU (BX), X0
	MOVOU X0, (DI)
	CMPQ  CX, $16
	JHI   longLiterals

match:
	MOVQ  R10, BX
	LEAQ  (R11)(R8*1), DI
	CMPQ  R9, $16
	JCS   short
	MOVOU (AX), X0
	MOVOU X0, (R11)
	MOVOU 16(AX), X0
	MOVOU X0, 16(R11)
	CMPQ  R8, $32
	JHI   long

matched:
	ADDQ $12, SI
	CMPQ SI, R12
	JNE  next

stop:
	MOVQ c+0(FP), AX
	MOVQ SI, copying_next(AX)
	MOVQ DI, copying_dst(AX)
	MOVQ BX, copying_lit(AX)
	RET

	// In the lap before, all of it.
before:
	ADDQ lap-8(SP), AX
	CMPQ AX, R15
	JCS  stop
	LEAQ (AX)(R8*1), R9
	CMPQ R9, lapEnd-16(SP)
	JHI  stop
	JMP  literals

longLiterals:
	ADDQ  $16, BX
	ADDQ  $16, DI
	MOVOU (BX), X0
	MOVOU X0, (DI)
	SUBQ  $16, CX
	CMPQ  CX, $16
	JHI   longLiterals
	JMP   match

long:
	ADDQ  $32, AX
	ADDQ  $32, R11
	MOVOU (AX), X0
	MOVOU X0, (R11)
	MOVOU 16(AX), X0
	MOVOU X0, 16(R11)
	SUBQ  $32, R8
	CMPQ  R8, $32
	JHI   long
	JMP   matched

	// What is copied is written by the same match.
short:
	MOVQ $32, CX
	CMPQ R8, CX
	CMOVQCS R8, CX

bytes:
	MOVB (AX), R10
	MOVB R10, (R11)
	INCQ AX
	INCQ R11
	DECQ CX
	JNE  bytes
	CMPQ R11, DI
	JEQ  matched
	LEAQ steps<>(SB), AX
	MOVBQZX (AX)(R9*1), R9
	MOVQ R11, AX
	SUBQ R9, AX
	JMP  pattern

pattern:
	MOVOU (AX), X0
	MOVOU X0, (R11)
	ADDQ  $16, AX
	ADDQ  $16, R11
	CMPQ  R11, DI
	JCS   pattern
	JMP   matched
