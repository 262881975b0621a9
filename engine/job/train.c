/* The training loop. Everything a step depends on follows from the settings and the step's number:
 * order, dropout, learning rate; so a checkpoint is parameters, moments and a few counters. */
#include "engine/base/clock.h"
#include "engine/base/fault.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/job/run.h"
#include "engine/method/settings.h"

#include <math.h>
#include <string.h>

/* The longest time whose work a crash may cost, and how many metrics events a job leaves. */
static const int64_t CHECKPOINT_NS = 600ll * 1000000000ll;
enum { METRIC_EVENTS = 100 };

struct trainer {
    struct run *r;
    struct batch batch;
    int64_t *rows;                  /* of the current window */
    double beta1, beta2, decay;
    int64_t started_ns, saved_ns, told_ns, told_tokens;
    int64_t first_step;             /* of this attempt */
    int64_t event_every, log_every;
    double loss, norm, lr;          /* of the current step */
};

/* Runs the micro-batches of one window; their gradients add up. */
static int forward_backward(struct trainer *t, int64_t n, struct err *e)
{
    struct run *r = t->r;
    struct exec *x = r->session.exec;
    int64_t trained = 0;
    for (int64_t i = 0; i < n; i++) {
        struct example ex = dataset_get(r->train, t->rows[i]);
        for (int64_t k = 1; k < ex.n; k++) trained += ex.trained[k];
    }
    /* The loss is the mean over the tokens of the whole window, whatever its micro-batches. */
    float weight = (float)(1.0 / (double)trained), part;
    t->loss = 0;
    for (int64_t from = 0, micro = 0; from < n; from += r->schedule.batch, micro++) {
        int64_t k = n - from < r->schedule.batch ? n - from : r->schedule.batch;
        if (batch_fill(&t->batch, r->train, t->rows + from, k, e)) return -1;
        const struct graph_key key = {.kind = GRAPH_TRAIN, .B = t->batch.B, .T = t->batch.T};
        struct graph *g = graphs_bind(&r->session.graphs, &key, e);
        if (!g || graph_feed(x, g, &t->batch, weight, e)) return -1;
        x->rng_step = (uint32_t)(r->state.step * r->schedule.accumulate + micro);
        if (exec_run(x, PHASE_STEP, (int)micro, e) ||
            exec_read(x, g->io.loss, &part, sizeof part, e))
            return -1;
        t->loss += part;
        r->state.tokens += t->batch.tokens;
        r->state.trained += t->batch.trained;
    }
    return 0;
}

static int update(struct trainer *t, struct err *e)
{
    struct run *r = t->r;
    struct exec *x = r->session.exec;
    const struct graph_key key = {.kind = GRAPH_UPDATE};
    double n = (double)(r->state.step + 1);
    float zero = 0, norm, hyper[8] = {0};
    t->lr = schedule_lr(&r->schedule, r->state.step);
    hyper[0] = (float)t->lr;
    hyper[1] = (float)t->decay;
    hyper[2] = (float)(1.0 - pow(t->beta1, n));
    hyper[3] = (float)(1.0 - pow(t->beta2, n));
    struct graph *g = graphs_bind(&r->session.graphs, &key, e);
    if (!g || exec_write(x, g->hyper[0], hyper, sizeof hyper, e)) return -1;
    hyper[1] = 0;
    if (exec_write(x, g->hyper[1], hyper, sizeof hyper, e) ||
        exec_write(x, g->sumsq, &zero, sizeof zero, e) || exec_run(x, PHASE_UPDATE, 0, e) ||
        exec_read(x, g->norm, &norm, sizeof norm, e))
        return -1;
    t->norm = norm;
    return 0;
}

