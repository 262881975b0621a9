/* fault.h: the one counter through which every fallible call passes, and named crash points.
 *
 * The binary that is tested is the binary that ships: the hooks are always compiled in and
 * cost one relaxed atomic increment. They act only when armed, by fault_arm() in a unit test or
 * by the environment at start:
 *   GRAFT_FAULT=class:n     the n-th call of that class (1-based) fails once
 *   GRAFT_FAULT=class:n+    the n-th call and all later ones fail
 *   GRAFT_CRASH=point:n[:kill|exit|pause|err]   at the n-th visit of that point (default kill)
 * Classes: mem file sock sql thread. `pause` raises SIGSTOP, `err` makes the point return true.
 * Thread-safe.
 */
#ifndef GRAFT_FAULT_H
#define GRAFT_FAULT_H

#include <stdbool.h>
#include <stdint.h>

enum fault_class { FAULT_MEM, FAULT_FILE, FAULT_SOCK, FAULT_SQL, FAULT_THREAD, FAULT_CLASSES };

/* Counts one call. True: the caller must now fail as its real call would (errno is set to the
 * usual error of the class: ENOMEM, EIO, ECONNRESET, EIO, EAGAIN). */
bool fault_hit(enum fault_class c);

/* nth 0 disarms. Resets the count of the class. */
void fault_arm(enum fault_class c, int64_t nth, bool persistent);
int64_t fault_count(enum fault_class c);

/* Reads GRAFT_FAULT and GRAFT_CRASH. Called once, first thing in main(). Returns -1 with a
 * message on stderr if they cannot be parsed: a misspelt fault must not look like a pass. */
int fault_from_env(void);

/* True only in mode `err`: the caller then fails with E_IO. Lint lists the points. */
#define CRASHPOINT(name) (fault_crash_armed ? fault_crash(name) : false)
extern bool fault_crash_armed;
bool fault_crash(const char *name);

#endif
