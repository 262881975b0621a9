#include "engine/job/schedule.h"

#include "engine/base/rng.h"
#include "engine/method/settings.h"

#include <math.h>

/* Parts of a job after which it is validated and saved if the user does not say. */
enum { DEFAULT_PARTS = 10 };

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

void schedule_init(struct schedule *s, const json_t *settings, int64_t rows, uint64_t seed)
{
    *s = (struct schedule){
        .rows = rows,
        .batch = settings_int(settings, "batch_size"),
        .accumulate = settings_int(settings, "gradient_accumulation_steps"),
        .eval_every = settings_int(settings, "eval_steps"),
        .checkpoint_every = settings_int(settings, "checkpoint_steps"),
        .warmup = settings_int(settings, "warmup_steps"),
        .peak = settings_real(settings, "learning_rate") *
                settings_real(settings, "learning_rate_multiplier"),
        .seed = seed,
    };
    sched_parse(settings_str(settings, "lr_scheduler"), &s->kind);
    s->steps_per_epoch = ceil_div(rows, s->batch * s->accumulate);
    s->total = settings_int(settings, "max_steps");
    if (!s->total) s->total = s->steps_per_epoch * settings_int(settings, "n_epochs");
    if (!s->eval_every) s->eval_every = ceil_div(s->total, DEFAULT_PARTS);
    if (!s->checkpoint_every) s->checkpoint_every = ceil_div(s->total, DEFAULT_PARTS);
    if (!s->warmup)
        s->warmup = (int64_t)ceil(settings_real(settings, "warmup_ratio") * (double)s->total);
}

double schedule_lr(const struct schedule *s, int64_t step)
{
    return s->peak * sched_factor(s->kind, step, s->total, s->warmup);
}

int64_t schedule_rows(const struct schedule *s, int64_t step, int64_t *rows)
{
    int64_t window = s->batch * s->accumulate;
    int64_t epoch = step / s->steps_per_epoch, from = step % s->steps_per_epoch * window;
    int64_t n = s->rows - from < window ? s->rows - from : window;
    for (int64_t i = 0; i < n; i++)
        rows[i] = rng_permute(s->seed, (uint32_t)epoch, s->rows, from + i);
    return n;
}

double schedule_epoch(const struct schedule *s, int64_t steps_done)
{
    int64_t left = steps_done % s->steps_per_epoch, epoch = steps_done / s->steps_per_epoch;
    double part = (double)(left * s->batch * s->accumulate) / (double)s->rows;
    return (double)epoch + part;
}
