/* peak.c - see peak.h. */
#include <time.h>
#include "graph/peak.h"
#include "kernels/tile.h"

enum { CHAINS = 12, TURNS = 1 << 17, MAX_ROUNDS = 1 << 9 };      /* rounds: where a clock stands still */

static double now(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* CHAINS chains of multiply-adds that do not wait for each other: more than latency times width. */
static float multiply_add(float start)
{
    dt_vec x[CHAINS], a = { 0 }, b = { 0 }, sum = { 0 };
    a += 0.999f;
    b += start;
    for (int i = 0; i < CHAINS; i++)
        x[i] = b + (float)i;
    for (int t = 0; t < TURNS; t++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            x[i] = x[i] * a + b;
    for (int i = 0; i < CHAINS; i++)
        sum += x[i];
    return sum[0];
}

/* A thread's own rate, by the time that it ran: what else the machine does meanwhile does not count. */
static double one_thread(double start, double seconds)
{
    double best = 0, begun = now(CLOCK_MONOTONIC);
    for (int i = 0; i < MAX_ROUNDS && (!i || now(CLOCK_MONOTONIC) - begun < seconds); i++) {
        double t0 = now(CLOCK_THREAD_CPUTIME_ID);
        float sum = multiply_add((float)start);
        double s = now(CLOCK_THREAD_CPUTIME_ID) - t0 + (sum == 1e30f);     /* the sum must be seen to be needed */
        double rate = s > 0 ? 2.0 * CHAINS * DT_VEC * TURNS / s : 0;
        best = rate > best ? rate : best;
    }
    return best;
}

double dt_peak_fma(int threads, double seconds)
{
    double sum = 0;
#pragma omp parallel for reduction(+ : sum) num_threads(threads)
    for (int i = 0; i < threads; i++)
        sum += one_thread(i * 1e-3, seconds);
    return sum;
}
