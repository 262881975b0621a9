/* child.h: the other side of a comparison as a process of its own, asked line by line. */
#ifndef GRAFT_CHILD_H
#define GRAFT_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct child {
    pid_t pid;
    int in, out; /* to its stdin, from its stdout */
};

/* argv[0] is looked up in PATH; NULL-terminated. False if it cannot be started. */
bool child_start(struct child *c, const char *const *argv);
/* Its next line, without the newline; false if it ended. */
bool child_line(struct child *c, char *line, size_t size);
/* The line it answers to `question`; false if it ended. */
bool child_ask(struct child *c, const char *question, char *line, size_t size);
void child_end(struct child *c); /* closes its stdin and waits */

#endif
