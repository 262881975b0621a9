/* fake_engine.h: an engine that computes nothing, for tests of the service.
 *
 * It obeys engine.h: events, metrics, checkpoints, exact resume, pause, cancel, preemption and a
 * published result/. Its "weights" are a chained number over all steps, so that a resume from a
 * wrong place, or a step done twice, changes the bytes of the result.
 * Settings (method "lora"): steps, step_ms, checkpoint_every, exit_code (ends so at exit_step),
 * kill_signal (raised at exit_step), only_attempt (those two act in this attempt only; 0: all).
 */
#ifndef GRAFT_FAKE_ENGINE_H
#define GRAFT_FAKE_ENGINE_H

#include "engine/engine.h"
#include "service/service.h"

extern const struct engine_calls fake_engine_calls;
enum engine_exit fake_engine_run(const char *dir, int attempt, const struct engine_hooks *hooks,
                                 struct err *e);
/* The number that `steps` steps lead to, as it stands in result/merged/model.safetensors. */
uint64_t fake_engine_value(int64_t steps);

#endif
