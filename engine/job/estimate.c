#include "engine/job/estimate.h"

#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/method/settings.h"
#include "engine/op/op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const estimate_names[PART_COUNT] = {
    "process", "weights", "trainable", "gradients", "moments", "activations", "workspace",
    "finish",
};

enum {
    ROUND = 8,         /* of the length of a batch */
    LENGTHS = 4096,
    STEPS = 512,       /* of a job that are looked at */
    AROUND = 1 << 16,  /* bytes that the kernel maps around a page that is read */
    LATER = 2 << 20    /* of the program, not read when the plan is made: kernels, export */
};

/* The largest micro-batch under given settings, and what the process has before any of it. */
struct size {
    int64_t batch, length, used;
};

struct maker {
    struct run *r;
    struct size size;
    struct estimate *out;
    struct err *e;
    int64_t buffer, work;          /* the step buffer, its largest workspace */
    int64_t graph;                 /* heap of one recording with its plan */
    int64_t weights;               /* frozen, all of them read */
    int64_t probe_buffer, logits;  /* of the check of a result */
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t padded(int64_t n)
{
    return (n + ROUND - 1) / ROUND * ROUND;
}

static int64_t longest(const struct dataset *d)
{
    int64_t n = 0;
    for (int64_t i = 0; d && i < dataset_count(d); i++) n = most(n, dataset_get(d, i).n);
    return n;
}

/* Padded length of a micro-batch of k rows. */
static int64_t micro_length(const struct run *r, const int64_t *rows, int64_t k)
{
    int64_t n = 0;
    for (int64_t i = 0; i < k; i++) n = most(n, dataset_get(r->train, rows[i]).n);
    return padded(n);
}

/* ---- parameters ---------------------------------------------------------------------------- */

/* Bytes of a mapped table of which only the rows of tokens that occur are read. The kernel maps a
 * file around the byte that was asked for. */
static int64_t rows_read(const struct maker *m, const struct param *p, bool *seen)
{
    const struct dataset *const sets[] = {m->r->train, m->r->valid};
    int64_t bytes = p->count * (int64_t)dtype_size(p->dtype0), row = bytes / p->shape[0], sum = 0;
    for (size_t s = 0; s < 2; s++)
        for (int64_t i = 0; sets[s] && i < dataset_count(sets[s]); i++) {
            struct example x = dataset_get(sets[s], i);
            for (int64_t t = 0; t < x.n; t++)
                for (int64_t k = x.ids[t] * row / AROUND; k * AROUND < (x.ids[t] + 1) * row; k++) {
                    sum += seen[k] ? 0 : least(AROUND, bytes - k * AROUND);
                    seen[k] = true;
                }
        }
    return sum;
}

/* Whether training reads p through EMBED alone. */
static bool only_looked_up(const struct tape *t, const struct param *p)
{
    bool looked = false;
    for (int i = 0; i < t->nnodes; i++)
        for (int k = 0; k < t->nodes[i].nin; k++) {
            int x = tape_root(t, t->nodes[i].in[k]);
            if (x < 0 || t->tensors[x].param != p) continue;
            if (t->nodes[i].op != OP_EMBED) return false;
            looked = true;
        }
    return looked;
}

/* What training keeps of each parameter; t: the recording of a step. A mapped weight that trains
 * has been read once, to fill its master. */
static int parameters(struct maker *m, const struct tape *t)
{
    const struct params *ps = &m->r->session.model->params;
    int64_t *part = m->out->part;
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        bool trains = p->kind == PARAM_TRAINABLE;
        int64_t width = p->source ? (int64_t)dtype_size(p->dtype0) : trains ? 0 : 4;
        int64_t all = p->count * width, read = all;
        if (trains) {
            part[PART_TRAINABLE] += 4 * p->count;
            part[PART_GRADIENTS] += 4 * p->count;
            part[PART_MOMENTS] += 8 * p->count;
        } else if (p->source && only_looked_up(t, p)) {
            bool *seen = mem_array(all / AROUND + 1, sizeof *seen, m->e);
            if (!seen) return -1;
            read = rows_read(m, p, seen);
            mem_free(seen);
        }
        part[PART_WEIGHTS] += read;
        m->weights += all;
    }
    return 0;
}

/* ---- passes -------------------------------------------------------------------------------- */

/* Heap that a recording and its plan fill; the plan cache has a second plan. */
static int64_t recorded_bytes(const struct graph *g)
{
    const struct tape *t = g->tape;
    size_t plan = (size_t)g->plan->nsteps * sizeof *g->plan->steps +
                  (size_t)t->ntensors * sizeof *g->plan->places;
    return (int64_t)((size_t)t->nnodes * sizeof *t->nodes +
                     (size_t)t->ntensors * sizeof *t->tensors + 2 * plan);
}

