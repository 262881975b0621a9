/* err.h: one error object, filled at the place that failed.
 *
 * Every fallible function of graft ends in `struct err *e` and returns 0 or -1 (or NULL).
 * On failure its outputs are untouched and *e says what went wrong, in one sentence that a
 * user can act on. No heap: reporting "out of memory" must never need memory.
 * `e` may not be NULL. Thread: an err belongs to its caller.
 */
#ifndef GRAFT_ERR_H
#define GRAFT_ERR_H

enum errc {
    E_OK = 0,
    E_ARG,         /* a parameter is wrong or missing                        400 */
    E_RANGE,       /* a number is outside its stated range                   400 */
    E_FORMAT,      /* bytes are not what their format says                   422 */
    E_NOTFOUND,    /*                                                        404 */
    E_CONFLICT,    /* not possible in the present state                      409 */
    E_LIMIT,       /* a stated limit is exceeded                             413 */
    E_QUOTA,       /*                                                        429 */
    E_AUTH,        /*                                                        401 */
    E_NOMEM,       /* host memory                                            503 */
    E_DEVMEM,      /* device memory, or a plan that does not fit its budget  503 */
    E_IO,          /*                                                        500 */
    E_NOSPACE,     /* the disk is full                                       507 */
    E_CORRUPT,     /* stored data does not match its checksum                500 */
    E_UNSUPPORTED, /* well-formed, but graft does not do it                  422 */
    E_CANCELLED,   /* somebody asked for it                                  409 */
    E_TIMEOUT,     /*                                                        504 */
    E_DEVICE,      /* the accelerator failed                                 500 */
    E_NUMERIC,     /* NaN or Inf where numbers were expected                 422 */
    E_BUG,         /* a broken promise inside graft                          500 */
    E_COUNT
};

struct err {
    enum errc code;
    int sys;         /* errno at the failing call, or 0 */
    char where[40];  /* file:line of the deepest report */
    char param[96];  /* the user's parameter or field at fault, "" if none */
    char msg[480];   /* one sentence, no trailing newline */
};

#define ERR_INIT ((struct err){0})

/* Fills *e and returns -1, so that `return err_set(e, E_ARG, "...")` is the idiom.
 * A message that is too long is cut. */
#define err_set(e, code, ...) err_set_at((e), (code), 0, __FILE_NAME__, __LINE__, __VA_ARGS__)

/* The same for a failed system call: keeps errno, appends its text, and turns ENOSPC/EDQUOT
 * into E_NOSPACE, ENOMEM into E_NOMEM, ENOENT into E_NOTFOUND; everything else is E_IO. */
#define err_sys(e, ...) err_sys_at((e), __FILE_NAME__, __LINE__, __VA_ARGS__)

int err_set_at(struct err *e, enum errc code, int sys, const char *file, int line,
               const char *fmt, ...) __attribute__((format(printf, 6, 7)));
int err_sys_at(struct err *e, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "<context>: " before the message on the way up. Returns -1. */
int err_wrap(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Names the user's parameter, if a deeper report has not done so already. Returns -1. */
int err_param(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void err_clear(struct err *e);

/* "E_ARG" -> "invalid_argument" and so on: the stable word for logs and exit.json. */
const char *err_name(enum errc code);

#endif
