/* A data set, JSONL or CSV: every row and every problem of it. */
#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/data/rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    mem_hook_libraries();
    return 0;
}

/* Problems stand somewhere and are said in UTF-8. */
static int look(void *ctx, const struct rows_problem *p, struct err *e)
{
    (void)ctx;
    (void)e;
    if (p->line < 1 || p->column < 1 || !*p->reason) abort();
    if (str_utf8_bad(p->reason, strlen(p->reason)) != strlen(p->reason)) abort();
    return 0;
}

/* What a reader of rows relies on. */
static void check(const struct row *row)
{
    const json_t *list = json_object_get(row->json, "messages"), *m;
    size_t i;
    if (!rows_is_chat(row->shape)) return;
    if (!json_array_size(list)) abort();
    json_array_foreach((json_t *)(uintptr_t)list, i, m) {
        if (!json_is_string(json_object_get(m, "role")) ||
            !json_is_string(json_object_get(m, "content")))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err e = ERR_INIT;
    struct rows r;
    struct row row;
    char path[64];
    size_t before = mem_live();
    int rc, fd = memfd_create("rows", 0);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (rows_open(&r, path, look, NULL, &e)) abort();
    while ((rc = rows_next(&r, &row, &e)) > 0) {
        check(&row);
        json_decref(row.json);
    }
    json_decref(rows_labels(&r, &e));
    rows_close(&r);
    close(fd);
    if (rc || mem_live() != before) abort();
    return 0;
}
