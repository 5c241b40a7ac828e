# What `run` and the suites have in common.
# shellcheck shell=bash

# Commits of the suites that the list of expected failures is for.
pjdfstest_url=https://github.com/pjd/pjdfstest pjdfstest_commit=85a8aea9e685999ef0540392fd80535f873d7ff7
xfstests_url=https://github.com/kdave/xfstests xfstests_commit=63a29724a85f1999e49bf0a9bf0d22643b6116e5

die() { echo "conformance: $*" >&2; exit 2; }

# --- results: a line each in $results --------------------------------------

passed() { echo "pass $1" >>"$results"; }           # so many tests
fail() { echo "fail $1 ${2:-1}" >>"$results"; }     # a name, standing for so many tests
not_run() { echo "skip $1" >>"$results"; }          # a name

# step runs a command as one test.
step() {
  local name=$1 began=$SECONDS
  shift
  echo "== $name: $*"
  if "$@"; then passed 1; else fail "$name"; fi
  echo "== $name: $((SECONDS - began))s"
}

# judge compares what failed with what was expected to, and prints the line.
judge() {
  local name=$1 kind=$2 seconds=$3 failures expected bad=0 test
  failures=$(awk '$1 == "fail" { print $2 }' "$results" | sort)
  expected=$(awk -v s="$name" -v k="$kind" '$1 == s && ($2 == k || $2 == "*") { sub(/^\?/, "", $3); print $3 }' "$here/expected" | sort)
  awk -v name="$name" -v kind="$kind" -v seconds="$seconds" -v known="$(comm -12 <(echo "$failures") <(echo "$expected") | grep -c .)" '
    $1 == "pass" { pass += $2 } $1 == "fail" { fail += $3 } $1 == "skip" { skip++ }
    END { printf "%-10s %-5s %8d %7d %9d %8d %8d\n", name, kind, pass, fail, known, skip, seconds }' "$results"
  for test in $(comm -23 <(echo "$failures") <(echo "$expected")); do
    echo "  FAILED $test"
    bad=1
  done
  for test in $(comm -13 <(echo "$failures") <(echo "$expected")); do
    grep -qxF "skip $test" "$results" && continue
    grep -qF " ?$test " "$here/expected" && continue
    [[ $name != xfstests || -z ${XFSTESTS_LIST:-} || " $XFSTESTS_LIST " == *" $test "* ]] || continue
    echo "  PASSED $test, which is listed in $here/expected"
    bad=1
  done
  return "$bad"
}

# --- building ---------------------------------------------------------------

