// Blocks, threads as fibres, warps and shared memory. x86-64 only, as the kernels' levels are.
#include "emu.h"

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

#if defined __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define SWITCH_TO(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define SWITCHED(saved, bottom, size) __sanitizer_finish_switch_fiber(saved, bottom, size)
#else
#define SWITCH_TO(save, bottom, size) ((void)(save), (void)(bottom), (void)(size))
#define SWITCHED(saved, bottom, size) ((void)(saved), (void)(bottom), (void)(size))
#endif

enum {
    MOST_THREADS = 1024,
    STACK = 256 * 1024,
    MOST_SHARED = 99 * 1024, // per block: what every device from compute capability 8.0 on has
    GROUPS = 4               // different masks in use at a time in one warp
};
static const unsigned char GARBAGE = 0xff; // makes NaN of f32, bf16 and f16, and -1 of integers

struct emu_now emu_now;

// A pending asynchronous copy. It takes place when its thread waits for it.
struct copy {
    void *to;
    const void *from;
    bool valid;
};

struct fibre {
    unsigned id;
    bool done;
    char *stack; // of STACK bytes, while it runs
    void *sp;
    void *fake; // the sanitizer's
    const char *waits; // where, for messages
    int line;
    std::vector<copy> open, committed;
    std::vector<size_t> groups; // committed copies per commit
};

struct group {
    unsigned mask, arrived, generation;
    int line;
    alignas(8) emu_lanes data[2]; // by parity of generation: a slow lane still reads the last one
};

struct array {
    const void *site;
    void *p;
};

static struct {
    uint64_t random;
    fibre *current;
    void *sp, *fake;
    const void *bottom;
    size_t size;
    std::vector<char *> stacks;
    std::vector<fibre> fibres;
    std::vector<unsigned> ready;
    size_t next; // in `ready`, when in order
    std::vector<uint64_t> order; // of the blocks
    const std::function<void()> *body;
    // of the block
    unsigned left, at_barrier;
    const char *barrier_file;
    int barrier_line;
    std::vector<array> arrays;
    void *dynamic;
    size_t shared;
    std::vector<group> warps; // GROUPS per warp
} emu;

extern "C" void emu_seed(uint64_t seed)
{
    emu.random = seed * 0x9E3779B97F4A7C15u;
}

static uint64_t draw(uint64_t n)
{
    if (!emu.random) return 0;
    emu.random ^= emu.random << 13;
    emu.random ^= emu.random >> 7;
    emu.random ^= emu.random << 17;
    return (emu.random >> 16) % n;
}

[[noreturn]] static void die(const char *what, const char *file, int line)
{
    fprintf(stderr, "cudaemu: %s:%d: thread %u of block %u: %s\n", file, line,
            emu.current ? emu.current->id : 0, emu_now.block.x, what);
    abort();
}

// ---- fibres ----

// Saves the callee-saved registers, stores the stack pointer, takes up another stack.
extern "C" void emu_switch(void **save, void *to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
emu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

static void place(const fibre *f)
{
    unsigned x = emu_now.block_dim.x, y = emu_now.block_dim.y;
    emu_now.thread = {f->id % x, f->id / x % y, f->id / x / y};
}

// The other way round: out of a fibre. Its last switch leaves nothing behind.
static void leave(bool last)
{
    fibre *f = emu.current;
    SWITCH_TO(last ? nullptr : &f->fake, emu.bottom, emu.size);
    emu_switch(&f->sp, emu.sp);
    SWITCHED(f->fake, &emu.bottom, &emu.size);
}

__attribute__((no_sanitize_address)) static void entry()
{
    SWITCHED(nullptr, &emu.bottom, &emu.size);
    (*emu.body)();
    emu.current->done = true;
    leave(true);
}

static void enter(fibre *f)
{
    if (!f->stack) {
        if (emu.stacks.empty()) {
            char *p = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) abort();
            emu.stacks.push_back(p);
        }
        f->stack = emu.stacks.back();
        emu.stacks.pop_back();
        void **top = (void **)(f->stack + STACK) - 8; // six registers, the address, alignment
        memset(top, 0, 8 * sizeof *top);
        top[6] = (void *)entry;
        f->sp = top;
    }
    emu.current = f;
    place(f);
    SWITCH_TO(&emu.fake, f->stack, STACK);
    emu_switch(&emu.sp, f->sp);
    SWITCHED(emu.fake, nullptr, nullptr);
    emu.current = nullptr;
    if (!f->done) return;
    emu.stacks.push_back(f->stack);
    f->stack = nullptr;
}

