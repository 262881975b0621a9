/* clock.h: time. Leases and timeouts use the boot clock, which no operator can turn back. */
#ifndef GRAFT_CLOCK_H
#define GRAFT_CLOCK_H

#include <stdint.h>

int64_t clock_unix_ms(void); /* wall clock, ms since 1970 UTC: for people only */
int64_t clock_boot_ms(void); /* ms since boot, also while suspended: for deadlines */
int64_t clock_mono_ns(void); /* ns, for measuring */
void clock_sleep_ms(int64_t ms);

/* "2026-11-23T20:46:00.123Z" */
void clock_iso8601(int64_t unix_ms, char out[32]);

#endif
