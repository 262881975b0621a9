/* crash_check DATA [ACKS]: tests/lib/check.h as a program; exit code 1 if something is violated. */
#include "engine/base/mem.h"
#include "service/log.h"
#include "tests/lib/check.h"

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: crash_check DATA [ACKS]\n");
        return 2;
    }
    mem_hook_libraries();
    log_set_level(LOG_OFF);
    return check_data(argv[1], argc == 3 ? argv[2] : NULL, stdout) != 0;
}
