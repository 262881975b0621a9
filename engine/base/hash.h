/* hash.h: SHA-256 and SHA-1 (git blob ids) by OpenSSL, streaming, and random bytes. */
#ifndef GRAFT_HASH_H
#define GRAFT_HASH_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

struct hash; /* one running digest */

struct hash *hash_new(const char *algorithm, struct err *e); /* "SHA256" or "SHA1" */
int hash_add(struct hash *h, const void *p, size_t n, struct err *e);
/* Lower-case hex into out (65 bytes for SHA-256, 41 for SHA-1, NUL included). Ends the digest. */
int hash_hex(struct hash *h, char *out, struct err *e);
void hash_free(struct hash *h);

int hash_sha256(const void *p, size_t n, char out[65], struct err *e);
/* The id git gives these bytes as a blob: sha1("blob <n>\0" bytes). */
int hash_git_blob(const void *p, size_t n, char out[41], struct err *e);
int hash_file_sha256(const char *path, char out[65], struct err *e);

/* n bytes from the operating system's generator: ids and keys only, never training. */
int hash_random(void *p, size_t n, struct err *e);

/* 64-bit FNV-1a: plan and cache keys, never security. */
uint64_t hash_fnv(uint64_t h, const void *p, size_t n);
#define HASH_FNV_INIT 0xcbf29ce484222325ull

#endif
