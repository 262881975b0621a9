/* series.h: the metrics of a job as columns over its steps, from attempts/<n>/metrics.jsonl.
 *
 * Lines of one step are merged into one row. A later attempt starts at a checkpoint: from its first
 * step on it replaces what earlier attempts wrote. Lines that do not parse (a torn last one) are
 * skipped.
 */
#ifndef GRAFT_SERIES_H
#define GRAFT_SERIES_H

#include "engine/base/err.h"

#include <jansson.h>
#include <stdint.h>

enum { SERIES_COLUMNS = 32, SERIES_ROWS_MAX = 4 << 20, SERIES_NAME_MAX = 48 };

struct series {
    char names[SERIES_COLUMNS][SERIES_NAME_MAX]; /* names[0] is "step" */
    int columns;
    double *values; /* (rows, SERIES_COLUMNS); NaN: not written */
    int64_t rows, cap;
};

/* A job without metrics has no rows. */
int series_load(struct series *s, const char *job_dir, struct err *e);
void series_clear(struct series *s);
/* The row of this step, or -1. */
int64_t series_find(const struct series *s, int64_t step);
/* {"step": [...], ...} of at most max_points rows: evenly spread, always with the last one and with
 * every row that has a validation loss. NaN is null. */
json_t *series_json(const struct series *s, int64_t max_points, struct err *e);

#endif
