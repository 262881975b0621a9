#include "service/events.h"

#include "engine/base/clock.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "handlers/handlers.h"
#include "service/queue.h"

enum { HEARTBEAT_MS = 15000, POLL_MS = 500, BATCH = 100 };

/* One open stream: events after number `n`, a comment when there is nothing for long. */
struct stream {
    struct service *service;
    char job_id[QUEUE_ID_MAX];
    int64_t n, polled_ms, sent_ms;
};

static int put_event(struct buf *b, const json_t *event, int64_t *n, struct err *e)
{
    const char *type = "message";
    if (jx_int64(event, "n", 1, INT64_MAX, n, e) || jx_opt_str(event, "type", &type, e))
        return -1;
    char *text = jx_dump(event, e);
    if (!text) return -1;
    buf_printf(b, "id: %lld\nevent: %s\ndata: ", (long long)*n, type);
    buf_puts(b, text);
    buf_puts(b, "\n\n");
    mem_free(text);
    return buf_ok(b, e);
}

static int stream_next(void *ctx, struct buf *b, bool *end, struct err *e)
{
    struct stream *s = ctx;
    int64_t now = clock_boot_ms();
    bool final = false;
    if (now - s->polled_ms < POLL_MS) return 0;
    s->polled_ms = now;
    json_t *list = events_since(s->service, s->job_id, s->n, BATCH, &final, e), *event;
    if (!list) return -1;
    size_t i;
    int rc = 0;
    json_array_foreach(list, i, event) rc = rc ? rc : put_event(b, event, &s->n, e);
    /* A full batch may not be the last one, whatever the job's state. */
    bool more = json_array_size(list) == BATCH;
    json_decref(list);
    if (rc) return -1;
    if (more) s->polled_ms = 0;
    if (final && !more) {
        buf_puts(b, "data: [DONE]\n\n");
        *end = true;
    } else if (b->len == 0 && now - s->sent_ms >= HEARTBEAT_MS) {
        buf_puts(b, ": still there\n\n");
    }
    if (b->len) s->sent_ms = now;
    return 0;
}

static void stream_close(void *ctx)
{
    mem_free(ctx);
}

static int open_stream(struct request *r, struct reply *out, struct err *e)
{
    const char *last = request_header(r, "last-event-id");
    int64_t n = 0;
    bool final;
    if (last && *last && (!str_int64(last, &n) || n < 0)) {
        err_set(e, E_ARG, "Last-Event-ID must be the number of an event");
        return err_param(e, "Last-Event-ID");
    }
    /* Told now, while there is still a status line to tell it with. */
    json_t *probe = events_since(r->service, request_param(r, 0), n, 1, &final, e);
    if (!probe) return handlers_missing(out, e, "job_not_found");
    json_decref(probe);
    struct stream *s = mem_zalloc(sizeof *s, e);
    if (!s) return -1;
    *s = (struct stream){.service = r->service, .n = n, .sent_ms = clock_boot_ms()};
    str_copy(s->job_id, sizeof s->job_id, request_param(r, 0));
    return reply_events(out, (struct reply_stream){s, stream_next, stream_close}, e);
}

int jobs_index_events(struct request *r, struct reply *out, struct err *e)
{
    static const char *const known[] = {"after", "limit", "order", NULL};
    struct page p = {.limit = 20};
    if (request_accepts(r, "text/event-stream")) return open_stream(r, out, e);
    if (request_query_only(r, known, e) || handlers_page(r, 1000, &p, e)) return -1;
    json_t *list = events_list(r->service, request_param(r, 0), &p, e);
    return list ? reply_json(out, list, e) : handlers_missing(out, e, "job_not_found");
}
