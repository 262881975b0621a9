#include "engine/cuda/cuda.h"

#include "engine/base/fs.h"
#include "engine/base/mem.h"
#include "engine/base/str.h"
#include "engine/op/op.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char soname[] = "libgraft_cuda.so";

static void *load(struct err *e)
{
    const char *named = getenv("GRAFT_CUDA_LIB");
    char path[FS_PATH_MAX];
    if (named && *named) {
        void *lib = dlopen(named, RTLD_NOW | RTLD_LOCAL);
        if (!lib) err_set(e, E_DEVICE, "GRAFT_CUDA_LIB cannot be loaded: %s", dlerror());
        return lib;
    }
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof soname - 1);
    while (n > 0 && path[n - 1] != '/') n--;
    if (n > 0) {
        memcpy(path + n, soname, sizeof soname);
        if (access(path, R_OK) == 0) {
            void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (!lib) err_set(e, E_DEVICE, "the CUDA library cannot be loaded: %s", dlerror());
            return lib;
        }
    }
    void *lib = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        err_set(e, E_DEVICE, "there is no CUDA library: %s (it is built by make where nvcc is "
                "installed)", dlerror());
    return lib;
}

/* Structures are shared with the library, so both must be of one build. */
static int check_library(const struct cuda_library *l, struct err *e)
{
    if (str_eq(l->version, GRAFT_VERSION) && l->exec_bytes == sizeof(struct exec) &&
        l->step_bytes == sizeof(struct step) && l->tensor_bytes == sizeof(struct tensor) &&
        l->ops == OP_COUNT)
        return 0;
    return err_set(e, E_DEVICE, "the CUDA library is of another build than the program");
}

/* The library stays loaded: the CUDA runtime cannot be taken down and set up again. */
struct exec *exec_new_cuda(int threads, struct err *e)
{
    const char *trace = getenv("GRAFT_CUDA_TRACE");
    void *handle = load(e);
    if (!handle) return NULL;
    const struct cuda_library *l = dlsym(handle, "graft_cuda");
    if (!l) {
        err_set(e, E_DEVICE, "the CUDA library is none: %s", dlerror());
        return NULL;
    }
    if (check_library(l, e)) return NULL;
    struct exec *x = exec_new(&l->device, threads ? threads : pool_default_threads(), e);
    if (!x) return NULL;
    x->trace = trace && str_eq(trace, "1");
    x->state = mem_zalloc(l->state_bytes, e);
    if (x->state && !l->open(x, e)) return x;
    mem_free(x->state);
    x->state = NULL;
    exec_free(x);
    return NULL;
}
