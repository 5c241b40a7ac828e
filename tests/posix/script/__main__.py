"""Does what users do in a directory and says what came of it.

    python3 -B script DIR [MODULE]

What it prints for a directory and for a mount of it has to be equal, line by line.
"""

import sys

import kit
import acls, creation, data, handles, ioctls, links, locks, opening, options, ownership, paths, permission, privileges, times, unlinked, utimens, xattrs  # noqa: F401

sys.exit(kit.run(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
