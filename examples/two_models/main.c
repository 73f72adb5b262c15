/* Two compiled models in one program, each with the weights inside: a transformer that was compiled without
 * and with optimizations. They get the same random pictures, and their answers and times are compared.
 *
 *     make TFC=path/to/tfc run
 *
 * Symbols of a model begin with its name, so any number of them link together. */
#define _POSIX_C_SOURCE 200112L

#include "fast/fast.h"
#include "plain/plain.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BATCH = 4, PIXELS = 28 * 28, CLASSES = 10 };

static float image[BATCH * PIXELS];

static void check(const char *message, int failed) {
    if (!failed) return;
    fprintf(stderr, "%s\n", message);
    exit(1);
}

static void *arena(size_t bytes) {
    void *p = NULL;
    check("no memory", bytes == 0 || posix_memalign(&p, 64, bytes) != 0);
    return p;
}

static double milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The models have types of their own, so code for several of them is a macro. */
#define RUN(model, logits, best) \
    do { \
        model##_context context; \
        model##_dims dims = {BATCH}; \
        model##_inputs in = {image}; \
        model##_outputs out = {logits}; \
        int status = model##_init(&context, NULL, 0); \
        check(model##_status_string(status), status != model##_OK); \
        void *memory = arena(model##_arena_bytes(&dims)); \
        for (int i = 0; i < 5; i++) { \
            double begin = milliseconds(); \
            status = model##_run(&context, &dims, &in, &out, memory); \
            check(model##_status_string(status), status != model##_OK); \
            double t = milliseconds() - begin; \
            if (i == 0 || t < best) best = t; \
        } \
        printf("%-6s %8.3f ms   %s\n", #model, best, model##_build_info()); \
        free(memory); \
    } while (0)

int main(void) {
    static float a[BATCH * CLASSES], b[BATCH * CLASSES];
    double plain_ms = 0.0, fast_ms = 0.0;
    unsigned state = 1;
    for (int i = 0; i < BATCH * PIXELS; i++) {
        state = state * 1664525u + 1013904223u;
        image[i] = (float)(state >> 8) / 16777216.0f * 2.0f - 0.8f;
    }
    RUN(plain, a, plain_ms);
    RUN(fast, b, fast_ms);
    float largest = 0.0f;
    for (int i = 0; i < BATCH * CLASSES; i++) {
        float d = a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
        if (!(d <= largest)) largest = d;
    }
    printf("largest difference of two logits: %g\n", (double)largest);
    return largest < 1e-3f ? 0 : 1;
}
