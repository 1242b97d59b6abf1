/* make.c - pictures for tests/pictures.t that are large but cheap, and what a command takes.
 *
 *   make png W H FILE     all black, 1 bit a pixel, complete
 *   make jpg W H FILE     all grey, complete; W and H multiples of 8
 *   make peak FILE CMD... runs CMD and writes its largest resident size in MiB to FILE; exits as CMD does */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <jpeglib.h>
#include <png.h>

static int make_png(unsigned w, unsigned h, FILE *f)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    uint8_t *row = calloc(1, w / 8 + 1);
    if (setjmp(png_jmpbuf(png)))
        return 1;
    png_init_io(png, f);
    png_set_user_limits(png, w, h);
    png_set_compression_level(png, 1);
    png_set_IHDR(png, info, w, h, 1, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (unsigned y = 0; y < h; y++)
        png_write_row(png, row);
    png_write_end(png, info);
    free(row);
    return 0;
}

/* Every block of a grey picture has the same code: no change of DC (00), end of block (1010).  So the file is that of
 * one block with other sizes in its header and the code repeated. */
static int make_jpg(unsigned w, unsigned h, FILE *f)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr e;
    uint8_t *mem = NULL, px[8];
    unsigned long n = 0, sos = 0;
    JSAMPROW row = px;
    c.err = jpeg_std_error(&e);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &mem, &n);
    c.image_width = c.image_height = 8;
    c.input_components = 1;
    c.in_color_space = JCS_GRAYSCALE;
    jpeg_set_defaults(&c);
    jpeg_start_compress(&c, TRUE);
    memset(px, 128, sizeof px);
    for (int y = 0; y < 8; y++)
        jpeg_write_scanlines(&c, &row, 1);
    jpeg_finish_compress(&c);
    for (unsigned long i = 2; i + 4 < n; i += 2 + (mem[i + 2] << 8 | mem[i + 3])) {
        if (mem[i + 1] == 0xc0) {
            mem[i + 5] = h >> 8, mem[i + 6] = h & 255;
            mem[i + 7] = w >> 8, mem[i + 8] = w & 255;
        }
        if (mem[i + 1] == 0xda) {
            sos = i + 2 + (mem[i + 2] << 8 | mem[i + 3]);
            break;
        }
    }
    if (!sos || mem[sos] >> 2 != 0x0a)                      /* 001010 */
        return 1;
    fwrite(mem, 1, sos, f);
    for (uint64_t bits = (uint64_t)w / 8 * (h / 8) * 6; bits; bits = bits > 24 ? bits - 24 : 0)
        fwrite("\x28\xa2\x8a", 1, bits >= 24 ? 3 : (bits + 7) / 8, f);
    fwrite("\xff\xd9", 1, 2, f);
    return 0;
}

static int peak(const char *file, char **argv)
{
    struct rusage u;
    int status;
    pid_t pid = fork();
    if (!pid) {
        execvp(*argv, argv);
        _exit(127);
    }
    FILE *f = fopen(file, "w");
    if (pid < 0 || wait4(pid, &status, 0, &u) < 0 || !f)
        return 126;
    fprintf(f, "%ld\n", u.ru_maxrss / 1024);
    fclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
    if (argc > 3 && !strcmp(argv[1], "peak"))
        return peak(argv[2], argv + 3);
    FILE *f = argc == 5 ? fopen(argv[4], "wb") : NULL;
    unsigned w = f ? (unsigned)atoi(argv[2]) : 0, h = f ? (unsigned)atoi(argv[3]) : 0;
    int bad = !f || (strcmp(argv[1], "png") ? make_jpg(w, h, f) : make_png(w, h, f));
    return bad || fclose(f);
}
