/* What all runners share. */
#include "service/runner.h"

#include "engine/base/jx.h"

#include <stdio.h>

void runner_worker_init(struct runner_worker *w)
{
    *w = (struct runner_worker){.pidfd = -1, .status = -1};
    wire_open(&w->wire, -1);
}

void runner_news_clear(struct runner_news *n)
{
    json_decref(n->progress);
    json_decref(n->report);
    *n = (struct runner_news){0};
}

int runner_read_exit(const struct runner_worker *w, struct runner_news *n, struct err *e)
{
    char path[FS_PATH_MAX];
    struct err bad = ERR_INIT;
    int64_t code, attempt;
    int len = snprintf(path, sizeof path, "%s/attempts/%d/exit.json", w->job_dir, w->attempt);
    if (len >= (int)sizeof path) return err_set(e, E_LIMIT, "path too long: %.80s...", w->job_dir);
    if (!fs_exists(path)) return 0;
    json_t *o = jx_load_file(path, 1 << 20, &bad);
    if (!o && bad.code != E_FORMAT) {
        *e = bad;
        return -1;
    }
    /* It is written whole or not at all. One that does not parse was not written by a worker. */
    if (o && !jx_int64(o, "code", 0, 255, &code, &bad) &&
        !jx_int64(o, "attempt", w->attempt, w->attempt, &attempt, &bad)) {
        n->exited = true;
        n->code = (int)code;
        n->report = json_incref(o);
    }
    json_decref(o);
    return 0;
}