/* The update of the step before may have been the one: its results are read for the first time. */
static int check_weights(const struct trainer *t, struct err *e)
{
    const struct params *ps = &t->r->session.model->params;
    if (t->r->state.step == 0) return 0;
    if (exec_pull(t->r->session.exec, ps, e)) return -1;
    for (int i = 0; i < ps->n; i++) {
        const struct param *p = ps->items[i];
        const float *w = p->data;
        for (int64_t k = 0; k < p->count && p->kind == PARAM_TRAINABLE; k++)
            if (!isfinite(w[k]))
                return err_set(e, E_NUMERIC, "adamw (update) had made element %lld of %s %g in"
                               " step %lld", (long long)k, p->name, (double)w[k],
                               (long long)t->r->state.step);
    }
    return 0;
}

/* Something was not a number: the same passes once more, looking after each operation, so that
 * the message can name the first one that made it so. Weights do not change where the norm of the
 * gradients is no number. */
static int find_culprit(struct trainer *t, int64_t n, struct err *e)
{
    struct exec *x = t->r->session.exec;
    x->check = true;
    int rc = check_weights(t, e) || forward_backward(t, n, e) || update(t, e) ? -1 : 0;
    x->check = false;
    if (!rc) err_set(e, E_NUMERIC, "the loss is %g, the gradient's norm %g", t->loss, t->norm);
    return err_wrap(e, "step %lld (a lower learning rate may help)",
                    (long long)t->r->state.step + 1);
}

static int step(struct trainer *t, struct err *e)
{
    struct run_state *s = &t->r->state;
    int64_t n = schedule_rows(&t->r->schedule, s->step, t->rows);
    if (forward_backward(t, n, e)) return err_wrap(e, "step %lld", (long long)s->step + 1);
    if (!isfinite(t->loss)) return find_culprit(t, n, e);
    if (update(t, e)) return err_wrap(e, "step %lld", (long long)s->step + 1);
    if (!isfinite(t->norm)) return find_culprit(t, n, e);
    s->step++;
    s->train_loss = t->loss;
    return 0;
}

static int report(struct trainer *t, struct err *e)
{
    struct run *r = t->r;
    struct run_state *s = &r->state;
    int64_t now = clock_mono_ns(), total = r->schedule.total;
    double since = (double)(now - t->told_ns) * 1e-9;
    double per_step = (double)(now - t->started_ns) * 1e-9 / (double)(s->step - t->first_step);
    double epoch = schedule_epoch(&r->schedule, s->step);
    double speed = since > 0 ? (double)(s->tokens - t->told_tokens) / since : 0;
    if (journal_metrics(&r->journal,
                        jx_pack(e, "{s:I, s:f, s:f, s:f, s:f, s:I, s:f}", "step",
                                (json_int_t)s->step, "epoch", epoch, "loss", t->loss, "lr", t->lr,
                                "grad_norm", t->norm, "tokens", (json_int_t)s->tokens,
                                "tokens_per_s", speed), e))
        return -1;
    if (s->step % t->event_every == 0 || s->step == total) {
        json_t *data = jx_pack(e, "{s:I, s:I, s:f, s:f, s:f}", "step", (json_int_t)s->step,
                               "total_steps", (json_int_t)total, "train_loss", t->loss,
                               "learning_rate", t->lr, "grad_norm", t->norm);
        if (journal_event(&r->journal, "info", "metrics", data, e,
                          "Step %lld/%lld: training loss=%.4f", (long long)s->step,
                          (long long)total, t->loss))
            return -1;
    }
    if (s->step % t->log_every && s->step != total) return 0;
    r->told = (struct engine_progress){
        .phase = "training", .step = s->step, .total_steps = total, .epoch = epoch,
        .train_loss = t->loss, .learning_rate = t->lr, .grad_norm = t->norm,
        .tokens_per_s = speed, .tokens = s->tokens,
        .eta_s = per_step * (double)(total - s->step)};
    journal_progress(&r->journal, &r->told);
    t->told_ns = now;
    t->told_tokens = s->tokens;
    return 0;
}

