/* How similar sentences are, by a sentence encoder that was compiled ahead of time.
 *
 *     make TFC=path/to/tfc                                  a small model with random weights
 *     make TFC=... MODEL=all-MiniLM-L6-v2.onnx              a real one
 *     ./similar VOCABULARY SENTENCE SENTENCE...             VOCABULARY: the vocab.txt of the model
 *
 * The embedding of a sentence is the mean of what the model says about its tokens, of length 1; the similarity of two sentences is
 * the product of their embeddings. */
#define _POSIX_C_SOURCE 200112L

#include "bert/bert.h"
#include "wordpiece.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_TOKENS = 128 };

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(int status, const char *what) {
    if (status != bert_OK) fail(what, bert_status_string(status));
}

static void *aligned(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, bert_ALIGN, bytes) != 0) fail("memory", "there is not enough");
    return p;
}

/* Maps the weights file of the bundle: its pages are shared by all processes that use the model. */
static const void *map_weights(const char *path) {
    int fd = open(path, O_RDONLY);
    const void *p = fd < 0 ? MAP_FAILED : mmap(NULL, bert_WEIGHTS_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    close(fd);
    return p;
}

/* The embedding of a text, and in *size how many numbers that is. */
static float *embed(const bert_context *context, const wordpiece *vocabulary, const char *text, size_t *size) {
    int64_t ids[MAX_TOKENS], ones[MAX_TOKENS], zeros[MAX_TOKENS] = {0};
    size_t tokens = wordpiece_encode(vocabulary, text, ids, MAX_TOKENS);
    for (size_t i = 0; i < tokens; i++) ones[i] = 1;

    bert_dims dims;
    dims.batch = 1;
    dims.seq = (int64_t)tokens;
    size_t bytes[bert_OUTPUTS];
    check(bert_output_bytes(&dims, bytes), "the number of tokens");
    *size = bytes[0] / sizeof(float) / tokens;

    bert_inputs in;
    in.input_ids = ids;
    in.attention_mask = ones;
    in.token_type_ids = zeros;
    bert_outputs out;
    float *hidden = out.last_hidden_state = aligned(bytes[0]);
    void *arena = aligned(bert_arena_bytes(&dims));
    check(bert_run(context, &dims, &in, &out, arena), "bert_run");
    free(arena);

    float *mean = aligned(*size * sizeof *mean);
    double squares = 0;
    for (size_t c = 0; c < *size; c++) {
        double sum = 0;
        for (size_t t = 0; t < tokens; t++) sum += hidden[t * *size + c];
        mean[c] = (float)(sum / (double)tokens);
        squares += (double)mean[c] * mean[c];
    }
    for (size_t c = 0; c < *size; c++) mean[c] /= (float)sqrt(squares);
    free(hidden);
    return mean;
}

int main(int argc, char **argv) {
    if (argc < 3) fail(argv[0], "expected VOCABULARY SENTENCE...");
    wordpiece *vocabulary = wordpiece_open(argv[1]);
    if (vocabulary == NULL) {
        perror(argv[1]);
        return 1;
    }
    bert_context context;
    check(bert_init(&context, map_weights("bert/" bert_WEIGHTS_FILE), bert_WEIGHTS_BYTES), "bert_init");

    char **sentences = argv + 2;
    size_t count = (size_t)argc - 2, size = 0;
    float **embeddings = aligned(count * sizeof *embeddings);
    for (size_t i = 0; i < count; i++) embeddings[i] = embed(&context, vocabulary, sentences[i], &size);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < count; j++) {
            double product = 0;
            for (size_t c = 0; c < size; c++) product += (double)embeddings[i][c] * embeddings[j][c];
            printf("%7.4f ", product);
        }
        printf(" %s\n", sentences[i]);
    }

    for (size_t i = 0; i < count; i++) free(embeddings[i]);
    free(embeddings);
    wordpiece_close(vocabulary);
    return 0;
}
