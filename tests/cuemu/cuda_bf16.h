/* cuda_bf16.h - storage and rounding of bf16, as CUDA's header of this name. */
#ifndef DT_CUEMU_CUDA_BF16_H
#define DT_CUEMU_CUDA_BF16_H
#include "tensor/dtype.h"

struct __nv_bfloat16 { uint16_t bits; };

static inline float __bfloat162float(__nv_bfloat16 h) { return dt_bf16_to_f32(h.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
    return __nv_bfloat16{ dt_f32_to_bf16(f) };
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }

#endif
