/* What a program without an operating system has: text on the serial port, the CPU's control registers,
 * memory with unmapped pages around it, and the mem functions that freestanding C and generated code
 * need. */
#ifndef BARE_H
#define BARE_H
#include <stddef.h>
#include <stdint.h>

static inline void out8(uint16_t port, uint8_t v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static inline uint8_t in8(uint16_t port) {
    uint8_t v;
    __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline void put_char(char c) {
    static int ready;
    if (!ready) { /* the fastest rate, eight bits */
        out8(0x3fb, 0x83), out8(0x3f8, 1), out8(0x3f9, 0), out8(0x3fb, 3);
        ready = 1;
    }
    while (!(in8(0x3fd) & 0x20)) {}
    out8(0x3f8, (uint8_t)c);
}
static inline void put(const char *s) {
    while (*s) put_char(*s++);
}
static inline void put_number(uint64_t n) {
    char digits[20];
    int i = 0;
    do digits[i++] = (char)('0' + n % 10);
    while (n /= 10);
    while (i) put_char(digits[--i]);
}
static inline void put_hex(uint64_t n, int digits) {
    while (digits--) put_char("0123456789abcdef"[(n >> 4 * digits) & 15]);
}

extern void power_off(void) __attribute__((noreturn));
extern uint64_t page_directory[512];

void report_fault(uint64_t vector, uint64_t at, uint64_t address);
/* What a report of a fault says about the place. */
static const char *doing = "start";
static uint64_t doing_number;

/* boot.S calls it for every exception, then powers off. */
void report_fault(uint64_t vector, uint64_t at, uint64_t address) {
    put("fault "), put_number(vector), put(" at "), put_hex(at, 16), put(" address "), put_hex(address, 16);
    put(" in "), put_number(doing_number), put(" "), put(doing), put("\n");
}

typedef struct { uint32_t a, b, c, d; } cpuid_words;
static inline cpuid_words cpuid(uint32_t leaf, uint32_t subleaf) {
    cpuid_words w;
    __asm__ volatile("cpuid" : "=a"(w.a), "=b"(w.b), "=c"(w.c), "=d"(w.d) : "0"(leaf), "2"(subleaf));
    return w;
}

/* Switches on those of the state components in `mask` that the CPU has; 0 switches XSAVE off. Does
 * nothing on a CPU without XSAVE. */
static inline void set_xcr0(uint32_t mask) {
    uint64_t cr4;
    if (!(cpuid(1, 0).c >> 26 & 1)) return;
    __asm__ volatile("mov %%cr4,%0" : "=r"(cr4));
    cr4 = mask ? cr4 | 1 << 18 : cr4 & ~(uint64_t)(1 << 18);
    __asm__ volatile("mov %0,%%cr4" ::"r"(cr4));
    if (mask) __asm__ volatile("xsetbv" ::"a"(cpuid(0xD, 0).a & mask), "d"(0), "c"(0));
}

/* Fenced memory: FENCES pieces of two pages of 2 MiB from 256 MiB on, each with an unmapped page behind
 * it. What reads or writes behind its end faults. */
#define FENCES 64
#define PAGE_BYTES ((uint64_t)1 << 21)
#define FENCE_BYTES (2 * PAGE_BYTES)
static inline uint8_t *fenced_end(int piece) {
    return (uint8_t *)(((uint64_t)128 + 3 * (uint64_t)piece + 2) * PAGE_BYTES);
}
static inline void build_fences(void) {
    for (int i = 0; i < FENCES; i++) page_directory[(uint64_t)fenced_end(i) / PAGE_BYTES] = 0;
    __asm__ volatile("mov %%cr3,%%rax; mov %%rax,%%cr3" ::: "rax", "memory");
}

void *memcpy(void *restrict d, const void *restrict s, size_t n) {
    void *r = d;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
    return r;
}
void *memset(void *d, int c, size_t n) {
    void *r = d;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return r;
}
void *memmove(void *d, const void *s, size_t n) {
    char *a = d;
    const char *b = s;
    if ((uintptr_t)a - (uintptr_t)b >= n) return memcpy(d, s, n);
    while (n--) a[n] = b[n];
    return d;
}
int memcmp(const void *x, const void *y, size_t n) {
    const unsigned char *a = x, *b = y;
    for (; n--; a++, b++)
        if (*a != *b) return *a - *b;
    return 0;
}

void kmain(void);
#endif
