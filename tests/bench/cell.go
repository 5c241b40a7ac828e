package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cell is one line of the table: one piece of work, on every column.
type cell struct {
	Name  string
	data  bool                 // of the contents of files: no names are made or listed
	names cache                // whether the kernel's dentries and inodes are dropped first
	ready func(*content) error // makes what the work needs, or takes away what it must not find; may be nil
	load  func(*content) load
}

// content is what a column shows of the test data.
type content struct {
	dir   string // through the mount
	shelf string // outside: archives
	cold  bool   // it has a page cache of its own that can be dropped
	size  int64
}

// cells are all of the clean table.
func cells() []cell {
	var all []cell
	for _, op := range []string{"read", "write"} {
		for _, jobs := range []int{1, 4} {
			for _, block := range []int{1 << 20, 128 << 10} {
				all = append(all, dataCells("seq "+op, load{Op: op, Block: block, Jobs: jobs})...)
			}
			all = append(all, dataCells("rand "+op, load{Op: op, Block: 4 << 10, Jobs: jobs, Random: true, Count: 8192})...)
		}
	}
	all = append(all,
		dataCell("rand mmap read 4k cold", load{Op: "map", Block: 4 << 10, Jobs: 1, Random: true, Count: 8192, Cache: cold}),
		dataCell("rand mmap read 4k warm", load{Op: "map", Block: 4 << 10, Jobs: 1, Random: true, Count: 8192, Cache: warm}),
		dataCell("seq write 128B", load{Op: "write", Block: 128, Jobs: 1, Count: 16384}),
	)
	return append(all, treeCells()...)
}

// dataCells are a load cold, warm and direct.
func dataCells(what string, l load) []cell {
	var all []cell
	for _, how := range []string{"cold", "warm", "direct"} {
		v := l
		name := fmt.Sprintf("%s %s %s", what, short(l.Block), how)
		if l.Jobs > 1 {
			name += fmt.Sprintf(" x%d", l.Jobs)
		}
		v.Cache, v.Direct = cache(how), how == "direct"
		if v.Direct {
			v.Cache = cold
		}
		all = append(all, dataCell(name, v))
	}
	return all
}

func short(bytes int) string {
	switch {
	case bytes >= 1<<20:
		return fmt.Sprintf("%dM", bytes>>20)
	case bytes >= 1<<10:
		return fmt.Sprintf("%dk", bytes>>10)
	}
	return fmt.Sprintf("%dB", bytes)
}

func dataCell(name string, l load) cell {
	return cell{Name: name, data: true, load: func(c *content) load {
		l := l
		l.Dir, l.Size = c.dir, c.size
		if most := int(l.Size) / l.Block; l.Count == 0 || l.Count > most {
			l.Count = most
		}
		if l.Cache == cold && !c.cold {
			l.Cache = warm // on ext4 the device would be measured
		}
		return l
	}}
}

// treeCells are what people do with names.
func treeCells() []cell {
	find := func(c *content) load {
		return load{Op: "run", Args: []string{"find", filepath.Join(c.dir, "many"), "-size", "+3"}}
	}
	status := func(c *content) load {
		return load{Op: "run", Dir: filepath.Join(c.dir, "repo"), Args: []string{"git", "status", "--porcelain"}}
	}
	tree := func(c *content) string { return filepath.Join(c.dir, "tree") }
	untar := func(c *content) load {
		return load{Op: "run", Dir: c.dir, Args: []string{"tar", "-xf", filepath.Join(c.shelf, "tree.tar")}}
	}
	unpacked := func(c *content) error {
		if _, err := os.Lstat(tree(c)); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return run(c.dir, untar(c).Args...)
	}
	return []cell{
		{Name: "find -size cold", names: cold, load: find},
		{Name: "find -size warm", ready: func(c *content) error { return run("", find(c).Args...) }, load: find},
		{Name: "git status cold", names: cold, load: status},
		{Name: "git status warm", ready: func(c *content) error { return run(status(c).Dir, status(c).Args...) }, load: status},
		{Name: "untar", ready: func(c *content) error { return os.RemoveAll(tree(c)) }, load: untar},
		{Name: "cat tree cold", names: cold, ready: unpacked, load: func(c *content) load {
			return load{Op: "run", Dir: c.dir, Args: []string{"sh", "-c", "find tree -type f -print0 | xargs -0 cat >/dev/null"}}
		}},
		{Name: "rm -rf", ready: unpacked, load: func(c *content) load {
			return load{Op: "run", Args: []string{"rm", "-rf", tree(c)}}
		}},
	}
}

// dropNames empties the kernel's caches of names and inodes, everywhere. FUSE servers close
// what they held when the kernel has told them, which frees more.
func dropNames() error {
	for range 2 {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			return fmt.Errorf("dropping cached names (root can): %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// fill makes the test data of one column in its backing directory.
func fill(below, shelf string, o *options) error {
	for _, jobs := range []int{1, 4} {
		for i := range jobs {
			if err := fillFile(dataFile(below, jobs, i), o.size/int64(jobs)); err != nil {
				return err
			}
		}
	}
	if err := fillTree(filepath.Join(below, "many"), o.trees.Find, 512); err != nil {
		return err
	}
	return run("", "cp", "-a", filepath.Join(shelf, "repo"), filepath.Join(below, "repo"))
}

func fillFile(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf, err := aligned(1 << 20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(buf)) }()
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := f.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return nil
}

// fillTree makes n files of up to 8 times step bytes, 150 in a directory.
func fillTree(dir string, n, step int) error {
	content := make([]byte, 8*step)
	for i := range content {
		content[i] = byte('a' + i%25)
	}
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i/1500), fmt.Sprintf("e%d", i/150))
		if i%150 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%d", i)), content[:i%8*step], 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stock makes what all columns share: the archive and the repository.
func stock(shelf string, t trees) error {
	tree, repo := filepath.Join(shelf, "tree"), filepath.Join(shelf, "repo")
	if err := fillTree(tree, t.Tar, 2048); err != nil {
		return err
	}
	if err := run(shelf, "tar", "-cf", "tree.tar", "tree"); err != nil {
		return err
	}
	if err := fillTree(repo, t.Git, 256); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"init", "-q"}, {"add", "."},
		{"-c", "user.name=b", "-c", "user.email=b@b", "commit", "-q", "-m", "b"},
	} {
		if err := run(repo, append([]string{"git"}, args...)...); err != nil {
			return err
		}
	}
	return os.RemoveAll(tree)
}
