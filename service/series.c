#include "service/series.h"

#include "engine/base/fs.h"
#include "engine/base/jx.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "service/service.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *row(const struct series *s, int64_t i)
{
    return s->values + i * SERIES_COLUMNS;
}

static int column(struct series *s, const char *name)
{
    for (int i = 0; i < s->columns; i++)
        if (strcmp(s->names[i], name) == 0) return i;
    if (s->columns == SERIES_COLUMNS || strlen(name) >= SERIES_NAME_MAX) return -1;
    str_copy(s->names[s->columns], SERIES_NAME_MAX, name);
    return s->columns++;
}

static int add_row(struct series *s, struct err *e)
{
    if (s->rows == SERIES_ROWS_MAX)
        return err_set(e, E_LIMIT, "more than %d steps of metrics", SERIES_ROWS_MAX);
    if (s->rows == s->cap) {
        int64_t cap = s->cap ? s->cap * 2 : 256;
        double *more = mem_realloc(s->values, (size_t)cap * SERIES_COLUMNS * sizeof *more, e);
        if (!more) return -1;
        s->values = more;
        s->cap = cap;
    }
    double *v = row(s, s->rows++);
    for (int i = 0; i < SERIES_COLUMNS; i++) v[i] = NAN;
    return 0;
}

static int add_line(struct series *s, const char *text, size_t n, bool *first, struct err *e)
{
    struct err bad = ERR_INIT;
    const char *key;
    json_t *x, *line = jx_parse(text, n, &bad), *at = json_object_get(line, "step");
    int rc = 0;
    if (!line && bad.code == E_NOMEM) {
        *e = bad;
        return -1;
    }
    if (!json_is_integer(at)) goto out;
    double step = json_number_value(at);
    if (*first)
        while (s->rows && row(s, s->rows - 1)[0] >= step) s->rows--;
    *first = false;
    if (s->rows && row(s, s->rows - 1)[0] > step) goto out;
    if ((!s->rows || row(s, s->rows - 1)[0] < step) && (rc = add_row(s, e))) goto out;
    json_object_foreach(line, key, x) {
        int i = json_is_number(x) ? column(s, key) : -1;
        if (i >= 0) row(s, s->rows - 1)[i] = json_number_value(x);
    }
out:
    json_decref(line);
    return rc;
}

static int add_file(struct series *s, const char *path, struct err *e)
{
    enum { CHUNK = 1 << 16 };
    struct buf b;
    bool first = true;
    int rc = 0, fd = fs_open(path, O_RDONLY | O_NOFOLLOW, 0, e);
    if (fd < 0) return e->code == E_NOTFOUND ? 0 : -1;
    buf_init(&b, 1 << 20); /* the longest line */
    for (;;) {
        char *to = buf_room(&b, CHUNK);
        int64_t n = to ? fs_read(fd, to, CHUNK, e) : buf_ok(&b, e);
        if (n <= 0) {
            rc = n < 0 ? -1 : 0;
            break;
        }
        b.len += (size_t)n;
        size_t at = 0;
        char *nl;
        while (rc == 0 && (nl = memchr(b.data + at, '\n', b.len - at))) {
            rc = add_line(s, b.data + at, (size_t)(nl - b.data) - at, &first, e);
            at = (size_t)(nl - b.data) + 1;
        }
        if (rc) break;
        memmove(b.data, b.data + at, b.len - at);
        b.len -= at;
    }
    buf_clear(&b);
    fs_close(fd);
    return rc;
}

static int by_number(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

int series_load(struct series *s, const char *job_dir, struct err *e)
{
    char attempts[FS_PATH_MAX], path[FS_PATH_MAX], **names = NULL;
    int64_t *numbers = NULL;
    int n = 0, count = 0, rc = -1;
    *s = (struct series){.columns = 1};
    str_copy(s->names[0], SERIES_NAME_MAX, "step");
    if (fs_join(attempts, job_dir, "attempts", e)) return -1;
    if (!fs_exists(attempts)) return 0;
    if (fs_list(attempts, &names, &n, e)) return -1;
    if (!(numbers = mem_array(n, sizeof *numbers, e))) goto out;
    for (int i = 0; i < n; i++)
        if (str_int64(names[i], &numbers[count])) count++;
    qsort(numbers, (size_t)count, sizeof *numbers, by_number);
    for (int i = 0; i < count; i++) {
        int len = snprintf(path, sizeof path, "%s/%lld/metrics.jsonl", attempts,
                           (long long)numbers[i]);
        if (len >= (int)sizeof path) {
            err_set(e, E_LIMIT, "path too long: %.80s...", attempts);
            goto out;
        }
        if (add_file(s, path, e)) goto out;
    }
    rc = 0;
out:
    for (int i = 0; i < n; i++) mem_free(names[i]);
    mem_free(names);
    mem_free(numbers);
    if (rc) series_clear(s);
    return rc;
}

void series_clear(struct series *s)
{
    mem_free(s->values);
    *s = (struct series){0};
}

int64_t series_find(const struct series *s, int64_t step)
{
    int64_t lo = 0, hi = s->rows;
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        if (row(s, mid)[0] < (double)step)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < s->rows && row(s, lo)[0] == (double)step ? lo : -1;
}

/* Whether row i is shown when every stride-th is. */
static bool shown(const struct series *s, int64_t i, int64_t stride, int valid)
{
    return i % stride == 0 || i == s->rows - 1 || (valid >= 0 && !isnan(row(s, i)[valid]));
}

json_t *series_json(const struct series *s, int64_t max_points, struct err *e)
{
    json_t *out = json_object();
    int valid = -1;
    int64_t stride = max_points > 0 ? (s->rows + max_points - 1) / max_points : 1;
    if (stride < 1) stride = 1;
    if (!out) {
        err_set(e, E_NOMEM, "out of memory");
        return NULL;
    }
    for (int c = 0; c < s->columns; c++)
        if (strcmp(s->names[c], "valid_loss") == 0) valid = c;
    for (int c = 0; c < s->columns; c++) {
        json_t *list = json_array();
        int rc = jx_set(out, s->names[c], list, e);
        if (!list) rc = err_set(e, E_NOMEM, "out of memory");
        for (int64_t i = 0; rc == 0 && i < s->rows; i++) {
            if (!shown(s, i, stride, valid)) continue;
            double x = row(s, i)[c];
            json_t *v = !isfinite(x) ? json_null()
                        : c == 0     ? json_integer((json_int_t)x)
                                     : json_real(x);
            if (!v) rc = err_set(e, E_NOMEM, "out of memory");
            if (v) rc = service_append(list, v, e);
        }
        if (rc == 0) continue;
        json_decref(out);
        return NULL;
    }
    return out;
}
