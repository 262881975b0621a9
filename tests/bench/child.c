#include "tests/bench/child.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

bool child_start(struct child *c, const char *const *argv)
{
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    posix_spawn_file_actions_t fa;
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) return false;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, to[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&fa, from[1], STDOUT_FILENO);
    int rc = posix_spawnp(&c->pid, argv[0], &fa, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    close(to[0]);
    close(from[1]);
    c->in = to[1];
    c->out = from[0];
    if (!rc) return true;
    close(c->in);
    close(c->out);
    return false;
}

bool child_line(struct child *c, char *line, size_t size)
{
    size_t n = 0;
    char one;
    while (read(c->out, &one, 1) == 1) {
        if (one == '\n') {
            line[n] = 0;
            return true;
        }
        if (n + 1 < size) line[n++] = one;
    }
    return false;
}

bool child_ask(struct child *c, const char *question, char *line, size_t size)
{
    size_t n = strlen(question);
    return write(c->in, question, n) == (ssize_t)n && write(c->in, "\n", 1) == 1 &&
           child_line(c, line, size);
}

void child_end(struct child *c)
{
    close(c->in);
    close(c->out);
    waitpid(c->pid, NULL, 0);
}
