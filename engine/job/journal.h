/* journal.h: what an attempt tells the world: events, metrics, progress and its exit.
 *
 * events.jsonl   {"created_at": unix ms, "level", "type", "message", "data"}, one line each
 * metrics.jsonl  {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_s"} per
 *                optimiser step, {"step", "valid_loss", "valid_accuracy"} per validation
 * exit.json      {"version", "attempt", "code", "step", "tokens", "error", "message", "param"}
 * A later attempt starts at its checkpoint, so its lines replace those of earlier attempts from
 * that step on. Wall-clock times live here and never in result/.
 */
#ifndef GRAFT_JOURNAL_H
#define GRAFT_JOURNAL_H

#include "engine/engine.h"

struct journal {
    char dir[1024];  /* attempts/<n> */
    int attempt;
    int events, metrics; /* descriptors; -1: closed */
    const struct engine_hooks *hooks;
};

int journal_open(struct journal *j, const char *job_dir, int attempt,
                 const struct engine_hooks *hooks, struct err *e);
void journal_close(struct journal *j);
/* data is taken and may be NULL. */
int journal_event(struct journal *j, const char *level, const char *type, json_t *data,
                  struct err *e, const char *fmt, ...) __attribute__((format(printf, 6, 7)));
int journal_metrics(struct journal *j, json_t *line, struct err *e); /* taken */
void journal_progress(struct journal *j, const struct engine_progress *p);
enum engine_want journal_want(struct journal *j);
int journal_exit(struct journal *j, enum engine_exit code, int64_t step, int64_t tokens,
                 const struct err *why, struct err *e);

#endif
