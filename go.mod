module github.com/mendfs/mendfs

go 1.25.0

require (
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/landlock-lsm/go-landlock v0.10.1
	github.com/oklog/ulid/v2 v2.1.1
	github.com/spf13/cobra v1.10.2
	github.com/spf13/pflag v1.0.10
	github.com/tidwall/btree v1.8.1
	go.etcd.io/bbolt v1.5.0
	golang.org/x/sys v0.45.0
	kernel.org/pub/linux/libs/security/libcap/psx v1.2.77
)

require github.com/inconshreveable/mousetrap v1.1.0 // indirect
