#include "engine/job/profile.h"

#include "engine/base/clock.h"
#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/machine.h"
#include "engine/base/mem.h"
#include "engine/cpu/cpu.h"
#include "engine/op/op.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

enum { FILE_MAX = 1 << 20, RUNS = 8, KEY = 192 };

/* ---- measuring ------------------------------------------------------------------------------ */

static int input(struct tape *t, enum dtype type, int rank, const int64_t *shape)
{
    return tape_input(t, "x", type, rank, shape);
}

/* The three products of a linear layer in training. */
static void record_products(struct tape *t, struct err *e)
{
    enum { N = 768 };
    int x = input(t, DT_F32, 2, (int64_t[]){N, N}), w = input(t, DT_F32, 2, (int64_t[]){N, N});
    int dy = input(t, DT_F32, 2, (int64_t[]){N, N}), d[2];
    int y = op_linear(t, x, w, -1, -1, 1.0f);
    if (tape_grad(t, y, dy, (int[]){x, w}, 2, d, e)) return;
    tape_output(t, y);
    tape_output(t, d[0]);
    tape_output(t, d[1]);
}

/* Causal attention and its gradient. */
static void record_attention(struct tape *t, struct err *e)
{
    enum { T = 384, H = 8, D = 64 };
    const int64_t s[] = {1, T, H, D};
    int q = input(t, DT_F32, 4, s), k = input(t, DT_F32, 4, s), v = input(t, DT_F32, 4, s), d[3];
    int range = input(t, DT_I32, 3, (int64_t[]){1, T, 2});
    int o = op_attn(t, q, k, v, range, 0.125f);
    if (tape_grad(t, o, input(t, DT_F32, 4, s), (int[]){q, k, v}, 3, d, e)) return;
    for (int i = 0; i < 3; i++) tape_output(t, d[i]);
}

/* Far more bytes than a cache holds. */
static void record_sum(struct tape *t, struct err *e)
{
    const int64_t n = 12 << 20;
    (void)e;
    int a = input(t, DT_F32, 1, &n), b = input(t, DT_F32, 1, &n);
    tape_output(t, op_add(t, a, b));
}

/* Small numbers, and causal ranges where they are asked for. */
static int fill(struct exec *x, const struct tape *t, struct err *e)
{
    for (int i = 0; i < t->ntensors; i++) {
        const struct tensor *in = &t->tensors[i];
        if (!(in->flags & TENSOR_INPUT)) continue;
        float *v = mem_array(in->count, sizeof *v, e);
        if (!v) return -1;
        for (int64_t k = 0; k < in->count; k++) {
            if (in->dtype == DT_F32) v[k] = (float)(k % 17) * 0.01f;
            else ((int32_t *)(void *)v)[k] = k % 2 ? (int32_t)(k / 2 + 1) : 0;
        }
        int rc = exec_write(x, i, v, (size_t)in->count * sizeof *v, e);
        mem_free(v);
        if (rc) return -1;
    }
    return 0;
}

/* Seconds of the fastest of some runs, and what one run is said to cost. */
static int best_time(struct exec *x, void (*record)(struct tape *t, struct err *e), double *s,
                     struct plan_report *cost, struct err *e)
{
    struct plan_options o = {.threads = pool_threads(x->pool)};
    struct plan *p = NULL;
    int rc = -1;
    struct tape *t = tape_new(e);
    if (!t) return -1;
    record(t, e);
    if (tape_ok(t, e) || !(p = plan_make(t, &o, e)) || exec_bind(x, p, e)) goto out;
    *s = DBL_MAX;
    *cost = p->report;
    for (int i = 0; i < RUNS; i++) {
        if (fill(x, t, e)) goto out;
        int64_t start = clock_mono_ns();
        if (exec_run(x, PHASE_STEP, 0, e)) goto out;
        double took = (double)(clock_mono_ns() - start) * 1e-9;
        if (took < *s) *s = took;
    }
    rc = 0;
out:
    plan_free(p);
    tape_free(t);
    return rc;
}

int profile_measure(int threads, struct plan_rates *out, struct err *e)
{
    struct exec *x = exec_new_cpu(threads, e);
    struct plan_report products, attention, sum;
    double a, b, c;
    int rc = -1;
    if (x && !best_time(x, record_products, &a, &products, e) &&
        !best_time(x, record_attention, &b, &attention, e) &&
        !best_time(x, record_sum, &c, &sum, e)) {
        *out = (struct plan_rates){
            .products = (double)products.flops[PHASE_STEP] / a,
            .attention = (double)attention.flops[PHASE_STEP] / b,
            .bytes = (double)sum.traffic[PHASE_STEP] / c,
        };
        rc = 0;
    }
    exec_free(x);
    return rc ? err_wrap(e, "measuring the device") : 0;
}

/* ---- keeping -------------------------------------------------------------------------------- */

static int parse(const json_t *o, struct plan_rates *out, struct err *e)
{
    return jx_real(o, "products", 1, 1e18, &out->products, e) ||
           jx_real(o, "attention", 1, 1e18, &out->attention, e) ||
           jx_real(o, "bytes", 1, 1e18, &out->bytes, e) ? -1 : 0;
}

static int store(const char *dir, const char *path, const json_t *all, struct err *e)
{
    char *text = jx_dump_pretty(all, e);
    int rc = text && !fs_mkdirs(dir, e) ? fs_write_file(path, text, strlen(text), e) : -1;
    mem_free(text);
    return rc;
}

int profile_get(const char *cache_dir, int threads, struct plan_rates *out, struct err *e)
{
    const struct cpu_level *level = cpu_level_pick(e);
    struct err ignored = ERR_INIT;
    char path[FS_PATH_MAX], cpu[MACHINE_CPU], key[KEY];
    int rc = -1;
    if (!level || fs_join(path, cache_dir, "profile.json", e)) return -1;
    machine_cpu("", cpu);
    snprintf(key, sizeof key, "%s, %s, %d threads, graft %s", cpu, level->name, threads,
             GRAFT_VERSION);
    /* A file that is missing or damaged costs one measurement. */
    json_t *all = jx_load_file(path, FILE_MAX, &ignored);
    if (!json_is_object(all)) {
        json_decref(all);
        all = json_object();
    }
    if (!parse(json_object_get(all, key), out, &ignored)) {
        rc = 0;
    } else if (!profile_measure(threads, out, e)) {
        json_t *o = jx_pack(e, "{s:f, s:f, s:f}", "products", out->products, "attention",
                            out->attention, "bytes", out->bytes);
        rc = o && !jx_set(all, key, o, e) ? store(cache_dir, path, all, e) : -1;
    }
    json_decref(all);
    return rc;
}
