/* A fuzzer's input read as a script: numbers and bytes, zeros when it has ended. */
#ifndef MAGS_FUZZ_SCRIPT_H
#define MAGS_FUZZ_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What must hold whatever the input. */
#define REQUIRE(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            abort(); \
        } \
    } while (0)

struct script {
    const uint8_t *at, *end;
};

static inline bool script_is_over(const struct script *script) { return script->at == script->end; }

static inline uint8_t script_byte(struct script *script)
{
    return script->at < script->end ? *script->at++ : 0;
}

static inline uint64_t script_number(struct script *script, unsigned bytes)
{
    uint64_t number = 0;
    while (bytes--)
        number = number << 8 | script_byte(script);
    return number;
}

/* Up to `count` bytes of the input; returns how many. */
static inline size_t script_bytes(struct script *script, size_t count, const uint8_t **bytes)
{
    size_t left = (size_t)(script->end - script->at);
    *bytes = script->at;
    count = count < left ? count : left;
    script->at += count;
    return count;
}

#endif
