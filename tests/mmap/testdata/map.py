"""map.py shared|private FILE [OFF BYTES]: as map.c."""
import mmap
import os
import sys

kind, path = sys.argv[1:3]
store = len(sys.argv) > 3
shared = kind == "shared"
fd = os.open(path, os.O_RDWR if store and shared else os.O_RDONLY)
m = mmap.mmap(
    fd,
    os.fstat(fd).st_size,
    flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE,
    prot=mmap.PROT_READ | (mmap.PROT_WRITE if store else 0),
)
if store:
    sys.stdin.readline()
    off, data = int(sys.argv[3]), sys.argv[4].encode()
    m[off : off + len(data)] = data
    if shared:
        m.flush()
sys.stdout.buffer.write(bytes(m))
