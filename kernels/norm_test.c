/* Cases of norm.c.  Blocks hold 2048 elements: many short rows, or one long one. */
#include "tests/checkop.h"

static dt_tensor *layernorm0(dt_graph *g, dt_tensor **in) { return dt_layernorm(g, in[0], NULL, NULL, 1e-6); }
static dt_tensor *layernorm_w(dt_graph *g, dt_tensor **in) { return dt_layernorm(g, in[0], in[1], NULL, 1e-6); }
static dt_tensor *layernorm(dt_graph *g, dt_tensor **in) { return dt_layernorm(g, in[0], in[1], in[2], 1e-5); }
static dt_tensor *rmsnorm0(dt_graph *g, dt_tensor **in) { return dt_rmsnorm(g, in[0], NULL, 1e-6); }
static dt_tensor *rmsnorm(dt_graph *g, dt_tensor **in) { return dt_rmsnorm(g, in[0], in[1], 1e-6); }
static dt_tensor *rmsnorm_eps(dt_graph *g, dt_tensor **in) { return dt_rmsnorm(g, in[0], in[1], 0.5); }

const check_case norm_cases[] = {
    { "layernorm0 3x64",        layernorm0,  { ACT(3, 64) }, .k = 64 },
    { "layernorm0 odd C",       layernorm0,  { ACT(2, 5, 77) }, .k = 77 },
    { "layernorm0 one row",     layernorm0,  { ACT(9) }, .k = 9 },
    { "layernorm0 mean 5",      layernorm0,  { RANGE(ACT, 4, 6, 3, 64) }, .k = 64 },
    { "layernorm0 3x2100",      layernorm0,  { ACT(3, 2100) }, .k = 2100 },
    { "layernorm w",            layernorm_w, { ACT(5, 33), WEIGHT(33) }, .k = 33 },
    { "layernorm 3x64",         layernorm,   { ACT(3, 64), WEIGHT(64), WEIGHT(64) }, .k = 64 },
    { "layernorm 600x7",        layernorm,   { ACT(600, 7), WEIGHT(7), WEIGHT(7) }, .k = 600 },
    { "layernorm frozen",       layernorm,   { ACT(3, 64), FROZEN(64), FROZEN(64) }, .k = 64 },
    { "layernorm weights only", layernorm,   { CONST(3, 64), WEIGHT(64), WEIGHT(64) }, .k = 64 },
    { "layernorm0 large",       layernorm0,  { ACT(4096, 3072) }, .k = 3072, .flags = CHECK_LARGE },
    /* dx cancels to nearly nothing, and to rounding errors when x is huge */
    { "rmsnorm 1x1",            rmsnorm_eps, { ACT(1, 1), WEIGHT(1) }, .flags = CHECK_NO_HUGE },
    { "rmsnorm 3x64",           rmsnorm,     { ACT(3, 64), WEIGHT(64) }, .k = 64 },
    { "rmsnorm odd C",          rmsnorm,     { ACT(2, 5, 77), WEIGHT(77) }, .k = 77 },
    { "rmsnorm eps",            rmsnorm_eps, { ACT(2, 5, 77), WEIGHT(77) }, .k = 77 },
    { "rmsnorm0 3x64",          rmsnorm0,    { ACT(3, 64) }, .k = 64 },
    { "rmsnorm per head",       rmsnorm,     { ACT(2, 6, 3, 16), WEIGHT(16) }, .k = 36 },
    { "rmsnorm 600x7",          rmsnorm,     { ACT(600, 7), WEIGHT(7) }, .k = 600 },
    { "rmsnorm frozen",         rmsnorm,     { ACT(3, 64), FROZEN(64) }, .k = 64 },
    { "rmsnorm weight only",    rmsnorm,     { CONST(3, 64), WEIGHT(64) }, .k = 64 },
    { "rmsnorm 4096x3072",      rmsnorm,     { ACT(4096, 3072), WEIGHT(3072) }, .k = 4096, .flags = CHECK_LARGE },
    { "rmsnorm heads large",    rmsnorm,     { ACT(1, 4096, 24, 128), WEIGHT(128) }, .k = 98304, .flags = CHECK_LARGE },
    { 0 }
};
