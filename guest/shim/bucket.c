#include "bucket.h"

#define SCALE 1000

void bucket_init(struct bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now_ms)
{
    *bucket = (struct bucket){rate, burst, (int64_t)(burst * SCALE), now_ms};
}

uint64_t bucket_wait_ms(const struct bucket *bucket, uint64_t bytes)
{
    int64_t missing = (int64_t)(bytes * SCALE) - bucket->level;
    /* A thousandth of a byte for each ms and byte a second. */
    return missing <= 0 ? 0 : ((uint64_t)missing - 1) / bucket->rate + 1;
}

void bucket_fill(struct bucket *bucket, uint64_t now_ms)
{
    uint64_t passed_ms = now_ms - bucket->filled_ms;
    bucket->filled_ms = now_ms;
    if (passed_ms >= bucket_wait_ms(bucket, bucket->burst))
        bucket->level = (int64_t)(bucket->burst * SCALE);
    else
        bucket->level += (int64_t)(passed_ms * bucket->rate);
}

void bucket_take(struct bucket *bucket, uint64_t bytes)
{
    bucket->level -= (int64_t)(bytes * SCALE);
}

int64_t bucket_bytes(const struct bucket *bucket)
{
    return bucket->level < 0 ? -((-bucket->level + SCALE - 1) / SCALE) : bucket->level / SCALE;
}
