"""Programs that try to break fuse_ckpt: what other programs do, crashes, power cuts, many writers at once."""
