/* A .npz or .npy: opened, and every byte of every array read. */
#include "engine/base/mem.h"
#include "engine/fmt/npz.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err e = ERR_INIT;
    size_t before = mem_live();
    char path[64];
    int fd = memfd_create("npz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    mem_peak_reset();
    struct npz *z = npz_open(path, 1 << 30, &e);
    /* Twice for what is turned from Fortran's order; the rest is names and tables. */
    if (mem_peak() - before > 2 * (100 * n + (1 << 20)) + (16 << 20)) abort();
    if (!z && e.code != E_FORMAT && e.code != E_LIMIT && e.code != E_UNSUPPORTED) abort();
    unsigned sum = 0;
    for (int i = 0; z && i < npz_count(z); i++) {
        const struct npz_array *a = npz_at(z, i);
        int64_t count = 1;
        for (int d = 0; d < a->rank; d++) count *= a->shape[d];
        if (count != a->count || count * (int64_t)dtype_size(a->dtype) != a->bytes) abort();
        if (npz_find(z, a->name) != a) abort();
        for (int64_t k = 0; k < a->bytes; k++) sum += ((const unsigned char *)a->data)[k];
    }
    npz_close(z);
    close(fd);
    if (mem_live() != before || sum == UINT32_MAX) abort();
    return 0;
}
