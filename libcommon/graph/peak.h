/* peak.h - what the processor can do at most: measured, not looked up. */
#ifndef DT_GRAPH_PEAK_H
#define DT_GRAPH_PEAK_H

/* FLOP/s of fp32 multiply-adds in registers on `threads` threads: for each the best of short tries within `seconds`. */
double dt_peak_fma(int threads, double seconds);

#endif
