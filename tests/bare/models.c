/* Runs compiled models on every CPU variant that this CPU, with each setting of XCR0, can run, and says
 * what differs from the expected outputs. "cases.h" is generated: the models, the cases and the settings.
 *
 *   xcr0 MASK
 *   init MODEL STATUS VARIANT            what NAME_init picks
 *   cpu MODEL WANTED STATUS VARIANT      what NAME_init_cpu says
 *   bad CASE VARIANT ...                 a status or an output that is not the expected one
 *   ran NUMBER                           cases that ran since the last setting, variants counted each
 *   end
 */
#include "bare.h"

typedef struct { uint64_t words[8]; } context;
typedef void (*range_fn)(void *arg, int64_t begin, int64_t end);
typedef void (*parallel_for)(void *user, int64_t n, range_fn fn, void *arg);

/* NAME_entry, as the runtime crate defines it. */
typedef struct {
    uint64_t magic;
    uint32_t version, bytes, abi_version, flags, context_bytes, dims, inputs, outputs;
    const uint8_t *manifest;
    uint64_t manifest_bytes;
    int (*init)(context *, const void *, size_t);
    int (*init_cpu)(context *, const void *, size_t, const char *);
    const char *(*cpu_variant)(const context *);
    size_t (*arena_bytes)(const int64_t *);
    int (*output_bytes)(const int64_t *, size_t *);
    int (*run)(const context *, const int64_t *, const void *const *, void *const *, void *);
    int (*run_parallel)(const context *, const int64_t *, const void *const *, void *const *, void *, parallel_for, void *);
    const char *(*status_string)(int);
    const char *(*build_info)(void);
} entry;

/* `bytes` bytes of the data. Elements of floats may differ by relative * the larger one + absolute. */
enum kind { EXACT, FLOAT, DOUBLE, HALF, BFLOAT };
typedef struct {
    uint64_t at, bytes;
    enum kind kind;
    double relative, absolute;
} tensor;

typedef struct {
    const entry *entry;
    uint64_t weights_at, weights_bytes;
} model;

/* One call: sizes, inputs, the status, and the outputs if that is 0. */
typedef struct {
    int model, status;
    const int64_t *dims;
    const tensor *inputs, *outputs;
} test_case;

extern const uint8_t data[];
#include "cases.h"

static double element(const uint8_t *p, enum kind kind, uint64_t i) {
    uint32_t bits = 0;
    float f;
    double d;
    if (kind == DOUBLE) return memcpy(&d, p + 8 * i, 8), d;
    if (kind == FLOAT) return memcpy(&f, p + 4 * i, 4), f;
    memcpy(&bits, p + 2 * i, 2);
    if (kind == BFLOAT) {
        bits <<= 16;
        return memcpy(&f, &bits, 4), f;
    }
    uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023, sign = bits >> 15 << 31;
    if (exponent == 0) return (sign ? -1.0 : 1.0) * fraction / (1 << 24);
    bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    return memcpy(&f, &bits, 4), f;
}

static double magnitude(double x) { return x < 0 ? -x : x; }

static int close(double a, double b, const tensor *t) {
    if (a == b || (a != a && b != b)) return 1;
    double larger = magnitude(a) > magnitude(b) ? magnitude(a) : magnitude(b);
    return magnitude(a - b) <= t->relative * larger + t->absolute;
}

static const uint64_t element_bytes[] = {[EXACT] = 1, [FLOAT] = 4, [DOUBLE] = 8, [HALF] = 2, [BFLOAT] = 2};

/* The first element (byte, for exact ones) that differs, or -1. */
static int64_t difference(const uint8_t *found, const tensor *t) {
    const uint8_t *want = data + t->at;
    uint64_t n = t->bytes / element_bytes[t->kind];
    for (uint64_t i = 0; i < n; i++)
        if (t->kind == EXACT ? found[i] != want[i] : !close(element(found, t->kind, i), element(want, t->kind, i), t)) return (int64_t)i;
    return -1;
}

static void bad(int number, const char *variant, const char *what) {
    put("bad "), put_number((uint64_t)number), put(" "), put(variant), put(" "), put(what), put(" ");
}

/* The place of `bytes` bytes at the end of a fenced piece, from the alignment on. */
static uint8_t *place(int piece, uint64_t bytes, uint64_t align) {
    return (uint8_t *)(((uint64_t)fenced_end(piece) - bytes) & ~(align - 1));
}

#define BEFORE 4096
#define FILL 0xA5

