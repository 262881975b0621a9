/* worker.h: the job process: `graft worker DIR --attempt N [--lock FD]`.
 *
 * Takes the lock DIR/lock (or gets it as FD from the runner), listens on DIR/attempts/N/control.sock, runs the engine, writes
 * attempts/N/exit.json and returns the exit code. It knows nothing of HTTP and SQL, needs no
 * server to go on, and treats SIGTERM as preemption (checkpoint, exit 50).
 *
 * Channel: the server sends a line {"attempt": N, "want": "none" | "pause" | "cancel"}; the worker
 * answers {"attempt": N, "pid": P, "phase": ..., "step": ..., ...} (engine_progress). A line for
 * another attempt is answered and otherwise ignored.
 * exit.json: {"version": 1, "attempt": N, "code": C, "step": S, "tokens": T, "error": name,
 *             "message": text, "param": text}.
 */
#ifndef GRAFT_WORKER_H
#define GRAFT_WORKER_H

#include "engine/engine.h"

/* Another worker has the job, or the attempt has ended already: no exit.json. */
enum { WORKER_NOT_MINE = 75 };

typedef enum engine_exit (*worker_run_fn)(const char *dir, int attempt,
                                          const struct engine_hooks *hooks, struct err *e);

/* argv[0] is "worker". run is engine_run; tests pass a fake. Returns the process exit code. */
int worker_main(int argc, char **argv, worker_run_fn run);

#endif
