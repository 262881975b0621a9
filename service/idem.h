/* idem.h: idempotency keys (rest-conventions 1.4). */
#ifndef GRAFT_IDEM_H
#define GRAFT_IDEM_H

#include "service/service.h"

/* Both within the creating transaction. find: 1 and the first reply, 0 if the key is new (or
 * older than 24 h), -1 (E_FORMAT: used for another request). idem may be NULL: 0. */
int idem_find(struct store *store, const struct idem *idem, json_t **reply, struct err *e);
int idem_save(struct store *store, const struct idem *idem, const json_t *reply, struct err *e);

#endif