static void run(int number, const char *variant) {
    const test_case *c = &cases[number];
    const model *m = &models[c->model];
    const entry *e = m->entry;
    const void *inputs[FENCES];
    void *outputs[FENCES];
    size_t expected_bytes[FENCES];
    context ctx;
    int piece = 0;
    doing = variant, doing_number = (uint64_t)number;
    uint8_t *weights = place(piece++, m->weights_bytes, 64);
    memcpy(weights, data + m->weights_at, m->weights_bytes);
    if (e->init_cpu(&ctx, m->weights_bytes ? weights : NULL, m->weights_bytes, variant)) {
        bad(number, variant, "init_cpu refuses"), put("\n");
        return;
    }
    size_t arena_bytes = e->arena_bytes(c->dims);
    if (!arena_bytes || arena_bytes + BEFORE > FENCE_BYTES || e->output_bytes(c->dims, expected_bytes)) {
        bad(number, variant, "sizes refused or too large"), put("\n");
        return;
    }
    uint8_t *arena = place(piece++, arena_bytes, 64);
    memset(arena - BEFORE, FILL, arena_bytes + BEFORE);
    for (uint32_t i = 0; i < e->inputs; i++) {
        const tensor *t = &c->inputs[i];
        uint8_t *p = place(piece++, t->bytes, 1);
        memcpy(p, data + t->at, t->bytes);
        inputs[i] = p;
    }
    for (uint32_t i = 0; i < e->outputs; i++) {
        outputs[i] = place(piece++, expected_bytes[i], 1);
        memset((uint8_t *)outputs[i] - BEFORE, FILL, expected_bytes[i] + BEFORE);
    }
    int status = e->run(&ctx, c->dims, inputs, outputs, arena);
    if (status != c->status) {
        bad(number, variant, "status"), put_number((uint64_t)status), put(", expected "), put_number((uint64_t)c->status), put("\n");
        return;
    }
    for (uint32_t i = 0; i < e->inputs; i++)
        if (memcmp(inputs[i], data + c->inputs[i].at, c->inputs[i].bytes)) bad(number, variant, "input"), put_number(i), put(" was written\n");
    for (int i = 1; i <= BEFORE; i++)
        if (arena[-i] != FILL) {
            bad(number, variant, "written before the arena"), put("\n");
            break;
        }
    for (uint32_t i = 0; i < e->outputs && !status; i++) {
        const tensor *t = &c->outputs[i];
        const uint8_t *found = outputs[i];
        for (int j = 1; j <= BEFORE; j++)
            if (found[-j] != FILL) {
                bad(number, variant, "written before output"), put_number(i), put("\n");
                break;
            }
        if (expected_bytes[i] != t->bytes) {
            bad(number, variant, "output"), put_number(i), put(" has other bytes\n");
            continue;
        }
        int64_t at = difference(found, t);
        if (at < 0) continue;
        uint64_t size = element_bytes[t->kind];
        bad(number, variant, "output"), put_number(i), put(" element "), put_number((uint64_t)at), put(" is ");
        for (uint64_t j = size; j-- > 0;) put_hex(found[(uint64_t)at * size + j], 2);
        put(", expected ");
        for (uint64_t j = size; j-- > 0;) put_hex(data[t->at + (uint64_t)at * size + j], 2);
        put("\n");
    }
}

static const char *const variants[] = {"baseline", "avx2", "avxvnni", "avx512vnni", "amx", "z80"};
#define VARIANTS (int)(sizeof variants / sizeof *variants)

static void answer(int status, const entry *e, const context *ctx) {
    const char *name = e->cpu_variant(ctx);
    put_number((uint64_t)status), put(" "), put(name ? name : "-"), put("\n");
}

void kmain(void) {
    build_fences();
    for (unsigned s = 0; s < sizeof settings / sizeof *settings; s++) {
        uint64_t ran = 0;
        set_xcr0(settings[s]);
        put("xcr0 "), put_hex(settings[s], 2), put("\n");
        for (int i = 0; i < MODELS; i++) {
            const entry *e = models[i].entry;
            uint8_t *weights = place(0, models[i].weights_bytes, 64);
            memcpy(weights, data + models[i].weights_at, models[i].weights_bytes);
            context ctx;
            doing = "init of model", doing_number = (uint64_t)i;
            int status = e->init(&ctx, weights, models[i].weights_bytes);
            put("init "), put_number((uint64_t)i), put(" "), answer(status, e, &ctx);
            for (int v = 0; v < VARIANTS; v++) {
                status = e->init_cpu(&ctx, weights, models[i].weights_bytes, variants[v]);
                put("cpu "), put_number((uint64_t)i), put(" "), put(variants[v]), put(" "), answer(status, e, &ctx);
                for (int c = 0; c < CASES && !status; c++)
                    if (cases[c].model == i) run(c, variants[v]), ran++;
            }
        }
        put("ran "), put_number(ran), put("\n");
    }
    put("end\n");
}