/* Plans one pass into *g; the step buffer is as large as the largest needs. */
static int plan_pass(struct maker *m, struct graph_key k, struct graph *g)
{
    if (graph_make(&m->r->session.graphs, &k, m->r->job.threads, g, m->e)) return -1;
    const struct plan_report *p = &g->plan->report;
    m->graph = most(m->graph, recorded_bytes(g));
    if (p->step_bytes > m->buffer) {
        m->buffer = p->step_bytes;
        m->work = p->workspace_bytes;
    }
    return 0;
}

/* How many shapes the first steps of the job record: micro-batches are padded to the longest of
 * their rows. */
static int64_t shapes(const struct run *r, struct err *e)
{
    bool seen[LENGTHS] = {0};
    const struct schedule *s = &r->schedule;
    int64_t count = 1, *index = mem_array(s->batch * s->accumulate, sizeof *index, e);
    if (!index) return -1;
    for (int64_t i = 0; i < least(s->total, STEPS) && count < GRAPHS_MAX; i++) {
        int64_t n = schedule_rows(s, i, index);
        for (int64_t from = 0; from < n; from += s->batch) {
            int64_t at = micro_length(r, index + from, least(s->batch, n - from)) / ROUND;
            count += !seen[least(at, LENGTHS - 1)];
            seen[least(at, LENGTHS - 1)] = true;
        }
    }
    mem_free(index);
    return least(count, GRAPHS_MAX);
}

static struct graph_key largest(const struct dataset *d, struct size s, enum graph_kind kind)
{
    return (struct graph_key){.kind = kind, .B = least(dataset_count(d), s.batch),
                              .T = padded(least(longest(d), s.length))};
}

static int passes(struct maker *m)
{
    const struct run *r = m->r;
    struct graph g = {0};
    int64_t *part = m->out->part;
    if (plan_pass(m, largest(r->train, m->size, GRAPH_TRAIN), &g)) return -1;
    m->out->flops = g.plan->report.flops[PHASE_STEP] * r->schedule.accumulate;
    int rc = parameters(m, g.tape);
    graph_clear(&g);
    if (rc || plan_pass(m, (struct graph_key){.kind = GRAPH_UPDATE}, &g)) return -1;
    m->out->flops += g.plan->report.flops[PHASE_UPDATE];
    graph_clear(&g);
    if (r->valid && plan_pass(m, largest(r->valid, m->size, GRAPH_LOSS), &g)) return -1;
    graph_clear(&g);
    int64_t n = least(dataset_get(r->train, 0).n, EXPORT_PROBE);
    if (plan_pass(m, (struct graph_key){GRAPH_LOGITS, 1, padded(n), n, NULL}, &g)) return -1;
    m->probe_buffer = g.plan->report.step_bytes;
    m->logits = 4 * g.tape->tensors[g.io.logits].count;
    graph_clear(&g);
    part[PART_ACTIVATIONS] = m->buffer - m->work;
    part[PART_WORKSPACE] = m->work;
    int64_t recordings = shapes(r, m->e);
    part[PART_PROCESS] += recordings * m->graph;
    return recordings < 0 ? -1 : 0;
}

/* ---- the end ------------------------------------------------------------------------------- */

/* Keys and values of the longest sample, beside a full step buffer. */
static int64_t samples(const struct run *r)
{
    const struct model *m = r->session.model;
    const json_t *prompts = json_object_get(r->job.settings, "samples"), *prompt;
    int64_t tokens = 0;
    size_t i;
    json_array_foreach((json_t *)prompts, i, prompt) /* a token has a byte at least */
        tokens = most(tokens, (int64_t)json_string_length(prompt) +
                                  settings_int(r->job.settings, "sample_max_tokens"));
    tokens = least(tokens, r->max_length);
    return tokens * 8 * m->cache_layers * m->cache_heads * m->cache_width;
}

/* By then the step buffer is gone, and all weights have been read; a result is compared with the
 * trained model after being opened like a stranger's. */
static int64_t export_bytes(const struct maker *m)
{
    const struct run *r = m->r;
    const struct model *model = r->session.model;
    int64_t widest = 0;
    for (int i = 0; i < model->ntensors; i++) {
        const struct param *p = model->params.items[i];
        int64_t width = 4 + (int64_t)dtype_size(model_stored(model, p));
        widest = most(widest, p->count * width);
        m->out->merged += p->count * (width - 4);
    }
    if (r->job.method->save) m->out->adapter = m->out->part[PART_TRAINABLE];
    m->out->checkpoint = 3 * m->out->part[PART_TRAINABLE];
    int64_t opened = m->out->merged;
    if (m->out->adapter) opened = most(opened, m->weights + m->out->adapter);
    int64_t check = opened + r->session.tok_bytes + m->logits + m->probe_buffer;
    return m->weights - m->out->part[PART_WEIGHTS] + m->logits + most(widest, check);
}

