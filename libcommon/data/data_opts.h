/* data_opts.h - the rows of the option table that say what to train on, for every tool that makes a plan.
 *
 *   struct opts { struct dt_data_settings data; ... } o = { .data = DT_DATA_DEFAULTS };
 *   static const dt_opt table[] = { DT_DATA_OPTS(struct opts, data), ..., DT_OPT_END };
 *
 * The caller releases o.data.fix_sample_size and sets world_size, shard, stop and progress itself. */
#ifndef DT_DATA_OPTS_H
#define DT_DATA_OPTS_H
#include "base/opt.h"
#include "data/plan.h"

#define DT_DATA_OPTS(T, m) \
    DT_OPT_GROUP("Data"), \
    { "train_data_dir", 0, "DIR", DT_OPT_STR, offsetof(T, m.train_data_dir), .help = \
      "put before relative paths of the metadata; alone: a folder of pictures with captions in .txt files, or webdataset " \
      "tars such as 'shard-{0000..0012}.tar' (the metadata file's own folder)", .often = true }, \
    { "train_data_meta", 0, "FILE", DT_OPT_STR, offsetof(T, m.train_data_meta), .help = \
      "metadata: .json list, .jsonl or .csv with file_path, text and optionally type, width, height; or a folder", .often = true }, \
    { "dataset_config", 0, "FILE", DT_OPT_STR, offsetof(T, m.dataset_config), .help = \
      "a dataset_config of kohya's sd-scripts or of musubi-tuner, .toml or .json: folders, sizes, batches, repeats, " \
      "captions are as it says, instead of the options here", .often = true }, \
    { "folder_repeats", 0, NULL, DT_OPT_FLAG, offsetof(T, m.folder_repeats), .help = \
      "folders all named as '10_words' are read as kohya's scripts do: each picture 10 times an epoch, the words its " \
      "caption if it has none (on; --no_folder_repeats: they are ordinary folders)" }, \
    { "max_train_samples", 0, "N", DT_OPT_INT, offsetof(T, m.max_train_samples), 0, INT32_MAX, .help = \
      "use N pictures only, chosen by the seed (0: all)" }, \
    { "caption_dropout", 0, "P", DT_OPT_FLOAT, offsetof(T, m.caption_dropout), 0, 1, .help = \
      "probability of training on an empty caption (0.1)" }, \
    { "random_flip", 0, NULL, DT_OPT_FLAG, offsetof(T, m.random_flip), .help = \
      "mirror pictures left-right with probability 0.5" }, \
    { "dataloader_num_workers", 0, "N", DT_OPT_INT, offsetof(T, m.dataloader_num_workers), 0, 64, .help = \
      "threads that read picture files; 0: two for each CPU, and for training steps none of their own (0)" }, \
    { "trust_sizes", 0, NULL, DT_OPT_FLAG, offsetof(T, m.trust_sizes), .help = \
      "believe width and height in the metadata instead of reading each file's header" }, \
    { "verify_images", 0, NULL, DT_OPT_FLAG, offsetof(T, m.verify_images), .help = \
      "decode every picture at once instead of its header only, to find damaged files early" }, \
    { "max_skipped_fraction", 0, "F", DT_OPT_FLOAT, offsetof(T, m.max_skipped_fraction), 0, 1, .help = \
      "fail when a larger part of the pictures cannot be used (0.5)" }, \
    DT_OPT_GROUP("Sizes"), \
    { "image_sample_size", 0, "PX", DT_OPT_INT, offsetof(T, m.image_sample_size), 16, 8192, .help = \
      "side of a square picture; with --enable_bucket other shapes get about the same area (512)", .often = true }, \
    { "enable_bucket", 0, NULL, DT_OPT_FLAG, offsetof(T, m.enable_bucket), .help = \
      "keep aspect ratios: each picture goes to the nearest of 40 shapes; otherwise it is cropped to a square", .often = true }, \
    { "random_ratio_crop", 0, NULL, DT_OPT_FLAG, offsetof(T, m.random_ratio_crop), .help = \
      "with --enable_bucket: draw one of 15 shapes for each batch, whatever the shape of the pictures" }, \
    { "random_hw_adapt", 0, NULL, DT_OPT_FLAG, offsetof(T, m.random_hw_adapt), .help = \
      "with --enable_bucket: scale 1 batch in 10 down, by 1.25 to 3 depending on --image_sample_size" }, \
    { "fix_sample_size", 0, "H W", DT_OPT_LIST, offsetof(T, m.fix_sample_size), .help = \
      "stretch every picture to this height and width" }, \
    { "multiple", 0, "PX", DT_OPT_INT, offsetof(T, m.multiple), 1, 256, .help = \
      "round sides down to multiples of this (16)" }, \
    DT_OPT_GROUP("Batches"), \
    { "train_batch_size", 0, "N", DT_OPT_INT, offsetof(T, m.train_batch_size), 1, 65536, .help = \
      "pictures in a batch of one process (16)", .often = true }, \
    { "num_train_epochs", 0, "N", DT_OPT_INT, offsetof(T, m.num_train_epochs), 1, 1000000, .help = \
      "how often every picture is drawn, unless --max_train_steps says when to end (100)", .often = true }, \
    { "max_train_steps", 0, "N", DT_OPT_INT, offsetof(T, m.max_train_steps), 0, INT32_MAX, .help = \
      "optimiser steps (0: as many as the epochs give)", .often = true }, \
    { "gradient_accumulation_steps", 0, "N", DT_OPT_INT, offsetof(T, m.gradient_accumulation_steps), 1, 65536, .help = \
      "batches of each process in one optimiser step (1)" }, \
    { "seed", 0, "N", DT_OPT_INT, offsetof(T, m.seed), 0, 9007199254740991.0, .help = \
      "the same seed and data give the same plan (42)", .often = true }

/* With --dataset_config: DT_EUSAGE for an option that it says itself. */
int dt_data_config_alone(const dt_cli *cli, int argc, char **argv, dt_err *err);

#endif
