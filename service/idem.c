#include "service/idem.h"

#include "engine/base/clock.h"
#include "service/store.h"

#include <string.h>

enum { KEEP_MS = 24 * 3600 * 1000 };

int idem_find(struct store *store, const struct idem *idem, json_t **reply, struct err *e)
{
    if (!idem) return 0;
    struct store_rows *r;
    if (store_run(store, e, "DELETE FROM idempotency WHERE created_at < ?", "i",
                  clock_unix_ms() - KEEP_MS) < 0)
        return -1;
    int rc = store_one(store, &r, e, "SELECT request, reply FROM idempotency WHERE key = ?", "t",
                       idem->key);
    if (rc < 1) return rc;
    const char *request = store_text(r, 0);
    if (!request || strcmp(request, idem->request_sha256) != 0) {
        err_set(e, E_FORMAT, "this idempotency key was used for a different request");
        rc = err_param(e, "Idempotency-Key");
    } else {
        *reply = store_json(r, 1, e);
        rc = *reply ? 1 : -1;
    }
    store_rows_end(r);
    return rc;
}

int idem_save(struct store *store, const struct idem *idem, const json_t *reply, struct err *e)
{
    if (!idem) return 0;
    int rc = store_run(store, e,
                       "INSERT INTO idempotency (key, request, reply, created_at) "
                       "VALUES (?, ?, ?, ?)",
                       "ttji", idem->key, idem->request_sha256, reply, clock_unix_ms());
    return rc < 0 ? -1 : 0;
}
