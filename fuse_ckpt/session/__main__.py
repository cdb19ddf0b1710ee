"""The daemon of one mount; see `fuse_ckpt.session.daemon`."""

from fuse_ckpt.session.daemon import main

main()
