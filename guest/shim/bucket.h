/* A token bucket: how many bytes may pass, at a rate, with a burst. It may be
 * overdrawn; then it fills up first. */
#ifndef MAGS_SHIM_BUCKET_H
#define MAGS_SHIM_BUCKET_H

#include <stdint.h>

#define BUCKET_MAX (1ull << 40) /* of rate and burst; a thousandfold must fit */

struct bucket {
    uint64_t rate, burst; /* bytes a second, bytes; rate 0: no limit */
    int64_t level;        /* thousandths of a byte */
    uint64_t filled_ms;   /* when `level` was right */
};

/* A full one. `rate` and `burst` are 1 to BUCKET_MAX. */
void bucket_init(struct bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now_ms);

void bucket_fill(struct bucket *bucket, uint64_t now_ms);
void bucket_take(struct bucket *bucket, uint64_t bytes);

/* How many bytes are in it; less than 0 when it is overdrawn. */
int64_t bucket_bytes(const struct bucket *bucket);

/* In how many ms from the last fill on it will hold `bytes`, at most the burst. */
uint64_t bucket_wait_ms(const struct bucket *bucket, uint64_t bytes);

#endif
