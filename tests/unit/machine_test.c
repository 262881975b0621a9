/* engine/base/machine: memory limits, from trees of files such as the kernel shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/fs.h"
#include "engine/base/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int64_t MIB = 1 << 20;

static int begin(void **state)
{
    static char root[64];
    snprintf(root, sizeof root, "/tmp/graft-machine-XXXXXX");
    *state = mkdtemp(root);
    return *state ? 0 : -1;
}

static int end(void **state)
{
    struct err e = ERR_INIT;
    return fs_rmtree(*state, &e);
}

static void put(const char *root, const char *path, const char *text)
{
    char full[FS_PATH_MAX], dir[FS_PATH_MAX];
    struct err e = ERR_INIT;
    snprintf(full, sizeof full, "%s%s", root, path);
    fs_parent(dir, full);
    if (fs_mkdirs(dir, &e) || fs_write_file(full, text, strlen(text), &e)) fail_msg("%s", e.msg);
}

/* 8 GiB of which 6 are available, and a process of 100 pages. */
static void put_proc(const char *root, const char *groups)
{
    put(root, "/proc/meminfo", "MemTotal:        8388608 kB\nMemFree:          1048576 kB\n"
                               "MemAvailable:    6291456 kB\n");
    put(root, "/proc/self/statm", "5000 100 50 10 0 400 0\n");
    if (groups) put(root, "/proc/self/cgroup", groups);
}

static void expect(const char *root, int64_t total, int64_t available)
{
    struct machine_memory m = {0};
    struct err e = ERR_INIT;
    if (machine_memory(root, &m, &e)) fail_msg("%s", e.msg);
    assert_int_equal(m.total, total * MIB);
    assert_int_equal(m.free, available * MIB);
    assert_int_equal(m.used, 100 * sysconf(_SC_PAGESIZE));
}

static void without_groups_the_machine_is_the_limit(void **state)
{
    put_proc(*state, NULL);
    expect(*state, 8192, 6144);
}

static void every_group_above_the_process_limits_it(void **state)
{
    put_proc(*state, "0::/a/b\n");
    put(*state, "/sys/fs/cgroup/a/b/memory.max", "max\n");
    put(*state, "/sys/fs/cgroup/a/b/memory.current", "1048576\n");
    expect(*state, 8192, 6144);
    put(*state, "/sys/fs/cgroup/a/memory.max", "2147483648\n");
    put(*state, "/sys/fs/cgroup/a/memory.current", "1073741824\n");
    expect(*state, 2048, 1024);
    put(*state, "/sys/fs/cgroup/a/memory.stat",
        "anon 5\nfile 9\ninactive_file 104857600\nactive_file 52428800\n");
    expect(*state, 2048, 1024 + 100 + 50); /* its cached files can go */
    put(*state, "/sys/fs/cgroup/a/b/memory.max", "524288000\n");
    expect(*state, 500, 499);
    put(*state, "/sys/fs/cgroup/a/b/memory.current", "1048576000\n");
    expect(*state, 500, 0);
}

static void a_container_sees_its_own_group_at_the_mount(void **state)
{
    put_proc(*state, "0::/\n");
    put(*state, "/sys/fs/cgroup/memory.max", "1073741824\n");
    put(*state, "/sys/fs/cgroup/memory.current", "0\n");
    expect(*state, 1024, 1024);
    put_proc(*state, "0::/of/the/host\n");
    expect(*state, 1024, 1024);
}

static void groups_of_version_1_count_too(void **state)
{
    put_proc(*state, "4:cpu,cpuacct:/x\n7:memory:/docker/1\n0::/\n");
    put(*state, "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "4294967296\n");
    put(*state, "/sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "1073741824\n");
    put(*state, "/sys/fs/cgroup/memory/docker/1/memory.stat", "total_inactive_file 1048576\n");
    put(*state, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    expect(*state, 4096, 3073);
}

static void this_machine_has_memory_and_a_processor(void **state)
{
    (void)state;
    struct machine_memory m = {0};
    struct err e = ERR_INIT;
    char cpu[MACHINE_CPU];
    if (machine_memory("", &m, &e)) fail_msg("%s", e.msg);
    assert_true(m.used > MIB && m.total > m.used && m.free > 0 && m.free <= m.total);
    machine_cpu("", cpu);
    assert_true(strlen(cpu) > 3);
    machine_cpu("/nowhere", cpu);
    assert_string_equal(cpu, "unknown");
    assert_int_equal(machine_memory("/nowhere", &m, &e), -1);
}

static void the_processor_has_its_name(void **state)
{
    char cpu[MACHINE_CPU];
    put(*state, "/proc/cpuinfo", "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t: x\n");
    machine_cpu(*state, cpu);
    assert_string_equal(cpu, "A CPU @ 2 GHz");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(without_groups_the_machine_is_the_limit),
        TEST(every_group_above_the_process_limits_it),
        TEST(a_container_sees_its_own_group_at_the_mount),
        TEST(groups_of_version_1_count_too),
        TEST(this_machine_has_memory_and_a_processor),
        TEST(the_processor_has_its_name),
    };
    return cmocka_run_group_tests_name("machine", tests, NULL, NULL);
}
