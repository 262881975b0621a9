#include "engine/opt/sched.h"

#include <math.h>
#include <string.h>

static const char *const names[SCHED_COUNT] = {"constant", "linear", "cosine"};

const char *sched_name(enum sched kind)
{
    return names[kind];
}

bool sched_parse(const char *name, enum sched *out)
{
    for (int i = 0; i < SCHED_COUNT; i++) {
        if (strcmp(names[i], name) != 0) continue;
        *out = (enum sched)i;
        return true;
    }
    return false;
}

double sched_factor(enum sched kind, int64_t step, int64_t total, int64_t warmup)
{
    if (step < warmup) return (double)step / (double)warmup;
    double span = total > warmup ? (double)(total - warmup) : 1.0;
    switch (kind) {
    case SCHED_LINEAR:
        return fmax(0.0, (double)(total - step) / span);
    case SCHED_COSINE:
        return fmax(0.0, 0.5 * (1.0 + cos(3.141592653589793 * ((double)(step - warmup) / span))));
    default:
        return 1.0;
    }
}
