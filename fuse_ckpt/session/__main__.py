"""The daemon of one mount, see `fuse_ckpt.session.daemon`; or, by a word, one of its helpers."""

import sys

if sys.argv[1:] == ["upload"]:
    from fuse_ckpt.session.uploader import main
elif sys.argv[1:] == ["bring"]:
    from fuse_ckpt.session.bringing_process import main
elif sys.argv[1:] == ["fetch"]:
    from fuse_ckpt.session.fetcher import main
elif sys.argv[1:] == ["catalog"]:
    from fuse_ckpt.session.cataloguing_process import main
else:
    from fuse_ckpt.session.daemon import main

main()
