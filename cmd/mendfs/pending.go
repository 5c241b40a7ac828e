package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ranges"
)

func printPending(pending []control.Pending, asJSON bool, stdout, stderr io.Writer) error {
	var err error
	switch {
	case asJSON:
		err = printJSON(stdout, "pending", list(pending))
	case len(pending) == 0:
		fmt.Fprintln(stderr, "no repair is pending")
	default:
		if err = printTable(stdout, pendingTable(pending)); err == nil {
			printNext(stderr, pending)
		}
	}
	if err == nil && len(pending) > 0 {
		return outcome(exitLossLeft)
	}
	return err
}

func pendingTable(pending []control.Pending) [][]string {
	table := [][]string{{"ID", "RANGE", "STATE", "SINCE", "IMAGE", "PATH"}}
	for _, p := range pending {
		id, since := "-", "-"
		if p.ID != 0 {
			id = fmt.Sprint(p.ID)
		}
		if !p.Time.IsZero() {
			since = p.Time.UTC().Format(time.RFC3339)
		}
		table = append(table, []string{id, p.Range.String(), string(p.Why), since, imageText(p), quote(p.Name())})
	}
	return table
}

func imageText(p control.Pending) string {
	switch {
	case p.Unread != "":
		return "unreadable"
	case len(p.Image) == 0:
		return "none"
	}
	return fmt.Sprintf("%d bytes, %d missing", len(p.Image), total(p.Missing))
}

func total(rs []ranges.Range) (n int64) {
	for _, r := range rs {
		n += r.Len
	}
	return n
}

// printNext says for each state in the table what to do about it.
func printNext(w io.Writer, pending []control.Pending) {
	var said []control.Why
	for _, p := range pending {
		if p.Next != "" && !slices.Contains(said, p.Why) {
			said = append(said, p.Why)
			fmt.Fprintf(w, "%s (%s): %s\n", p.Why, meaning[p.Why], control.Printable(p.Next))
		}
	}
}

var meaning = map[control.Why]string{
	control.UnderWay:    "the mount is at it",
	control.Interrupted: "a crash came between",
	control.Conflict:    "after a crash there was other data in the page, which stays; the image is kept",
	control.Refused:     "the medium does not take the page; the image is kept",
}