static int estimate_make(struct run *r, struct size size, enum recompute policy,
                         struct estimate *out, struct err *e)
{
    struct maker m = {.r = r, .size = size, .out = out, .e = e};
    *out = (struct estimate){.recompute = policy};
    r->session.graphs.recompute = policy;
    if (passes(&m)) return -1;
    out->part[PART_PROCESS] += size.used + LATER;
    out->part[PART_FINISH] = most(samples(r), export_bytes(&m) - m.buffer);
    for (int i = 0; i < PART_COUNT; i++) out->peak += out->part[i];
    return 0;
}

/* ---- what fits ----------------------------------------------------------------------------- */

static bool enough(const struct estimate *x, const struct machine_memory *m)
{
    return x->peak - m->used <= m->free;
}

/* The policies that the setting allows, from first to last. */
static void allowed(const struct run *r, enum recompute *first, enum recompute *last)
{
    const char *name = settings_str(r->job.settings, "recompute");
    *first = RECOMPUTE_NONE;
    *last = RECOMPUTE_BLOCK;
    for (int i = 0; i < RECOMPUTE_COUNT; i++)
        if (str_eq(name, recompute_names[i])) *first = *last = (enum recompute)i;
}

/* Whether it would fit with another size, at best. */
static int would_fit(struct run *r, struct size s, const struct machine_memory *m, bool *yes,
                     struct err *e)
{
    enum recompute first, last;
    struct estimate x;
    allowed(r, &first, &last);
    if (estimate_make(r, s, last, &x, e)) return -1;
    *yes = enough(&x, m);
    return 0;
}

/* The largest smaller batch that fits and divides what a step takes; 0: none. */
static int find_batch(struct run *r, struct size s, const struct machine_memory *m, int64_t *out,
                      struct err *e)
{
    int64_t window = r->schedule.batch * r->schedule.accumulate;
    bool yes = false;
    *out = 0;
    for (int64_t b = s.batch - 1; b > 0 && !yes; b--) {
        if (window % b) continue;
        if (would_fit(r, (struct size){b, s.length, s.used}, m, &yes, e)) return -1;
        if (yes) *out = b;
    }
    return 0;
}

/* The largest smaller length that fits, by halving; 0: none. */
static int find_length(struct run *r, struct size s, const struct machine_memory *m, int64_t *out,
                       struct err *e)
{
    int64_t lo = 0, hi = padded(s.length) / ROUND; /* lo fits, hi does not */
    while (hi - lo > 1) {
        int64_t mid = (lo + hi) / 2;
        bool yes;
        if (would_fit(r, (struct size){s.batch, mid * ROUND, s.used}, m, &yes, e)) return -1;
        if (yes) lo = mid;
        else hi = mid;
    }
    *out = lo * ROUND;
    return 0;
}

static int advise(struct run *r, struct size s, struct estimate_fit *f, struct err *e)
{
    int64_t window = r->schedule.batch * r->schedule.accumulate, batch, length;
    struct buf b;
    struct estimate block;
    enum recompute first, last;
    int rc = -1;
    buf_init(&b, sizeof f->advice - 1);
    allowed(r, &first, &last);
    if (last != RECOMPUTE_BLOCK) {
        if (estimate_make(r, s, RECOMPUTE_BLOCK, &block, e)) goto out;
        if (enough(&block, &f->memory)) buf_puts(&b, "recompute=block");
    }
    if (find_batch(r, s, &f->memory, &batch, e) || find_length(r, s, &f->memory, &length, e))
        goto out;
    if (batch)
        buf_printf(&b, "%sbatch_size=%lld and gradient_accumulation_steps=%lld",
                   b.len ? ", or " : "", (long long)batch, (long long)(window / batch));
    if (length) buf_printf(&b, "%smax_length=%lld", b.len ? ", or " : "", (long long)length);
    if (!batch && !length && s.batch > 1) {
        if (find_length(r, (struct size){1, s.length, s.used}, &f->memory, &length, e)) goto out;
        if (length)
            buf_printf(&b, "%sbatch_size=1, gradient_accumulation_steps=%lld and"
                       " max_length=%lld", b.len ? ", or " : "", (long long)window,
                       (long long)length);
    }
    str_copy(f->advice, sizeof f->advice, buf_str(&b));
    rc = buf_ok(&b, e);
out:
    buf_clear(&b);
    return rc;
}

