package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// prepare makes the file and poisons it.
func (d *demo) prepare(ctx context.Context) error {
	for _, sub := range []string{"files", "mnt", "state"} {
		if err := os.Mkdir(filepath.Join(d.dir, sub), 0o700); err != nil {
			return err
		}
	}
	if err := d.mount(ctx, "strict"); err != nil {
		return err
	}
	if err := os.WriteFile(d.file(), d.want, 0o600); err != nil {
		return err
	}
	at := fmt.Sprintf("%d+%d", d.poison.Off, d.poison.Len)
	if _, err := d.mendfs(ctx, exitClean, "inject", "mnt/data", "--range", at); err != nil {
		return err
	}
	return d.say("A file of %d bytes on simulated persistent memory; %d bytes of it go bad:\n"+
		"  $ mendfs mount --simulate %s --semantics strict files mnt\n  $ mendfs inject mnt/data --range %s",
		len(d.want), d.poison.Len, demoProfile, at)
}

// withoutMendfs shows what the bare filesystem does: strict semantics.
func (d *demo) withoutMendfs(ctx context.Context) error {
	if err := d.say("Without mendfs (semantics strict shows programs what the filesystem itself would):"); err != nil {
		return err
	}
	_, err := os.ReadFile(d.file())
	if err := d.claim(errors.Is(err, unix.EIO), "read", "%s", errnoText(err)); err != nil {
		return err
	}
	failing, err := d.failingPages()
	if err != nil {
		return err
	}
	one := failing.Slice()
	if err := d.claim(len(one) == 1 && one[0] == d.poison.Widen(ranges.PageSize),
		"granularity", "%d bad bytes make %d bytes unreadable: %s", d.poison.Len, failing.Bytes(), listed(failing)); err != nil {
		return err
	}
	killed, err := d.touch(ctx)
	if err != nil {
		return err
	}
	return d.claim(killed == syscall.SIGBUS, "mmap", "the program that maps the file is killed: %s", signalText(killed))
}

// withMendfs shows the same poison through recovery.
func (d *demo) withMendfs(ctx context.Context) error {
	if err := errors.Join(d.unmount(), d.mount(ctx, "recover")); err != nil {
		return err
	}
	if err := d.say("With mendfs:\n  $ mendfs mount --simulate %s files mnt", demoProfile); err != nil {
		return err
	}
	got, err := os.ReadFile(d.file())
	if err != nil {
		return fmt.Errorf("reading through mendfs: %w", err)
	}
	d.lost = differing(got, d.want)
	honest := len(got) == len(d.want) && !d.lost.Empty() && d.lost.Contains(d.poison) && isZero(got, d.lost)
	if err := d.claim(honest, "read", "%d of %d bytes; %d are right, the lost ones are zero: %s",
		len(got), len(d.want), int64(len(got))-d.lost.Bytes(), listed(d.lost)); err != nil {
		return err
	}
	killed, err := d.touch(ctx)
	if err != nil {
		return err
	}
	if err := d.claim(killed == 0, "mmap", "the program that maps the file lives"); err != nil {
		return err
	}
	var rows []ledger.Row
	if err := d.ask(ctx, exitLossLeft, &rows, "lost", "lost", "--json", "mnt/data"); err != nil {
		return err
	}
	return d.claim(sameBytes(rows, d.lost, ledger.Lost), "ledger", "mendfs lost mnt/data: exactly these bytes, %s", states(rows))
}

// overwrite writes over a part of the lost bytes and looks at the medium.
func (d *demo) overwrite(ctx context.Context) error {
	news := ranges.Range{Off: d.poison.Off + 80, Len: 100}
	for i := news.Off; i < news.End(); i++ {
		d.want[i] = 'N'
	}
	if err := d.writeFile(news); err != nil {
		return fmt.Errorf("overwriting through mendfs: %w", err)
	}
	d.lost.Remove(news)
	if err := errors.Join(d.unmount(), d.mount(ctx, "strict")); err != nil {
		return err
	}
	got, err := os.ReadFile(d.file())
	if err != nil {
		return fmt.Errorf("reading the medium after the repair: %w", err)
	}
	left := differing(got, d.want)
	if err := d.claim(left.String() == d.lost.String() && isZero(got, left), "overwrite",
		"%d bytes written at %d; the rest of the page is as it was read before", news.Len, news.Off); err != nil {
		return err
	}
	var injections []control.Injection
	if err := d.ask(ctx, exitClean, &injections, "injections", "inject", "--list", "--json", "mnt"); err != nil {
		return err
	}
	return d.claim(len(injections) == 0, "medium", "clean: semantics strict reads all %d bytes, %s left",
		len(got), count(len(injections), "poisoned range"))
}

// aftermath shows what mendfs remembers.
func (d *demo) aftermath(ctx context.Context) error {
	var rows []ledger.Row
	if err := d.ask(ctx, exitRepaired, &rows, "lost", "lost", "--all", "--json", "mnt/data"); err != nil {
		return err
	}
	if err := d.claim(sameBytes(rows, d.lost, ledger.Reinitialized), "ledger", "mendfs lost --all mnt/data: %s", states(rows)); err != nil {
		return err
	}
	text, err := d.mendfs(ctx, exitClean, "events", "--json", "mnt")
	if err != nil {
		return err
	}
	kinds, err := kindsOf(text)
	if err != nil {
		return err
	}
	return d.claim(slices.Contains(kinds, string(event.Lost)) && slices.Contains(kinds, string(event.Reinitialized)),
		"events", "mendfs events mnt: %s", strings.Join(kinds, ", "))
}

// differing is where got is not want.
func differing(got, want []byte) *ranges.Set {
	var set ranges.Set
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			set.Add(ranges.Range{Off: int64(i), Len: 1})
		}
	}
	return &set
}

func isZero(p []byte, where *ranges.Set) bool {
	for r := range where.All() {
		for i := r.Off; i < r.End(); i++ {
			if i >= int64(len(p)) || p[i] != 0 {
				return false
			}
		}
	}
	return true
}

// listed is the ranges of the set, for people.
func listed(set *ranges.Set) string { return strings.Trim(set.String(), "{}") }

// sameBytes reports whether the rows in the state cover exactly the set.
func sameBytes(rows []ledger.Row, set *ranges.Set, state ledger.State) bool {
	var held ranges.Set
	for _, r := range rows {
		if r.State == state {
			held.Add(r.Range)
		}
	}
	return held.String() == set.String()
}

// states is how many bytes are in which state, such as "512 bytes lost".
func states(rows []ledger.Row) string {
	var parts []string
	for _, state := range []ledger.State{ledger.Lost, ledger.Reinitialized, ledger.Overwritten, ledger.Healed} {
		bytes := int64(0)
		for _, r := range rows {
			if r.State == state {
				bytes += r.Len
			}
		}
		if bytes > 0 {
			parts = append(parts, fmt.Sprintf("%d bytes %s", bytes, state))
		}
	}
	return strings.Join(parts, ", ")
}
