/* dt-sample: make pictures from prompts with a FLUX model folder and LoRAs.  See dt-sample(1). */
#include <omp.h>
#include "base/opt.h"
#include "base/tool.h"
#include "text/tokenizer.h"
#include "train/sample_run.h"

struct opts {
    dt_sample_opts s;
    int64_t threads;
};
#define O(field) offsetof(struct opts, s.field)

static const char *const precisions[] = { "no", "bf16", NULL };

static const dt_opt table[] = {
    DT_OPT_GROUP("Model"),
    { "pretrained_model_name_or_path", 0, "DIR", DT_OPT_STR, O(model), .help = "model folder in diffusers layout",
      .often = true },
    { "transformer_path", 0, "FILE", DT_OPT_STR, O(transformer_path), .help =
      "transformer weights to use instead of the folder's: safetensors, diffusers or single-file FLUX names" },
    { "vae_path", 0, "FILE", DT_OPT_STR, O(vae_path), .help = "vae weights to use instead of the folder's" },
    { "lora", 0, "FILE[:STRENGTH]", DT_OPT_LIST, O(lora), .repeat = true, .help =
      "LoRA files of any layout, each with its strength (1); several add up", .often = true },
    { "max_sequence_length", 0, "N", DT_OPT_INT, O(max_sequence_length), 1, 4096, .help =
      "tokens of T5, padding included (512, or the tokenizer's limit if that is less)" },
    { "text_padding", 0, "NAME", DT_OPT_ENUM, O(text_padding), .choices = dt_padding_names, .help =
      "T5 states of a prompt: max, padded to max_sequence_length and the padding attended, as the reference does; or none, its own "
      "tokens alone, for what was trained so (max)" },
    DT_OPT_GROUP("Pictures"),
    { "prompt", 'p', "TEXT", DT_OPT_LIST, O(prompt), .repeat = true, .help = "prompts, before those of FILE",
      .often = true },
    { "num_images", 'n', "N", DT_OPT_INT, O(num_images), 1, 1000000,
      .help = "pictures of each prompt, from different noise (1)", .often = true },
    { "width", 0, "PX", DT_OPT_INT, O(width), 1, 65536, .help = "width (the model's own, 1024 for FLUX.1)",
      .often = true },
    { "height", 0, "PX", DT_OPT_INT, O(height), 1, 65536, .help = "height (the model's own)", .often = true },
    { "steps", 0, "N", DT_OPT_INT, O(steps), 1, 1000, .help = "sampling steps (28)", .often = true },
    { "num_inference_steps", 0, "N", DT_OPT_INT, O(steps), 1, 1000, .help = "the same as --steps" },
    { "guidance_scale", 0, "F", DT_OPT_FLOAT, O(guidance), 0, 1000,
      .help = "guidance that the model is told, if it has that input (3.5)" },
    { "seed", 0, "N", DT_OPT_INT, O(seed), 0, 9007199254740991.0,
      .help = "noise of the pictures; a JSON line may have its own (42)", .often = true },
    DT_OPT_GROUP("Output"),
    { "output", 'o', "PATH", DT_OPT_STR, O(output), .help = "folder for the pictures; or FILE.png or - for one",
      .often = true },
    { "grid", 0, "FILE", DT_OPT_STR, O(grid), .help = "a sheet of all pictures with their prompts, a PNG",
      .often = true },
    { "compare_base", 0, NULL, DT_OPT_FLAG, O(compare_base),
      .help = "with --lora: every picture without it as well, from the same noise", .often = true },
    { "init_latents", 0, "FILE", DT_OPT_STR, O(init_latents), .help =
      "begin with 'latents' [pictures, channels, height, width] of a safetensors file instead of noise" },
    { "save_latents", 0, "FILE", DT_OPT_STR, O(save_latents), .help = "write the final latents, likewise" },
    DT_OPT_GROUP("Device and memory"),
    { "device", 0, "NAME", DT_OPT_STR, O(device), .help = "cpu, cuda or cuda:N (cpu)" },
    { "threads", 0, "N", DT_OPT_INT, offsetof(struct opts, threads), 0, 1024,
      .help = "CPU compute threads; 0 = all cores (0)" },
    { "mixed_precision", 0, NULL, DT_OPT_ENUM, O(bf16), .choices = precisions, .help =
      "storage of activations and weights: no (fp32) or bf16 (no)" },
    { "low_vram", 0, NULL, DT_OPT_FLAG, O(low_vram), .help =
      "keep matrices out of memory: each is brought in from the weight files where it is used; slower, but larger models fit" },
    { "vae_tile", 0, "PX", DT_OPT_INT, O(vae_tile), 0, 65536, .help =
      "decode pictures larger than this in overlapping tiles; 0 = never (0)" },
    { "memory_plan", 0, NULL, DT_OPT_FLAG, O(memory_plan),
      .help = "print the memory plan by moment and kind, and stop" },
    { "memory_budget", 0, "BYTES", DT_OPT_BYTES, O(memory_budget), 1, 1e15, .help =
      "take no more memory than this: weights are given back after use if that is needed; if it is not enough, say what would do "
      "and end with status 5" },
    DT_OPT_GROUP("Watching"),
    { "progress", 0, "FILE", DT_OPT_STR, O(progress),
      .help = "NDJSON progress to a file, or to a file descriptor by number" },
    { "quiet", 'q', NULL, DT_OPT_FLAG, O(quiet), .help = "say nothing on standard error except warnings and errors" },
    DT_OPT_END
};

static const dt_cli cli = {
    .tool = "dt-sample",
    .synopsis = "--pretrained_model_name_or_path DIR [OPTION]... [FILE]...",
    .summary =
        "Make pictures from the prompts of --prompt and of FILE, lines of text or JSON, with a FLUX model and LoRAs.",
    .examples = "  dt-sample --pretrained_model_name_or_path FLUX.1-dev -p 'a red cat' -o cat.png\n"
                "  dt-sample --pretrained_model_name_or_path FLUX.1-dev --lora out/lora.safetensors:0.8 --compare_base \\\n"
                "      --grid sheet.png -o pictures/ prompts.txt\n",
    .table = table,
};

static int check(int argc, char **argv, dt_err *err)
{
    if (dt_cli_given(&cli, argc, argv, "steps") && dt_cli_given(&cli, argc, argv, "num_inference_steps"))
        return dt_err_set(err, DT_EUSAGE, "--steps and --num_inference_steps are the same: give one");
    return 0;
}

int main(int argc, char **argv)
{
    struct opts o = { .s = DT_SAMPLE_DEFAULTS };
    const dt_sample_ui ui = { .say = dt_tool_say, .out = dt_tool_out, .stop = &dt_stop };
    dt_strs files = { 0 };
    dt_err err = { 0 };

    dt_argv0 = "dt-sample";
    dt_signals_install();
    dt_malloc_install();
    int rc = dt_cli_parse(&cli, &o, argc, argv, &files, &err);
    dt_quiet = o.s.quiet;
    o.s.guidance_given = rc == 0 && dt_cli_given(&cli, argc, argv, "guidance_scale");
    if (o.threads)
        omp_set_num_threads((int)o.threads);
    if (rc == 0)
        rc = check(argc, argv, &err);
    if (rc == 0)
        rc = dt_sample_run(&o.s, &files, &ui, &err);
    int status = rc < 0 ? dt_die_err(&err) : 0;
    dt_strs_release(&files);
    dt_strs_release(&o.s.lora);
    dt_strs_release(&o.s.prompt);
    return dt_finish(status);
}
