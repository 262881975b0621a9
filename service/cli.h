/* cli.h: the subcommands that need no server: run, plan, methods, check, score, generate.
 * Each parses its own arguments, prints to stdout (progress and errors to stderr), returns the
 * exit code. Owned by the command line: nothing else calls it. */
#ifndef GRAFT_CLI_H
#define GRAFT_CLI_H

#include <stdbool.h>

bool cli_knows(const char *subcommand);
int cli_main(const char *subcommand, int argc, char **argv); /* argv[0] is the subcommand */

#endif