static void wait_at(const char *file, int line)
{
    emu.current->waits = file;
    emu.current->line = line;
    leave(false);
}

// ---- one block ----

static void finish_copies(fibre *f, size_t keep)
{
    while (f->groups.size() > keep) {
        for (size_t i = 0; i < f->groups[0]; i++) {
            const copy &c = f->committed[i];
            if (c.valid) memcpy(c.to, c.from, 16);
            else memset(c.to, 0, 16);
        }
        f->committed.erase(f->committed.begin(), f->committed.begin() + (long)f->groups[0]);
        f->groups.erase(f->groups.begin());
    }
}

static void end_thread(fibre *f)
{
    if (!f->open.empty() || !f->groups.empty())
        die("the thread ended with copies that it never waited for", "cp.async", 0);
    emu.left--;
    if (emu.at_barrier)
        die("a thread ended while others wait at a barrier", emu.barrier_file, emu.barrier_line);
}

static void report_deadlock()
{
    for (const fibre &f : emu.fibres)
        if (!f.done) {
            fprintf(stderr, "cudaemu: thread %u waits at %s:%d\n", f.id, f.waits, f.line);
        }
    die("threads wait for others that never come", "deadlock", 0);
}

// Of just this size, so that what lies behind is watched.
static void *garbage(size_t bytes)
{
    void *p = nullptr;
    if (posix_memalign(&p, 128, bytes)) abort();
    return memset(p, GARBAGE, bytes);
}

static void run_block(unsigned threads)
{
    emu.left = threads;
    emu.at_barrier = 0;
    emu.next = 0;
    emu.ready.clear();
    for (unsigned i = 0; i < threads; i++) {
        emu.fibres[i].id = i;
        emu.fibres[i].done = false;
        emu.ready.push_back(i);
    }
    std::fill(emu.warps.begin(), emu.warps.end(), group());
    emu.dynamic = emu.shared ? garbage(emu.shared) : nullptr;
    while (emu.next < emu.ready.size()) {
        size_t i = emu.next + draw(emu.ready.size() - emu.next);
        std::swap(emu.ready[i], emu.ready[emu.next]);
        fibre *f = &emu.fibres[emu.ready[emu.next++]];
        enter(f);
        if (f->done) end_thread(f);
    }
    if (emu.left) report_deadlock();
    free(emu.dynamic);
    for (const array &a : emu.arrays) free(a.p);
    emu.arrays.clear();
}

void emu_run(dim3 grid, dim3 block, size_t shared, const std::function<void()> &body)
{
    unsigned threads = block.x * block.y * block.z;
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    emu_now.block_dim = block;
    emu_now.grid_dim = grid;
    emu.body = &body;
    emu.shared = shared;
    emu.fibres.resize(MOST_THREADS);
    emu.warps.resize((threads + 31) / 32 * GROUPS);
    emu.order.resize(blocks);
    for (uint64_t i = 0; i < blocks; i++) emu.order[i] = i;
    for (uint64_t i = blocks; emu.random && i > 1; i--)
        std::swap(emu.order[i - 1], emu.order[draw(i)]);
    for (uint64_t at : emu.order) {
        emu_now.block = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y),
                         (unsigned)(at / grid.x / grid.y)};
        run_block(threads);
    }
}

// ---- shared memory ----

void *emu_shared(const void *site, size_t bytes)
{
    size_t sum = emu.shared + bytes;
    for (const array &a : emu.arrays)
        if (a.site == site) return a.p;
    void *p = garbage(bytes);
    emu.arrays.push_back({site, p});
    if (sum > MOST_SHARED) die("more shared memory than a block has", "shared", (int)sum);
    return p;
}

void *emu_dynamic(void)
{
    return emu.dynamic;
}

// ---- waiting for each other ----

void emu_barrier(const char *file, int line)
{
    if (emu.at_barrier && (line != emu.barrier_line || strcmp(file, emu.barrier_file) != 0))
        die("threads of a block are at different barriers", file, line);
    if (emu.left < emu_now.block_dim.x * emu_now.block_dim.y * emu_now.block_dim.z)
        die("a barrier after some threads of the block have ended", file, line);
    emu.barrier_file = file;
    emu.barrier_line = line;
    if (++emu.at_barrier < emu.left) {
        wait_at(file, line);
        return;
    }
    emu.at_barrier = 0;
    for (unsigned i = 0; i < emu.left; i++)
        if (&emu.fibres[i] != emu.current) emu.ready.push_back(i);
}

unsigned emu_lane(void)
{
    return emu.current->id % 32;
}

