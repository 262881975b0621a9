#include "service/lane.h"

#include "engine/base/fault.h"
#include "engine/base/mem.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

struct lane {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct lane_task *first, *last;
    int queued, queue_max;
    bool closing;
    int threads;
    pthread_t thread[];
};

static void *work(void *ctx)
{
    struct lane *l = ctx;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        struct lane_task *t = l->first;
        if (!t) {
            if (l->closing) break;
            pthread_cond_wait(&l->more, &l->lock);
            continue;
        }
        l->first = t->next;
        l->queued--;
        pthread_mutex_unlock(&l->lock);
        t->run(t->ctx);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

struct lane *lane_new(int threads, int queue_max, struct err *e)
{
    struct lane *l = mem_zalloc(sizeof *l + (size_t)threads * sizeof *l->thread, e);
    if (!l) return NULL;
    l->queue_max = queue_max;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->more, NULL);
    for (; l->threads < threads; l->threads++) {
        int rc = fault_hit(FAULT_THREAD) ? EAGAIN
                                         : pthread_create(&l->thread[l->threads], NULL, work, l);
        if (rc == 0) continue;
        errno = rc;
        err_sys(e, "cannot start a thread");
        lane_free(l);
        return NULL;
    }
    return l;
}

int lane_put(struct lane *l, struct lane_task *t, struct err *e)
{
    int rc = 0;
    t->next = NULL;
    pthread_mutex_lock(&l->lock);
    if (l->queued >= l->queue_max) {
        rc = err_set(e, E_QUOTA, "the server is busy; try again in a moment");
    } else {
        if (l->first)
            l->last->next = t;
        else
            l->first = t;
        l->last = t;
        l->queued++;
        pthread_cond_signal(&l->more);
    }
    pthread_mutex_unlock(&l->lock);
    return rc;
}

void lane_free(struct lane *l)
{
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_cond_broadcast(&l->more);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->threads; i++) pthread_join(l->thread[i], NULL);
    pthread_cond_destroy(&l->more);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}