/* One line of metrics.csv: numbers that depend on nothing but the job. */
static int write_row(struct run *r, const struct trainer *t, bool validated, struct err *e)
{
    struct run_state *s = &r->state;
    if (!s->step)
        buf_puts(&s->csv, "step,epoch,train_loss,learning_rate,grad_norm,tokens,valid_loss,"
                          "valid_accuracy\n");
    if (s->step || validated) {
        buf_printf(&s->csv, "%lld,%.6g,", (long long)s->step,
                   schedule_epoch(&r->schedule, s->step));
        if (s->step) buf_printf(&s->csv, "%.9g,%.9g,%.9g,", t->loss, t->lr, t->norm);
        else buf_puts(&s->csv, ",,,");
        buf_printf(&s->csv, "%lld,", (long long)s->tokens);
        if (validated) buf_printf(&s->csv, "%.9g,%.9g\n", s->valid_loss, s->valid_accuracy);
        else buf_puts(&s->csv, ",\n");
    }
    return buf_ok(&s->csv, e);
}

/* The model before its first step: what the result is compared with. */
static int measure_before(struct trainer *t, struct err *e)
{
    struct run_state *s = &t->r->state;
    if (run_samples(t->r, "before", e) || evaluate_run(t->r, e)) return -1;
    s->before_loss = s->valid_loss;
    s->before_accuracy = s->valid_accuracy;
    s->begun = true;
    return write_row(t->r, t, t->r->valid != NULL, e);
}

static int one_step(struct trainer *t, struct err *e)
{
    struct run *r = t->r;
    struct run_state *s = &r->state;
    const struct schedule *c = &r->schedule;
    if (step(t, e) || report(t, e)) return -1;
    bool last = s->step == c->total, look = r->valid && (last || s->step % c->eval_every == 0);
    if ((look && evaluate_run(r, e)) || write_row(r, t, look, e)) return -1;
    if (CRASHPOINT("job.step_done")) return err_set(e, E_IO, "crash point job.step_done");
    int64_t now = clock_mono_ns();
    if (last || (s->step % c->checkpoint_every && now - t->saved_ns < CHECKPOINT_NS)) return 0;
    t->saved_ns = now;
    return ckpt_write(r, e);
}

static enum engine_exit loop(struct trainer *t, struct err *e)
{
    struct run *r = t->r;
    if (!r->state.begun && measure_before(t, e)) return run_exit_code(e);
    while (r->state.step < r->schedule.total) {
        enum engine_want want = journal_want(&r->journal);
        if (want == WANT_CANCEL) {
            err_set(e, E_CANCELLED, "cancelled at step %lld", (long long)r->state.step);
            return EXIT_CANCELLED;
        }
        if (want != WANT_NONE) {
            if (ckpt_write(r, e)) return run_exit_code(e);
            return want == WANT_PAUSE ? EXIT_PAUSED : EXIT_PREEMPTED;
        }
        if (one_step(t, e)) return run_exit_code(e);
    }
    return run_samples(r, "after", e) ? run_exit_code(e) : EXIT_DONE;
}

enum engine_exit train_run(struct run *r, struct err *e)
{
    const json_t *set = r->job.settings;
    const struct schedule *c = &r->schedule;
    int64_t now = clock_mono_ns();
    struct trainer t = {
        .r = r,
        .beta1 = settings_real(set, "adam_beta1"),
        .beta2 = settings_real(set, "adam_beta2"),
        .decay = settings_real(set, "weight_decay"),
        .started_ns = now, .saved_ns = now, .told_ns = now,
        .told_tokens = r->state.tokens,
        .first_step = r->state.step,
        .event_every = (c->total + METRIC_EVENTS - 1) / METRIC_EVENTS,
        .log_every = settings_int(set, "logging_steps"),
    };
    if (t.event_every < t.log_every) t.event_every = t.log_every;
    if (!(t.rows = mem_array(c->batch * c->accumulate, sizeof *t.rows, e)))
        return run_exit_code(e);
    enum engine_exit code = loop(&t, e);
    batch_clear(&t.batch);
    mem_free(t.rows);
    return code;
}
