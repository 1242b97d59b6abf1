/* tfevents.h - event files that TensorBoard reads: LOGDIR/events.out.tfevents.SECONDS.HOST.PID.N.
 *
 * A file is a sequence of TFRecords, each a protobuf Event: u64 length, u32 masked CRC of it, data, u32 masked
 * CRC of that; little endian, CRC-32C (tensorflow/core/lib/io/record_writer.h).
 *
 * Every run writes a file of its own; TensorBoard reads the files of a folder in order of name, hence of time.  A run
 * that resumes at step N opens its file with a SessionLog START at N+1, on which TensorBoard forgets what
 * earlier files of the folder say of step N+1 and later: the curve of the interrupted run is continued, not forked. */
#ifndef DT_TRAIN_TFEVENTS_H
#define DT_TRAIN_TFEVENTS_H
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

typedef struct dt_events dt_events;         /* opaque; one thread at a time */

/* Makes the folder if need be.  done_step: the last step that earlier files of this folder keep, 0 for a fresh run. */
int dt_events_open(dt_events **out, const char *logdir, int64_t done_step, dt_err *err);

/* Tags with '/' are grouped by their first part: "Loss/train".  The strings are borrowed for the call. */
int dt_events_scalar(dt_events *e, const char *tag, int64_t step, double value, dt_err *err);
/* A whole RGB PNG file of width x height pixels. */
int dt_events_image(dt_events *e, const char *tag, int64_t step, const void *png, size_t bytes,
                    int width_px, int height_px, dt_err *err);

/* Hands what was written to the system, so that a running TensorBoard sees it. */
int dt_events_flush(dt_events *e, dt_err *err);
const char *dt_events_path(const dt_events *e);     /* borrowed until close */
/* Flushes.  Frees *e and sets it NULL also on failure; NULL is fine. */
int dt_events_close(dt_events **e, dt_err *err);

/* For readers: CRC-32C of data, and the masked form that records carry. */
uint32_t dt_crc32c(const void *data, size_t bytes);
uint32_t dt_crc32c_masked(const void *data, size_t bytes);

#endif