# program:package
need_programs() {
  local entry missing=()
  for entry in autoreconf:autoconf gcc:gcc git:git losetup:mount mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs xfs_io:xfsprogs \
    make:make libtoolize:libtool prove:perl gawk:gawk bc:bc fuser:psmisc attr:attr setfacl:acl fio:fio stress-ng:stress-ng \
    python3:python3 sqlite3:sqlite3 tar:tar mount.fuse3:fuse3 \
    /usr/include/uuid/uuid.h:uuid-dev /usr/include/sys/acl.h:libacl1-dev /usr/include/libaio.h:libaio-dev \
    /usr/include/liburing.h:liburing-dev /usr/include/sys/capability.h:libcap-dev /usr/include/xfs/xfs.h:xfslibs-dev \
    /usr/lib/postgresql:postgresql; do
    command -v "${entry%%:*}" >/dev/null || [[ -e ${entry%%:*} ]] || missing+=("${entry##*:}")
  done
  ((${#missing[@]} == 0)) || die "missing: ${missing[*]}; on Debian: apt-get install ${missing[*]}"
  ((EUID == 0)) || die "be root"
  [[ -e /dev/fuse && -e /dev/loop-control ]] || die "/dev/fuse and /dev/loop-control are needed"
}

build_all() {
  if [[ -z ${MENDFS:-} ]]; then
    MENDFS=$scratch/mendfs
    (cd "$root" && CGO_ENABLED=0 go build -o "$MENDFS" ./cmd/mendfs) || die "mendfs does not build"
  fi
  local name
  for name in "$@"; do
    case $name in
    pjdfstest) build_pjdfstest ;;
    xfstests | fsx | fsstress | git) build_xfstests ;;
    esac
  done
}

# fetch puts a commit of a public repository into a directory, once.
fetch() {
  local url=$1 commit=$2 dir=$3
  [[ $(git -C "$dir" rev-parse HEAD 2>/dev/null) == "$commit" ]] && return
  rm -rf "$dir"
  if ! { git clone --quiet "$url" "$dir" && git -C "$dir" checkout --quiet "$commit"; }; then
    die "$url can't be fetched; name a checkout with PJDFSTEST=DIR, XFSTESTS=DIR"
  fi
}

build_pjdfstest() {
  if [[ -z ${PJDFSTEST:-} ]]; then
    PJDFSTEST=$cache/pjdfstest
    fetch "$pjdfstest_url" "$pjdfstest_commit" "$PJDFSTEST"
  fi
  [[ -x $PJDFSTEST/pjdfstest ]] ||
    (cd "$PJDFSTEST" && autoreconf -ifs && ./configure && make) >"$logs/pjdfstest.build.log" 2>&1 ||
    die "pjdfstest does not build: $logs/pjdfstest.build.log"
}

build_xfstests() {
  if [[ -z ${XFSTESTS:-} ]]; then
    XFSTESTS=$cache/xfstests
    fetch "$xfstests_url" "$xfstests_commit" "$XFSTESTS"
  fi
  [[ -x $XFSTESTS/ltp/fsx && -x $XFSTESTS/src/vfs/vfstest ]] ||
    make -C "$XFSTESTS" >"$logs/xfstests.build.log" 2>&1 ||
    die "xfstests does not build: $logs/xfstests.build.log"
}

# --- mounts -----------------------------------------------------------------

# new_disk makes a filesystem of 8 GiB in a sparse file and mounts it.
new_disk() {
  local kind=$1 dir=$2
  mkdir -p "$dir"
  truncate -s 8G "$dir.img"
  "mkfs.$kind" -q "$dir.img"
  mount -o loop "$dir.img" "$dir" # umount frees the loop device
  chmod 755 "$dir"
}

# serve mounts mendfs.
serve() {
  local backing=$1 mnt=$2
  mkdir -p "$mnt"
  "$MENDFS" mount --daemon --state "$mnt.state" --allow-other -o suid,dev "$backing" "$mnt"
}

# unserve fails if something of the mount is still in use.
unserve() { "$MENDFS" umount "$1"; }

# examine unmounts a disk and looks whether the filesystem is in order.
examine() {
  local kind=$1 dir=$2
  umount "$dir" || return
  case $kind in
  ext4) e2fsck -fn "$dir.img" ;;
  xfs) xfs_repair -n "$dir.img" ;;
  esac
}

# cover puts a file or directory of ours over one of the machine's, for us only.
cover() {
  mount --bind "$1" "$2"
  echo "$2" >>"$scratch/covered"
}

# Mounts under the scratch directory, the last one first.
mounts() { awk -v d="$scratch/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | tac; }

unmount_all() {
  local at
  while read -r at; do umount --lazy "$at" || true; done < <(cat "$scratch/covered" 2>/dev/null)
  rm -f "$scratch/covered"
  for at in $(mounts); do umount "$at" 2>/dev/null || umount --lazy "$at" || true; done
}

# as_type puts a df first in PATH that calls mendfs a filesystem of another
# type: the suites know no fuse.mendfs.
as_type() {
  mkdir -p "$work/bin"
  printf '#!/bin/sh\n%s "$@" | sed s/fuse\\.mendfs/%s/\n' "$(command -v df)" "$1" >"$work/bin/df"
  chmod +x "$work/bin/df"
  PATH=$work/bin:$PATH
}
