/* broken.h - kernels that do or do not do what they should; see broken.cu. */
#ifndef DT_CUEMU_BROKEN_H
#define DT_CUEMU_BROKEN_H
#include <stddef.h>
#include <stdio.h>
#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUEMU_RIGHT,
    CUEMU_NO_BARRIER_BEFORE,
    CUEMU_NO_BARRIER_AFTER,
    CUEMU_UNINITIALISED,
    CUEMU_MASK_LACKS_CALLER,
    CUEMU_MASK_NAMES_ABSENT,
    CUEMU_SOURCE_OUTSIDE_MASK,
    CUEMU_HALF_WARPS,
    CUEMU_DIVERGENT_BARRIER,
    CUEMU_TWO_BARRIERS,
    CUEMU_ATOMIC,
    CUEMU_BLOCK_TOO_LARGE,
};

/* Runs the kernel on x[i] = i, i < 128, and reads out[128].  -1 and the message if the launch
 * failed. */
int cuemu_try(int slip, float *out, char *message, size_t bytes);
float cuemu_read_from_host(void);       /* reads device memory without a copy: a crash */

#ifdef __cplusplus
}
#endif
#endif
