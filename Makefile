# Two commands do all set-up: `make demo` and `make test`. They install what is
# missing with apt where they can, and say plainly what is missing where not.

# A Go that was unpacked to its usual place is often not on root's PATH.
export PATH := $(PATH):/usr/local/go/bin

.PHONY: bench conformance help build demo lab test soak setup clean install uninstall

help:
	@echo 'make demo    the whole story in a minute on a scratch directory, no pmem needed'
	@echo 'make test    all checks and tests, a quarter of an hour on two cores; root for the mounted ones'
	@echo 'make lab     tests on a real kernel with bad persistent memory, in QEMU; three minutes; KERNEL=6.1 GUEST=shell RUN= (docs/lab.md)'
	@echo 'make conformance  pjdfstest, xfstests, fsx, databases and others over a mount; by hand, as root, half an hour'
	@echo 'make soak    a million operations under random poison against an oracle; by hand, as root, quarter of an hour; SEED= OPS='
	@echo 'make build   bin/mendfs'
	@echo 'make install  bin/mendfs to $(PREFIX)/bin, and the helper that mount(8) and /etc/fstab need to /sbin; DESTDIR= PREFIX='
	@echo 'make uninstall  take them away again'
	@echo 'make bench   how fast a mount is, beside its peers; twenty minutes, root, a quiet machine; ARGS=-quick, a $$ in it doubled'
	@echo 'make setup   install what the tests need'
	@echo 'make clean   remove what was built'

build:
	@scripts/setup build
	CGO_ENABLED=0 go build -trimpath -o bin/mendfs ./cmd/mendfs

# mount(8) looks for its helpers in /sbin only.
PREFIX ?= /usr/local
helpers = $(DESTDIR)/sbin/mount.mendfs $(DESTDIR)/sbin/mount.fuse.mendfs

install: build
	install -D -m 755 bin/mendfs $(DESTDIR)$(PREFIX)/bin/mendfs
	install -D -m 644 docs/mendfs.8 $(DESTDIR)$(PREFIX)/share/man/man8/mendfs.8
	install -d $(DESTDIR)/sbin
	for helper in $(helpers); do ln -sf $(PREFIX)/bin/mendfs $$helper || exit; done

uninstall:
	rm -f $(helpers) $(DESTDIR)$(PREFIX)/bin/mendfs $(DESTDIR)$(PREFIX)/share/man/man8/mendfs.8

demo: build
	@scripts/setup demo
	bin/mendfs demo

test:
	@scripts/setup test
	@scripts/test

bench: build
	@scripts/setup bench
	@scripts/bench $(ARGS)

# In CI for one kernel (scripts/test); for others by hand. GUEST=shell boots to a shell.
lab:
	@scripts/setup lab
	@go run ./tests/lab $(if $(KERNEL),-kernel '$(KERNEL)') $(if $(RUN),-run '$(RUN)') $(if $(ACCEPT),-accept) $(if $(filter shell,$(GUEST)),-shell)

# By hand, not in CI: fetches suites of others, and takes an hour.
conformance: build
	@MENDFS=$(CURDIR)/bin/mendfs tests/conformance/run

# By hand, not in CI, which runs a slice of it (tests/soak).
soak:
	@scripts/setup build
	@SEED='$(SEED)' OPS='$(OPS)' PROFILE='$(PROFILE)' RACE='$(RACE)' scripts/soak

setup:
	@scripts/setup test

clean:
	rm -rf bin
