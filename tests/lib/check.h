/* check.h: the invariants of reliability 1.4, checked on a data folder that no server uses.
 *
 * acks: what clients were told, one line each, written right after the reply; NULL for none:
 *   file ID SHA256 | deleting ID | deleted ID | model ID | job ID | cancelled ID | state ID STATE
 * A request whose line is missing may have happened or not; one with a line must have. "deleting"
 * is written before the request: from then on the file need not be there.
 */
#ifndef GRAFT_TEST_CHECK_H
#define GRAFT_TEST_CHECK_H

#include <stdio.h>

/* The number of violations, each told in a line on `out`. */
int check_data(const char *data_dir, const char *acks, FILE *out);

#endif
