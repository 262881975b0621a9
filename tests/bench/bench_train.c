/* Whole training jobs beside PyTorch: speed of a step and peak memory.
 * usage: bench_train [NAME [ROUNDS]]          NAME: a workload, or a part of its name
 *        bench_train serve NAME               graft's side: a step per line of stdin
 *
 * graft and PyTorch (peer_torch.py, run by PYTHON) are processes of their own and take turns step
 * by step; WARM rounds are not counted. A step is forward, backward, clipping to norm 1 and AdamW,
 * in f32, of random weights on random tokens or pixels without padding. Memory is the peak resident
 * size (VmHWM) of each process over the whole run: weights, PyTorch's libraries, everything.
 */
#include "tests/bench/child.h"
#include "tests/bench/report.h"
#include "tests/bench/workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 2, WARM = 2, ROUNDS = 7, LINE = 256 };

/* ---- graft's side ---- */

static long peak_kib(void)
{
    char line[LINE];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && !kib && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmHWM:", 6)) kib = strtol(line + 6, NULL, 10);
    if (f) fclose(f);
    return kib;
}

static int serve(const struct workload *w)
{
    struct err e = ERR_INIT;
    struct exec *x = exec_new_cpu(THREADS, &e);
    struct trial t;
    char line[LINE];
    if (!x) report_die(&e);
    trial_start(&t, &w->graft, x);
    printf("ready %lld trained parameters\n",
           (long long)params_count(&t.model->params, PARAM_TRAINABLE));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "rss\n")) {
            printf("%ld\n", peak_kib());
        } else if (!strcmp(line, "flops\n")) {
            trial_pass(&t);
            printf("%.0f\n", workload_flops(w, x));
        } else {
            double start = report_now(), loss = trial_step(&t);
            printf("%.6f %.4f\n", report_now() - start, loss);
        }
        fflush(stdout);
    }
    trial_end(&t);
    exec_free(x);
    return 0;
}

/* ---- the comparison ---- */

static double number(struct child *c, const char *question)
{
    char line[LINE];
    if (child_ask(c, question, line, sizeof line)) return strtod(line, NULL);
    fprintf(stderr, "a process ended before it answered \"%s\"\n", question);
    exit(1);
}

/* How many parameters the process says it trains; 0: it cannot run. */
static long long start(struct child *c, const char *const *argv, const char *who)
{
    char line[LINE];
    if (!child_start(c, argv)) return 0;
    while (child_line(c, line, sizeof line)) {
        if (strncmp(line, "ready ", 6) != 0) continue;
        printf("# %s: %s\n", who, line + 6);
        return strtoll(line + 6, NULL, 10);
    }
    child_end(c);
    return 0;
}

static void compare(const struct workload *w, const char *self, int rounds, double peak)
{
    const char *python = getenv("PYTHON"), *option = w->peer_option;
    const char *mine[] = {self, "serve", w->name, NULL};
    const char *theirs[] = {python ? python : "python3", "tests/bench/peer_torch.py", w->name,
                            option, NULL};
    struct child graft, peer;
    struct rounds r = {.n = rounds};
    char name[80];
    long long trained = start(&graft, mine, "graft"), theirs_trained = start(&peer, theirs, "peer");
    r.alone = !theirs_trained;
    if (r.alone) printf("# peer missing: %s cannot run %s\n", theirs[0], theirs[1]);
    if (!trained || (!r.alone && trained != theirs_trained)) {
        fprintf(stderr, "%s: the two sides do not train the same model\n", w->name);
        exit(1);
    }
    for (int i = -WARM; i < rounds; i++) {
        double a = number(&graft, "step"), b = r.alone ? 0 : number(&peer, "step");
        if (i < 0) continue;
        r.graft[i] = a;
        r.peer[i] = b;
    }
    double flops = number(&graft, "flops"), step = report_quantile(r.graft, rounds, 0.5);
    report_rounds(w->name, &r, w->per_step, 1, w->unit);
    snprintf(name, sizeof name, "%s_share_of_peak", w->name);
    report_values(name, flops / step * 1e-9, peak * 1e-9, "GFLOP/s");
    printf("#   %.1f GFLOP in a step (%s)\n", flops * 1e-9, w->formula);
    snprintf(name, sizeof name, "%s_rss", w->name);
    report_values(name, number(&graft, "rss") / 1024, r.alone ? 0 : number(&peer, "rss") / 1024,
                  "MiB");
    child_end(&graft);
    if (!r.alone) child_end(&peer);
}

int main(int argc, char **argv)
{
    struct err e = ERR_INIT;
    bool serving = argc == 3 && !strcmp(argv[1], "serve");
    int rounds = argc > 2 && !serving ? (int)strtol(argv[2], NULL, 10) : ROUNDS;
    if (rounds < 1 || rounds > ROUNDS_MAX) return 2;
    for (int i = 0; i < workload_count && serving; i++)
        if (!strcmp(workload_list[i].name, argv[2])) return serve(&workload_list[i]);
    if (serving) return 2;
    struct exec *x = exec_new_cpu(THREADS, &e);
    if (!x) report_die(&e);
    double peak = report_peak(x);
    exec_free(x);
    report_machine(THREADS);
    printf("# %d rounds after %d to warm up\n", rounds, WARM);
    for (int i = 0; i < workload_count; i++)
        if (argc < 2 || strstr(workload_list[i].name, argv[1]))
            compare(&workload_list[i], argv[0], rounds, peak);
    return 0;
}
