#include "service/conns.h"

#include "engine/base/clock.h"
#include "engine/base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>

struct conn {
    struct conns *owner;
    struct conn *prev, *next;
    int fd;
    bool shut;
    enum conn_phase phase;
    int64_t deadline; /* boot clock, ms */
    int64_t window_end, window_start_bytes;
    atomic_llong received;
    void *user;
};

struct conns {
    struct conns_limits limits;
    pthread_mutex_t lock; /* guards the list and every field but received and user */
    struct conn *first;
};

struct conns *conns_new(const struct conns_limits *l, struct err *e)
{
    struct conns *c = mem_zalloc(sizeof *c, e);
    if (!c) return NULL;
    c->limits = *l;
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

void conns_free(struct conns *c)
{
    if (!c) return;
    pthread_mutex_destroy(&c->lock);
    mem_free(c);
}

/* Under the lock. */
static void set_phase(struct conn *k, enum conn_phase p, int64_t body_max)
{
    const struct conns_limits *l = &k->owner->limits;
    int64_t now = clock_boot_ms();
    k->phase = p;
    switch (p) {
    case CONN_IDLE:
        k->deadline = now + l->idle_ms + l->header_ms;
        break;
    case CONN_HEADERS:
        if (now + l->header_ms < k->deadline) k->deadline = now + l->header_ms;
        break;
    case CONN_BODY:
        k->deadline = now + l->body_base_ms + body_max / l->body_bytes_per_s * 1000;
        k->window_end = now + l->body_window_ms;
        k->window_start_bytes = atomic_load(&k->received);
        break;
    case CONN_REPLY:
        k->deadline = INT64_MAX;
        break;
    }
}

struct conn *conn_open(struct conns *c, int fd, struct err *e)
{
    struct conn *k = mem_zalloc(sizeof *k, e);
    if (!k) return NULL;
    k->owner = c;
    k->fd = fd;
    pthread_mutex_lock(&c->lock);
    set_phase(k, CONN_IDLE, 0);
    k->deadline = clock_boot_ms() + c->limits.header_ms;
    k->next = c->first;
    if (c->first) c->first->prev = k;
    c->first = k;
    pthread_mutex_unlock(&c->lock);
    return k;
}

void conn_close(struct conn *k)
{
    struct conns *c = k->owner;
    pthread_mutex_lock(&c->lock);
    if (k->prev)
        k->prev->next = k->next;
    else
        c->first = k->next;
    if (k->next) k->next->prev = k->prev;
    pthread_mutex_unlock(&c->lock);
    mem_free(k);
}

void conn_phase(struct conn *k, enum conn_phase p, int64_t body_max)
{
    pthread_mutex_lock(&k->owner->lock);
    set_phase(k, p, body_max);
    pthread_mutex_unlock(&k->owner->lock);
}

void conn_received(struct conn *k, int64_t bytes)
{
    atomic_fetch_add(&k->received, bytes);
}

void conn_set_user(struct conn *k, void *user)
{
    k->user = user;
}

void *conn_user(const struct conn *k)
{
    return k->user;
}

static bool late(struct conn *k, int64_t now)
{
    const struct conns_limits *l = &k->owner->limits;
    if (now >= k->deadline) return true;
    if (k->phase != CONN_BODY || now < k->window_end) return false;
    int64_t got = atomic_load(&k->received);
    bool slow = got - k->window_start_bytes < l->body_window_bytes;
    k->window_end = now + l->body_window_ms;
    k->window_start_bytes = got;
    return slow;
}

int conns_sweep(struct conns *c)
{
    int n = 0;
    int64_t now = clock_boot_ms();
    pthread_mutex_lock(&c->lock);
    for (struct conn *k = c->first; k; k = k->next) {
        if (k->shut || !late(k, now)) continue;
        k->shut = true;
        shutdown(k->fd, SHUT_RDWR);
        n++;
    }
    pthread_mutex_unlock(&c->lock);
    return n;
}

void conns_cut(struct conns *c)
{
    pthread_mutex_lock(&c->lock);
    for (struct conn *k = c->first; k; k = k->next) {
        k->shut = true;
        shutdown(k->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&c->lock);
}
