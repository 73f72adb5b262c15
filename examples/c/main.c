/* Classifies pictures of clothes with a vision transformer that was compiled ahead of time.
 *
 *     make TFC=path/to/tfc
 *     ./classify                                   a picture that is drawn here
 *     ./classify train-images-idx3-ubyte [N]       the first N pictures of Fashion-MNIST, 10 if not given
 *
 * The program shows what a user of a compiled model does: map the weights, initialise a context, ask how
 * much memory a call needs, and call. The model allocates nothing itself. */
#define _POSIX_C_SOURCE 200112L

#include "vit/vit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SIDE = 28, PIXELS = SIDE * SIDE, CLASSES = 10, HEADER = 16 };

static const char *const names[CLASSES] = {"T-shirt", "trousers", "pullover", "dress", "coat",
                                           "sandal",  "shirt",    "sneaker",  "bag",   "ankle boot"};

static void check(int status, const char *what) {
    if (status == vit_OK) return;
    fprintf(stderr, "%s: %s\n", what, vit_status_string(status));
    exit(1);
}

static void *aligned(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, vit_ALIGN, bytes) != 0) {
        fprintf(stderr, "no memory for %lu bytes\n", (unsigned long)bytes);
        exit(1);
    }
    return p;
}

/* Maps the weights file of the bundle: its pages are shared by all processes that use the model. */
static const void *map_weights(const char *path) {
    int fd = open(path, O_RDONLY);
    const void *p = fd < 0 ? MAP_FAILED : mmap(NULL, vit_WEIGHTS_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    close(fd);
    return p;
}

/* Reads up to n pictures from a file in IDX format. */
static int64_t read_pictures(const char *path, unsigned char *pixels, int64_t n) {
    unsigned char header[HEADER];
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        perror(path);
        exit(1);
    }
    if (fread(header, 1, HEADER, f) != HEADER || memcmp(header, "\0\0\10\3", 4) != 0 || header[11] != SIDE || header[15] != SIDE) {
        fprintf(stderr, "%s: this is no IDX file with pictures of %d x %d (decompress it first)\n", path, SIDE, SIDE);
        exit(1);
    }
    n = (int64_t)fread(pixels, PIXELS, (size_t)n, f);
    fclose(f);
    return n;
}

/* Draws a pair of trousers. */
static void draw(unsigned char *pixels) {
    for (int y = 2; y < 26; y++) {
        for (int x = 9; x < 19; x++) {
            int between = y > 8 && (x == 13 || x == 14);
            pixels[y * SIDE + x] = between ? 0 : 180;
        }
    }
}

int main(int argc, char **argv) {
    vit_dims dims;
    dims.batch = argc > 1 ? (argc > 2 ? atol(argv[2]) : 10) : 1;

    /* Dimensions that the model does not take are noticed here, before any memory is asked for. */
    size_t output_bytes[vit_OUTPUTS];
    check(vit_output_bytes(&dims, output_bytes), "the number of pictures");

    unsigned char *pixels = calloc((size_t)dims.batch, PIXELS);
    if (pixels == NULL) return 1;
    if (argc > 1) {
        dims.batch = read_pictures(argv[1], pixels, dims.batch);
        check(vit_output_bytes(&dims, output_bytes), "the pictures in the file");
    } else {
        draw(pixels);
    }

    vit_context context;
    check(vit_init(&context, map_weights("vit/" vit_WEIGHTS_FILE), vit_WEIGHTS_BYTES), "vit_init");

    float *image = aligned((size_t)dims.batch * PIXELS * sizeof *image);
    for (int64_t i = 0; i < dims.batch * PIXELS; i++) image[i] = ((float)pixels[i] / 255.0f - 0.2860f) / 0.3530f;
    float *logits = aligned(output_bytes[0]);
    void *arena = aligned(vit_arena_bytes(&dims));

    vit_inputs in;
    in.image = image;
    vit_outputs out;
    out.logits = logits;
    check(vit_run(&context, &dims, &in, &out, arena), "vit_run");

    for (int64_t i = 0; i < dims.batch; i++) {
        int best = 0;
        for (int c = 1; c < CLASSES; c++) {
            if (logits[i * CLASSES + c] > logits[i * CLASSES + best]) best = c;
        }
        printf("picture %ld: %s (%.2f)\n", (long)i, names[best], (double)logits[i * CLASSES + best]);
    }
    free(arena);
    free(logits);
    free(image);
    free(pixels);
    return 0;
}
