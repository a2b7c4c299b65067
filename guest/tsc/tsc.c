/* mags-tsc: print the frequency of this host's time stamp counter in kHz; 0 where there
 * is none. A kernel that is emulated counts by the host's. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>

#define MEASURE_NS 100000000LL
#define READINGS 16

/* Leaf 15h: the crystal's frequency and its ratio to the counter's, where a processor tells. */
static uint64_t told_khz(void)
{
    unsigned denominator, numerator, crystal_hz, rest;
    if (!__get_cpuid(0x15, &denominator, &numerator, &crystal_hz, &rest) || !denominator ||
        !numerator || !crystal_hz)
        return 0;
    return (uint64_t)crystal_hz * numerator / denominator / 1000;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Both clocks at one moment: of several readings the one that took the shortest. */
static void read_both(uint64_t *count, int64_t *at_ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < READINGS; i++) {
        uint64_t before = __rdtsc();
        int64_t between_ns = now_ns();
        uint64_t after = __rdtsc();
        if (after - before >= best)
            continue;
        best = after - before;
        *count = before + best / 2;
        *at_ns = between_ns;
    }
}

static uint64_t measured_khz(void)
{
    const struct timespec pause = {.tv_nsec = MEASURE_NS};
    uint64_t first = 0, last = 0;
    int64_t began_ns = 0, ended_ns = 0;
    read_both(&first, &began_ns);
    nanosleep(&pause, NULL);
    read_both(&last, &ended_ns);
    return (uint64_t)((double)(last - first) * 1e6 / (double)(ended_ns - began_ns) + 0.5);
}

static uint64_t khz(void)
{
    uint64_t told = told_khz();
    return told ? told : measured_khz();
}
#else
static uint64_t khz(void) { return 0; }
#endif

int main(void)
{
    printf("%llu\n", (unsigned long long)khz());
    return 0;
}
