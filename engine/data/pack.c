#include "engine/data/pack.h"

#include "engine/base/mem.h"
#include "engine/base/rng.h"

#include <string.h>

enum { ROUND = 8 }; /* as batches are padded */

/* Rows that are being filled, in lists by the room they have left. */
struct bins {
    const int64_t *length;
    const int64_t *order;  /* [n] documents, longest first */
    int64_t n, most;
    int64_t *row;          /* [n] row of the document at a place of order */
    int64_t *next;         /* [n] the next row with as much room, or -1 */
    int64_t *head;         /* [most + 1] the first row with that much room, or -1 */
    uint64_t *some;        /* bit set: the list is not empty */
};

static void push(struct bins *b, int64_t row, int64_t room)
{
    b->next[row] = b->head[room];
    b->head[room] = row;
    b->some[room / 64] |= 1ull << (room % 64);
}

/* The row with the least room that is enough, taken from its list; -1 if there is none. */
static int64_t take(struct bins *b, int64_t need, int64_t size, int64_t *room)
{
    int64_t word = need / 64, last = size / 64;
    uint64_t bits = b->some[word] & (~0ull << (need % 64));
    while (!bits && word < last) bits = b->some[++word];
    if (!bits) return -1;
    *room = word * 64 + __builtin_ctzll(bits);
    int64_t row = b->head[*room];
    b->head[*room] = b->next[row];
    if (b->head[*room] < 0) b->some[word] &= ~(1ull << (*room % 64));
    return row;
}

/* Fills rows of `size`; how many it takes. */
static int64_t fill(struct bins *b, int64_t size)
{
    int64_t rows = 0, room = 0;
    memset(b->head, 0xff, (size_t)(b->most + 1) * sizeof *b->head);
    memset(b->some, 0, (size_t)(b->most / 64 + 1) * sizeof *b->some);
    for (int64_t i = 0; i < b->n; i++) {
        int64_t need = b->length[b->order[i]], row = take(b, need, size, &room);
        if (row < 0) {
            row = rows++;
            room = size;
        }
        b->row[i] = row;
        push(b, row, room - need);
    }
    return rows;
}

/* Counting sort, longest first; the keyed shuffle decides among equals. */
static int sort(const int64_t *length, int64_t n, int64_t most, uint64_t seed, int64_t *order,
                struct err *e)
{
    int64_t *at = mem_array(most + 2, sizeof *at, e);
    if (!at) return -1;
    for (int64_t i = 0; i < n; i++) at[most - length[i] + 1]++;
    for (int64_t k = 1; k <= most; k++) at[k] += at[k - 1];
    for (int64_t i = 0; i < n; i++) {
        int64_t doc = rng_permute(seed, RNG_PACK, n, i);
        order[at[most - length[doc]]++] = doc;
    }
    mem_free(at);
    return 0;
}

/* The least size, in steps of what a batch is padded to, that takes no more rows than the most. */
static int64_t even_out(struct bins *b)
{
    int64_t rows = fill(b, b->most), total = 0;
    for (int64_t i = 0; i < b->n; i++) total += b->length[i];
    int64_t least = (total + rows - 1) / rows, longest = b->length[b->order[0]];
    if (least < longest) least = longest;
    int64_t lo = (least + ROUND - 1) / ROUND, hi = b->most / ROUND; /* in steps */
    int64_t best = b->most;
    while (lo <= hi) {
        int64_t mid = lo + (hi - lo) / 2;
        if (fill(b, mid * ROUND) <= rows) {
            best = mid * ROUND;
            hi = mid - 1;
        } else {
            lo = mid + 1;
        }
    }
    return fill(b, best);
}

static int collect(struct pack *p, const struct bins *b, struct err *e)
{
    if (!(p->first = mem_array(p->rows + 2, sizeof *p->first, e)) ||
        !(p->doc = mem_array(p->n, sizeof *p->doc, e)))
        return -1;
    for (int64_t i = 0; i < p->n; i++) p->first[b->row[i] + 2]++;
    for (int64_t k = 2; k <= p->rows + 1; k++) p->first[k] += p->first[k - 1];
    /* first[row + 1] moves from where the row begins to where it ends. */
    for (int64_t i = 0; i < p->n; i++) p->doc[p->first[b->row[i] + 1]++] = b->order[i];
    return 0;
}

int pack_make(struct pack *p, const int64_t *length, int64_t n, int64_t most, uint64_t seed,
              struct err *e)
{
    struct bins b = {.length = length, .n = n, .most = most};
    int64_t *order = mem_array(n, sizeof *order, e);
    int rc = -1;
    *p = (struct pack){.n = n};
    b.order = order;
    if (!order || sort(length, n, most, seed, order, e) ||
        !(b.row = mem_array(n, sizeof *b.row, e)) || !(b.next = mem_array(n, sizeof *b.next, e)) ||
        !(b.head = mem_array(most + 1, sizeof *b.head, e)) ||
        !(b.some = mem_array(most / 64 + 1, sizeof *b.some, e)))
        goto out;
    p->rows = even_out(&b);
    rc = collect(p, &b, e);
out:
    mem_free(b.some);
    mem_free(b.head);
    mem_free(b.next);
    mem_free(b.row);
    mem_free(order);
    if (rc) pack_clear(p);
    return rc;
}

void pack_clear(struct pack *p)
{
    mem_free(p->doc);
    mem_free(p->first);
    *p = (struct pack){0};
}
