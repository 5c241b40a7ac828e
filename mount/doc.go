// Package mount turns options into a running mount, and finds, asks and ends
// running ones.
//
// # From options to a mount
//
// New goes through these steps; whatever is refused in the first four leaves
// the system as it was, and a later failure undoes what was done:
//
//  1. options alone (options.go, mountopts.go), and whether this machine and
//     user can mount FUSE at all (checks.go)
//  2. backing directory and mountpoint, each looked up once (place.go); below
//     a dead mount of ours by the mount table (dead.go)
//  3. the state directory, if it exists, is of this filesystem (state.go)
//  4. no running mount is in the way (registry.go)
//  5. state directory and registry entry are taken, the ledger and the journal
//     opened, interrupted repairs finished (Engine.Replay)
//  6. the mount (device.go), the sandbox (sandbox.go), then requests are
//     answered (serve.go), and questions (package control)
//
// A dead mount of ours on the mountpoint goes between 5 and 6. One that covers
// the backing directory itself has to go before 5, after all checks that need
// no look at the covered directory; what is refused later says that it is gone.
//
// Everything that was opened is closed in the opposite order when the mount is
// gone, however it went.
//
// # Over-mounting
//
// Without a mountpoint the mount covers the backing directory itself, and is
// the only way to it. The daemon reaches the covered directory through a clone
// of its mount (open_tree) that is not in any namespace's tree. What was
// mounted below the backing directory is hidden, and shows again, like all
// original content, when the mount is gone.
//
// # Sandbox
//
// With Options.Confine the process gives away for good what serving does not
// need: capabilities before step 3, and before the first request everything
// but its files (Landlock, no_new_privs). The right to unmount stays with a
// process of its own (unmounter.go), which never unmounts by itself. It outlives
// a server that was killed and hangs, and aborts the connection (abort.go).
// docs/security.md has the whole of it.
//
// # Known poison
//
// Where somebody keeps a list of media errors (list.go: the kernel for persistent
// memory, the simulator), one goroutine follows it (watch.go): new poison is an
// event before anybody reads it, known to the engine, and with --repair eager
// repaired, outside of any request. It begins when requests are answered, and ends
// before anything that it uses.
//
// # State directory
//
// Mode 0700, of the user who mounts. Its lock (flock on the file "lock") is
// held by the mount that runs on it. It belongs to one backing directory of one
// filesystem, by file handle and UUID as meta.json says, and is refused for any
// other. It must lie outside of what is mounted, and where nobody else can put
// another directory in its place (trust.go).
//
// # Registry
//
// /run/mendfs for root, $XDG_RUNTIME_DIR/mendfs or /tmp/mendfs-UID for others:
// one file per running mount, locked by its process, so that a crash leaves
// nothing that must be cleaned up. Others may read the files, but only who may
// write one can hold its lock.
package mount
