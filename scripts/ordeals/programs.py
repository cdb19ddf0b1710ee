"""The programs of others that must find nothing wrong with a mount which they do not find with the plain directory.

Each runs in a fresh directory, `$W`. Debian's packages of the same names hold them.
"""

from __future__ import annotations

from dataclasses import dataclass

PACKAGES = {
    "stress-ng": "stress-ng",
    "fio": "fio",
    "dbench": "dbench",
    "postmark": "postmark",
    "bonnie++": "bonnie++",
    "git": "git",
    "sqlite3": "sqlite3",
}


@dataclass(frozen=True)
class Program:
    """One run. `limit`: seconds after which it counts as hung. `quick`: also in the short form."""

    name: str
    needs: str
    command: str
    limit: float = 60.0
    quick: bool = False


# What a mount cannot have, and why. docs/semantics.md says so too, below S1.
EXCEPTIONS = {"stress-ng fiemap": "FUSE has no request for FIEMAP; SEEK_DATA and SEEK_HOLE tell where the holes are"}

# The file system class of stress-ng, without what uses no file in the directory (binderfs, eventfd, ioprio, procfs),
# what needs a filesystem that is its own (bind-mount, verity), and what watches the whole machine (fanotify).
_STRESSORS = (
    "access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fcntl fiemap "
    "file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link "
    "locka lockf lockofd mknod open rename symlink sync-file touch utime xattr aio mmap msync readahead revio "
    "seek sendfile "
)
_QUICK = {"hdd", "rename", "iomix", "fallocate", "xattr", "mmap"}
_SMALL = {
    "copy-file": "--copy-file-bytes 128m",
    "dirmany": "--dirmany-bytes 0",
    "fallocate": "--fallocate-bytes 8m",
    "hdd": "--hdd-bytes 4m",
    "iomix": "--iomix-bytes 4m",
    "mmap": "--mmap-bytes 8m --mmap-file",
    "readahead": "--readahead-bytes 8m",
    "revio": "--revio-bytes 4m",
    "seek": "--seek-size 8m",
    "sendfile": "--sendfile-size 1m",
    "sync-file": "--sync-file-bytes 8m",
}

_FIO = "fio --minimal --name=v --directory=$W --size=8m --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=4 "
_PATTERNS = {
    "write-psync": "--rw=write --bs=128k --ioengine=psync",
    "randwrite-psync": "--rw=randwrite --bs=4k --ioengine=psync",
    "randwrite-mmap": "--rw=randwrite --bs=4k --ioengine=mmap",
    "randwrite-libaio-direct": "--rw=randwrite --bs=16k --ioengine=libaio --direct=1 --iodepth=8",
    "randwrite-io_uring": "--rw=randwrite --bs=16k --ioengine=io_uring --iodepth=8",
    "write-fsync-each": "--rw=write --bs=1m --ioengine=psync --fsync=1",
    "randwrite-4-jobs": "--rw=randwrite --bs=8k --ioengine=psync --numjobs=4",
    "randwrite-pvsync": "--rw=randwrite --bs=8k --ioengine=pvsync",
    "write-unaligned": "--rw=write --bs_unaligned --bsrange=1000-70000 --ioengine=psync",
}
_QUICK_PATTERNS = {"write-psync", "randwrite-mmap", "randwrite-libaio-direct"}

_GIT = (
    "cd $W && git init -q . && for n in $(seq 100); do head -c $((n * 40)) /dev/urandom >f$n; done && git add . &&"
    " git -c user.name=a -c user.email=a@b commit -qm m && git gc -q && git fsck --strict --full &&"
    " git clone -q . clone && diff -r --exclude=.git --exclude=clone . clone"
)
_SQLITE = (
    'set -o pipefail; s=$(for n in $(seq {rows}); do echo "insert into t values($n, hex(randomblob(200)));"; done);'
    ' echo "pragma journal_mode={mode}; create table t(a, b); $s" | sqlite3 -bail $W/a.db | grep -qx {mode} &&'
    " test \"$(sqlite3 $W/a.db 'pragma integrity_check; select count(*) from t')\" = $'ok\\n{rows}'"
)
_POSTMARK = (
    "printf 'set location %s\\nset number 100\\nset transactions 300\\nset size 500 60000\\nrun\\nquit\\n' $W"
    " | postmark | grep 'Data:'"
)

# bonnie++ without its phase of one byte a call (-f): 16 million requests through a daemon measure patience.
_OTHERS = (
    Program("dbench", "dbench", "dbench -D $W -t 3 -c /usr/share/dbench/client.txt 3"),
    Program("dbench, fsync", "dbench", "dbench -F -D $W -t 3 -c /usr/share/dbench/client.txt 2"),
    Program("postmark", "postmark", _POSTMARK, quick=True),
    Program("bonnie++", "bonnie++", "bonnie++ -q -f -u $(id -u) -d $W -s 16 -r 8 -n 1:4096:128:2 -x 1", 90.0),
    Program("git", "git", _GIT, quick=True),
    Program("sqlite, DELETE", "sqlite3", _SQLITE.format(rows=60, mode="delete"), quick=True),
    Program("sqlite, WAL", "sqlite3", _SQLITE.format(rows=200, mode="wal"), quick=True),
)


def programs(*, seconds: float = 1.0) -> list[Program]:
    """All of them; `seconds`: how long each stressor works."""
    found = [
        Program(
            f"stress-ng {name}",
            "stress-ng",
            f"stress-ng --{name} 1 {_SMALL.get(name, '')} -t {seconds:g} --verify --temp-path $W --oomable",
            40.0,
            name in _QUICK,
        )
        for name in _STRESSORS.split()
    ]
    found += [Program(f"fio {n}", "fio", _FIO + how, quick=n in _QUICK_PATTERNS) for n, how in _PATTERNS.items()]
    return [*found, *_OTHERS]
