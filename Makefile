# Two commands do all set-up: `make demo` and `make test`. They install what is
# missing with apt where they can, and say plainly what is missing where not.

# A Go that was unpacked to its usual place is often not on root's PATH.
export PATH := $(PATH):/usr/local/go/bin

.PHONY: help build demo test setup clean

help:
	@echo 'make demo    the whole story in a minute on a scratch directory, no pmem needed'
	@echo 'make test    all checks and tests, at most ten minutes on two cores; root for the mounted ones'
	@echo 'make build   bin/mendfs'
	@echo 'make setup   install what the tests need'
	@echo 'make clean   remove what was built'

build:
	@scripts/setup build
	CGO_ENABLED=0 go build -trimpath -o bin/mendfs ./cmd/mendfs

demo: build
	@scripts/setup demo
	bin/mendfs demo

test:
	@scripts/setup test
	@scripts/test

setup:
	@scripts/setup test

clean:
	rm -rf bin
