#!/bin/bash
# fuse.t - the golden files once more, without fusion (libcommon/graph/fuse.c).
DT_FUSE=0 exec "${B:-build}/golden"