static int limit_by_environment(struct machine_memory *m, struct err *e)
{
    const char *text = getenv("GRAFT_MEMORY");
    int64_t mib;
    if (!text || !*text) return 0;
    if (!str_int64(text, &mib) || mib < 1 || mib > INT64_MAX >> 20)
        return err_set(e, E_ARG, "GRAFT_MEMORY must be a number of MiB, not \"%.40s\"", text);
    m->total = least(m->total, mib << 20);
    m->free = most(0, least(m->free, (mib << 20) - m->used));
    return 0;
}

/* What the job may take: of the machine, or of the device that its tensors live on. There the
 * host's part of the estimate is counted too, which is small and errs on the safe side. */
static int available(const struct run *r, struct machine_memory *m, struct err *e)
{
    struct exec *x = r->session.exec;
    if (!x || !x->device->ops) return machine_memory("", m, e) ? -1 : limit_by_environment(m, e);
    *m = (struct machine_memory){0};
    x->device->ops->memory(x, &m->free, &m->total);
    return 0;
}

int estimate_fit(struct run *r, struct estimate_fit *out, struct err *e)
{
    enum recompute first, last, policy;
    *out = (struct estimate_fit){0};
    if (available(r, &out->memory, e)) return -1;
    const int64_t length = most(longest(r->train), longest(r->valid));
    const struct size s = {r->schedule.batch, length, out->memory.used};
    allowed(r, &first, &last);
    for (policy = first; policy <= last && !out->fits; policy++) {
        if (estimate_make(r, s, policy, &out->e, e)) return -1;
        out->fits = enough(&out->e, &out->memory);
    }
    if (out->fits) return 0;
    out->missing = out->e.peak - out->memory.used - out->memory.free;
    int rc = advise(r, s, out, e);
    r->session.graphs.recompute = out->e.recompute;
    return rc;
}

int estimate_refuse(const struct estimate_fit *f, struct err *e)
{
    static const double mib = 1 << 20;
    bool never = f->e.peak > f->memory.total;
    if (f->fits) return 0;
    return err_set(e, never ? E_DEVMEM : E_NOMEM,
                   "the job needs %.0f MiB of memory, %.0f MiB more than %s; %s%s",
                   (double)f->e.peak / mib,
                   (double)(never ? f->e.peak - f->memory.total : f->missing) / mib,
                   never ? "there is" : "is free now",
                   *f->advice ? "it would fit with " : "no batch_size or max_length would fit",
                   f->advice);
}

/* ---- time ---------------------------------------------------------------------------------- */

static int pass_seconds(struct run *r, struct graph_key k, const struct plan_rates *rates,
                        double *out, struct err *e)
{
    struct graph g;
    if (graph_make(&r->session.graphs, &k, r->job.threads, &g, e)) return -1;
    *out = plan_seconds(g.plan, PHASE_STEP, rates) + plan_seconds(g.plan, PHASE_UPDATE, rates);
    graph_clear(&g);
    return 0;
}

/* Rows and mean padded length of the micro-batches, from steps all over the job. */
static int mean_step(const struct run *r, double *rows, double *length, struct err *e)
{
    const struct schedule *s = &r->schedule;
    int64_t n = least(s->total, STEPS), all = 0, positions = 0;
    int64_t *index = mem_array(s->batch * s->accumulate, sizeof *index, e);
    if (!index) return -1;
    for (int64_t i = 0; i < n; i++) {
        int64_t window = schedule_rows(s, i * s->total / n, index);
        for (int64_t from = 0; from < window; from += s->batch) {
            int64_t k = least(s->batch, window - from);
            positions += k * micro_length(r, index + from, k);
        }
        all += window;
    }
    mem_free(index);
    *rows = (double)all / (double)n;
    *length = (double)positions / (double)all;
    return 0;
}

int estimate_seconds(struct run *r, const struct plan_rates *rates, struct estimate_time *out,
                     struct err *e)
{
    const struct schedule *s = &r->schedule;
    double rows, length, micro, update, loss = 0;
    if (mean_step(r, &rows, &length, e)) return -1;
    const struct graph_key step = {.kind = GRAPH_TRAIN, .T = padded((int64_t)length),
                                   .B = least(s->batch, dataset_count(r->train))};
    if (pass_seconds(r, step, rates, &micro, e) ||
        pass_seconds(r, (struct graph_key){.kind = GRAPH_UPDATE}, rates, &update, e))
        return -1;
    out->step = micro * rows / (double)step.B * length / (double)step.T + update;
    out->job = out->step * (double)s->total;
    if (!r->valid) return 0;
    const struct size size = {s->batch, r->max_length, 0};
    const struct graph_key k = largest(r->valid, size, GRAPH_LOSS);
    if (pass_seconds(r, k, rates, &loss, e)) return -1;
    int64_t times = 1 + (s->total + s->eval_every - 1) / s->eval_every;
    out->job += loss * (double)dataset_count(r->valid) / (double)k.B * (double)times;
    return 0;
}
