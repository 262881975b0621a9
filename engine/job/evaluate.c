/* Validation: the whole validation set in file order, forward only. */
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/job/run.h"

#include <math.h>

/* Sums over tokens, so that the batch size decides nothing but the last bits. */
static int measure(struct run *r, double *loss, double *accuracy, struct err *e)
{
    int64_t rows = dataset_count(r->valid), width = r->schedule.batch, trained = 0;
    double nll = 0, hits = 0, batch_nll, batch_hits;
    struct batch b = {0};
    int rc = -1;
    int64_t *index = mem_array(width, sizeof *index, e);
    if (!index) return -1;
    for (int64_t from = 0; from < rows; from += width) {
        int64_t n = rows - from < width ? rows - from : width;
        for (int64_t i = 0; i < n; i++) index[i] = from + i;
        if (batch_fill(&b, r->valid, index, n, e) ||
            session_loss(&r->session, &b, &batch_nll, &batch_hits, e))
            goto out;
        nll += batch_nll;
        hits += batch_hits;
        trained += b.trained;
    }
    *loss = nll / (double)trained;
    *accuracy = hits / (double)trained;
    if (!isfinite(*loss)) {
        err_set(e, E_NUMERIC, "the validation loss is %g after step %lld", *loss,
                (long long)r->state.step);
        goto out;
    }
    rc = 0;
out:
    batch_clear(&b);
    mem_free(index);
    return rc;
}

int evaluate_run(struct run *r, struct err *e)
{
    struct run_state *s = &r->state;
    if (!r->valid) return 0;
    run_progress(r, "evaluating");
    if (measure(r, &s->valid_loss, &s->valid_accuracy, e)) return -1;
    if (journal_metrics(&r->journal,
                        jx_pack(e, "{s:I, s:f, s:f}", "step", (json_int_t)s->step, "valid_loss",
                                s->valid_loss, "valid_accuracy", s->valid_accuracy), e))
        return -1;
    return journal_event(&r->journal, "info", "metrics",
                         jx_pack(e, "{s:I, s:I, s:f, s:f}", "step", (json_int_t)s->step,
                                 "total_steps", (json_int_t)r->schedule.total, "valid_loss",
                                 s->valid_loss, "valid_mean_token_accuracy", s->valid_accuracy),
                         e, "Step %lld/%lld: validation loss=%.4f, token accuracy=%.4f",
                         (long long)s->step, (long long)r->schedule.total, s->valid_loss,
                         s->valid_accuracy);
}
