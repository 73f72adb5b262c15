/* From a multiboot loader to kmain() in 64-bit mode.
 *
 * The first GiB is mapped one to one in pages of 2 MiB, without page 0, so that null pointers fault. SSE
 * is on and XSAVE off: kmain decides about it (set_xcr0). Every exception ends the run with its number,
 * place and address on the serial port. When kmain returns, the machine is switched off. */
.code32
.section .multiboot, "a"
.balign 4
.long 0x1BADB002, 3, -(0x1BADB002 + 3)

.section .text
.globl _start
_start:
    mov $stack_top, %esp
    movl $page_pointers + 3, page_maps
    movl $page_directory + 3, page_pointers
    mov $page_directory + 8, %edi       /* entry 0 stays empty */
    mov $0x200083, %eax                 /* present, writable, 2 MiB */
    mov $511, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov %cr4, %eax
    or $(1 << 5 | 1 << 9 | 1 << 10), %eax   /* PAE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $page_maps, %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx               /* EFER: long mode */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    and $~(1 << 2 | 1 << 3), %eax       /* no emulation of the coprocessor, no lazy switching */
    or $(1 << 31 | 1 << 1), %eax        /* paging */
    mov %eax, %cr0
    lgdt descriptors_pointer
    ljmp $8, $long_mode

.code64
long_mode:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_top, %rsp
    mov $vectors, %rsi                  /* a gate for each vector: offset, segment 8, present interrupt gate */
    mov $gates, %rdi
    mov $32, %ecx
2:  lodsq
    mov %ax, (%rdi)
    movw $8, 2(%rdi)
    movw $0x8E00, 4(%rdi)
    shr $16, %rax
    mov %eax, %edx
    mov %dx, 6(%rdi)
    shr $16, %rax
    mov %eax, 8(%rdi)
    add $16, %rdi
    loop 2b
    lidt gates_pointer
    call kmain
    jmp power_off

/* Vector and instruction pointer become arguments, wherever the CPU pushed an error code or not. */
.altmacro
.macro vector n
vector_\n:
    .if (\n == 8) || (\n >= 10 && \n <= 14) || (\n == 17) || (\n == 21)
    mov 8(%rsp), %rsi
    .else
    mov (%rsp), %rsi
    .endif
    mov $\n, %edi
    jmp fault
.endm
.set i, 0
.rept 32
    vector %i
    .set i, i + 1
.endr
fault:
    mov %cr2, %rdx
    and $-16, %rsp
    call report_fault
.globl power_off
power_off:
    mov $0x3fd, %dx                     /* let the serial port send its last byte */
3:  in %dx, %al
    test $0x40, %al
    jz 3b
    mov $0x8900, %dx                    /* the emulator's own port */
    mov $shutdown, %rsi
4:  lodsb
    test %al, %al
    jz 5f
    out %al, %dx
    jmp 4b
5:  cli
    hlt
    jmp 5b

.section .rodata
shutdown: .asciz "Shutdown"
.macro address n
    .quad vector_\n
.endm
.balign 8
vectors:
.set i, 0
.rept 32
    address %i
    .set i, i + 1
.endr
descriptors: .quad 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF
descriptors_pointer: .word 23
    .long descriptors, 0
gates_pointer: .word 511
    .quad gates

.section .bss
.balign 4096
page_maps: .skip 4096
page_pointers: .skip 4096
.globl page_directory
page_directory: .skip 4096
gates: .skip 512
.balign 16
    .skip 1 << 18
stack_top:

.section .note.GNU-stack, "", @progbits