static group *find_group(unsigned warp, unsigned mask)
{
    for (unsigned i = warp * GROUPS; i < (warp + 1) * GROUPS; i++) {
        if (emu.warps[i].mask == 0) emu.warps[i].mask = mask;
        if (emu.warps[i].mask == mask) return &emu.warps[i];
    }
    die("more masks in one warp than the emulation keeps", "warp", (int)mask);
}

const emu_lanes *emu_gather(unsigned mask, const void *mine, size_t bytes, int line)
{
    unsigned threads = emu_now.block_dim.x * emu_now.block_dim.y * emu_now.block_dim.z;
    unsigned id = emu.current->id, lane = id % 32, warp = id / 32;
    unsigned there = threads - warp * 32 >= 32 ? 0xffffffffu : (1u << (threads - warp * 32)) - 1;
    if (!(mask >> lane & 1)) die("the thread is not in its own mask", "warp", line);
    mask &= there;
    group *g = find_group(warp, mask);
    const emu_lanes *data = &g->data[g->generation & 1];
    if (g->arrived && g->line != line)
        die("lanes of a warp are at different operations", "warp", line);
    g->line = line;
    memcpy(g->data[g->generation & 1][lane], mine, bytes);
    g->arrived |= 1u << lane;
    if (g->arrived != mask) {
        wait_at("warp", line);
        return data;
    }
    g->arrived = 0;
    g->generation++;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && i != lane) emu.ready.push_back(warp * 32 + i);
    return data;
}

// ---- copies in the background ----

void emu_async_copy(void *to, const void *from, bool valid)
{
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) die("16 bytes not aligned", "cp.async", 0);
    memset(to, GARBAGE, 16);
    emu.current->open.push_back({to, from, valid});
}

void emu_async_commit(void)
{
    fibre *f = emu.current;
    f->groups.push_back(f->open.size());
    f->committed.insert(f->committed.end(), f->open.begin(), f->open.end());
    f->open.clear();
}

void emu_async_wait(int pending)
{
    finish_copies(emu.current, (size_t)pending);
}

// ---- tensor cores ----

// Two neighbours out of one word.
static inline void unpack(uint32_t word, double v[2])
{
    v[0] = mx_float(word << 16);
    v[1] = mx_float(word & 0xffff0000u);
}

// The rows of A and the columns of B that a lane needs, from the fragments of ptx.cuh. The data is
// the emulation's own and this is most of its time, hence no instrumentation.
__attribute__((no_sanitize_address, optimize("O3"))) static void
multiply(float d[4], const emu_lanes &all, int g, int q)
{
    double a[2][16], b[2][16];
    for (int l = 0; l < 4; l++) {
        const uint32_t *row = (const uint32_t *)all[4 * g + l];
        for (int half = 0; half < 2; half++)
            for (int r = 0; r < 2; r++) unpack(row[2 * half + r], &a[r][8 * half + 2 * l]);
        for (int c = 0; c < 2; c++)
            for (int half = 0; half < 2; half++)
                unpack(((const uint32_t *)all[4 * (2 * q + c) + l])[4 + half],
                       &b[c][8 * half + 2 * l]);
    }
    for (int i = 0; i < 4; i++) {
        double sum = 0; // the device keeps more than 24 bits inside one product
        for (int k = 0; k < 16; k++) sum += a[i / 2][k] * b[i % 2][k];
        d[i] = (float)(d[i] + sum);
    }
}

void cu_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const emu_lanes *all = emu_gather(0xffffffffu, mine, sizeof mine, __LINE__);
    multiply(d, *all, (int)emu_lane() / 4, (int)emu_lane() % 4);
}

static void load_matrices(uint32_t r[4], const void *row, bool transposed)
{
    uint16_t mine[8], line[8];
    if ((uintptr_t)row % 16) die("a row is not aligned to 16 bytes", "ldmatrix", 0);
    memcpy(mine, row, sizeof mine);
    const emu_lanes *all = emu_gather(0xffffffffu, mine, sizeof mine, __LINE__);
    int g = (int)emu_lane() / 4, q = (int)emu_lane() % 4;
    for (int i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (int k = 0; k < 2; k++) {
            memcpy(line, (*all)[i * 8 + (transposed ? 2 * q + k : g)], sizeof line);
            pair[k] = line[transposed ? g : 2 * q + k];
        }
        r[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
}

void cu_ldmatrix4(uint32_t r[4], const void *row)
{
    load_matrices(r, row, false);
}

void cu_ldmatrix4_t(uint32_t r[4], const void *row)
{
    load_matrices(r, row, true);
}
