/* image.h - for the targets that decode pictures. */
#ifndef DT_FUZZ_IMAGE_H
#define DT_FUZZ_IMAGE_H
#include <stddef.h>
#include <stdint.h>

/* Header, pixels, and a resized window, from memory and from a file; small pictures only. */
void fuzz_image(const uint8_t *data, size_t size);

#endif
