/* A hand-written artifact: y[batch, 2*seq] = x twice per row, times a weight; count[1] = batch.
   Compiled by tests/load.rs, which defines NAME, MANIFEST (initialisers) and, for the misuse cases, one of the macros below. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef MAGIC
#define MAGIC "TFCENTRY"
#endif
#ifndef VERSION
#define VERSION 1
#endif
#ifndef ABI
#define ABI 1
#endif
#ifndef DIMS
#define DIMS 2
#endif
#ifndef FLAGS
#define FLAGS 0
#endif
#ifndef DECLARED_ROW
#define DECLARED_ROW 2
#endif

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define SYM(suffix) CAT(NAME, suffix)

typedef struct {
  uint64_t opaque[8];
} context;
typedef struct {
  int64_t batch, seq;
} dims;
typedef struct {
  const float *x;
  const int64_t *ids;
} inputs;
typedef struct {
  float *y;
  int64_t *count;
} outputs;
typedef void (*range_fn)(void *arg, int64_t begin, int64_t end);
typedef void (*parallel_for)(void *user, int64_t n, range_fn fn, void *arg);

static const uint64_t CONTEXT = 0x1234;
static const unsigned char manifest[] = {MANIFEST};
#if FLAGS & 1
static const float embedded = 3.0f;
#endif

int SYM(_init_cpu)(context *ctx, const void *weights, size_t bytes, const char *variant) {
  uint32_t chosen = 1;
  const float *data;
  if (!ctx) return 1;
  memset(ctx, 0, sizeof *ctx);
#if FLAGS & 1
  (void)weights, (void)bytes;
  data = &embedded;
#else
  if (!weights) return 1;
  if (bytes < 4096 + sizeof(float)) return 6;
  if (memcmp(weights, "TFCW", 4)) return 7;
  if ((uintptr_t)weights % 64) return 10;
  data = (const float *)((const char *)weights + 4096);
#endif
  if (variant) {
    if (!strcmp(variant, "baseline")) chosen = 0;
    else if (!strcmp(variant, "future")) return 12;
    else if (strcmp(variant, "twice")) return 11;
  }
  ctx->opaque[0] = CONTEXT;
  memcpy(&ctx->opaque[1], &data, sizeof data);
  memcpy(&ctx->opaque[2], &chosen, sizeof chosen);
  return 0;
}

int SYM(_init)(context *ctx, const void *weights, size_t bytes) { return SYM(_init_cpu)(ctx, weights, bytes, 0); }

const char *SYM(_cpu_variant)(const context *ctx) {
  if (!ctx || ctx->opaque[0] != CONTEXT) return 0;
  return (uint32_t)ctx->opaque[2] ? "twice" : "baseline";
}

static int in_range(const dims *d) { return d->batch >= 1 && d->batch <= 8 && d->seq >= 0 && d->seq <= 1000000; }

size_t SYM(_arena_bytes)(const dims *d) { return d && in_range(d) ? 64 * (size_t)d->batch : 0; }

int SYM(_output_bytes)(const dims *d, size_t out[2]) {
  if (!d || !out) return 1;
  if (!in_range(d)) return 2;
  out[0] = sizeof(float) * (size_t)(d->batch * DECLARED_ROW * d->seq);
  out[1] = sizeof(int64_t);
  return 0;
}

typedef struct {
  float weight;
  const dims *d;
  const inputs *in;
  outputs *out;
  char *arena;
} frame;

static void rows(void *arg, int64_t begin, int64_t end) {
  const frame *f = arg;
  int64_t seq = f->d->seq, i, j;
  for (i = begin; i < end; i++) {
    f->arena[64 * i] = 1;
    for (j = 0; j < 2 * seq; j++) f->out->y[2 * seq * i + j] = f->weight * f->in->x[seq * i + j / 2];
  }
}

int SYM(_run_parallel)(const context *ctx, const dims *d, const inputs *in, outputs *out, void *arena, parallel_for pf, void *user) {
  frame f;
  int64_t i;
  const float *data;
  if (!ctx || !d || !in || !out || !in->x || !in->ids || !out->y || !out->count) return 1;
  if (ctx->opaque[0] != CONTEXT) return 4;
  if (!in_range(d)) return 2;
  if (!arena || (uintptr_t)arena % 64) return 5;
  if ((uintptr_t)in->x % sizeof(float) || (uintptr_t)in->ids % sizeof(int64_t)) return 99;
  for (i = 0; i < d->batch; i++)
    if (in->ids[i] < 0) return 14;
  memcpy(&data, &ctx->opaque[1], sizeof data);
  f.weight = *data, f.d = d, f.in = in, f.out = out, f.arena = arena;
  memset(arena, 0, 64 * (size_t)d->batch);
  if (pf) pf(user, d->batch, rows, &f);
  else rows(&f, 0, d->batch);
  *out->count = 0;
  for (i = 0; i < d->batch; i++) *out->count += f.arena[64 * i];
  return 0;
}

int SYM(_run)(const context *ctx, const dims *d, const inputs *in, outputs *out, void *arena) {
  return SYM(_run_parallel)(ctx, d, in, out, arena, 0, 0);
}

const char *SYM(_status_string)(int status) { return status == 99 ? "an input is not aligned" : "unknown status"; }
const char *SYM(_build_info)(void) { return "by hand"; }

typedef struct {
  char magic[8];
  uint32_t version, bytes, abi_version, flags, context_bytes, dims, inputs, outputs;
  const unsigned char *manifest;
  uint64_t manifest_bytes;
  void (*functions[9])(void);
} entry;

#define FN(suffix) (void (*)(void))SYM(suffix)
const entry SYM(_entry) = {
    MAGIC,    VERSION,         sizeof(entry), ABI, FLAGS, sizeof(context), DIMS, 2, 2,
    manifest, sizeof manifest, {
#ifdef NULL_FUNCTION
                                   0,
#else
                                   FN(_init),
#endif
                                   FN(_init_cpu), FN(_cpu_variant), FN(_arena_bytes), FN(_output_bytes), FN(_run), FN(_run_parallel), FN(_status_string), FN(_build_info)},
};
