#include "engine/base/hash.h"

#include "engine/base/fs.h"
#include "engine/base/mem.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

struct hash {
    EVP_MD_CTX *ctx;
};

struct hash *hash_new(const char *algorithm, struct err *e)
{
    struct hash *h = mem_zalloc(sizeof *h, e);
    if (!h) return NULL;
    const EVP_MD *md = EVP_get_digestbyname(algorithm);
    h->ctx = EVP_MD_CTX_new();
    if (!md || !h->ctx || EVP_DigestInit_ex(h->ctx, md, NULL) != 1) {
        err_set(e, E_BUG, "digest %s is not available", algorithm);
        hash_free(h);
        return NULL;
    }
    return h;
}

int hash_add(struct hash *h, const void *p, size_t n, struct err *e)
{
    if (EVP_DigestUpdate(h->ctx, p, n) != 1) return err_set(e, E_BUG, "digest update failed");
    return 0;
}

int hash_hex(struct hash *h, char *out, struct err *e)
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    if (EVP_DigestFinal_ex(h->ctx, raw, &n) != 1) return err_set(e, E_BUG, "digest failed");
    for (unsigned i = 0; i < n; i++) snprintf(out + 2 * i, 3, "%02x", raw[i]);
    return 0;
}

void hash_free(struct hash *h)
{
    if (!h) return;
    EVP_MD_CTX_free(h->ctx);
    mem_free(h);
}

static int digest_two(const char *algorithm, const void *a, size_t na, const void *b, size_t nb,
                      char *out, struct err *e)
{
    struct hash *h = hash_new(algorithm, e);
    int rc = -1;
    if (h && !hash_add(h, a, na, e) && !hash_add(h, b, nb, e)) rc = hash_hex(h, out, e);
    hash_free(h);
    return rc;
}

int hash_sha256(const void *p, size_t n, char out[65], struct err *e)
{
    return digest_two("SHA256", p, n, "", 0, out, e);
}

int hash_git_blob(const void *p, size_t n, char out[41], struct err *e)
{
    char head[40];
    int len = snprintf(head, sizeof head, "blob %zu", n);
    return digest_two("SHA1", head, (size_t)len + 1, p, n, out, e);
}

int hash_file_sha256(const char *path, char out[65], struct err *e)
{
    enum { CHUNK = 1 << 16 };
    struct hash *h = NULL;
    char *chunk = NULL;
    int rc = -1, fd = fs_open(path, O_RDONLY, 0, e);
    if (fd < 0) return -1;
    h = hash_new("SHA256", e);
    chunk = mem_alloc(CHUNK, e);
    if (!h || !chunk) goto out;
    for (;;) {
        int64_t n = fs_read(fd, chunk, CHUNK, e);
        if (n < 0 || (n > 0 && hash_add(h, chunk, (size_t)n, e))) goto out;
        if (n == 0) break;
    }
    rc = hash_hex(h, out, e);
out:
    mem_free(chunk);
    hash_free(h);
    fs_close(fd);
    return rc;
}

int hash_random(void *p, size_t n, struct err *e)
{
    if (RAND_bytes(p, (int)n) != 1) return err_set(e, E_IO, "no random bytes from the system");
    return 0;
}

uint64_t hash_fnv(uint64_t h, const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3ull;
    return h;
}
