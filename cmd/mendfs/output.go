package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/mendfs/mendfs/mount/control"
)

// quote is a path or name as people may see it on a terminal: unchanged, or,
// if it is empty, has control characters, is not UTF-8 or could be read as a
// quoted one, as a quoted Go string.
func quote(name string) string {
	if name != "" && name[0] != '"' && name == control.Printable(name) {
		return name
	}
	return strconv.Quote(name)
}

// shellWord is a word as a shell takes it.
func shellWord(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,:@%="
	if text != "" && strings.Trim(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// printTable writes rows, the first of them the headings, in aligned columns.
func printTable(w io.Writer, rows [][]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i := range row {
			row[i] = control.Printable(row[i]) // some of it comes from other users' processes
		}
		if _, err := fmt.Fprintln(table, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return table.Flush()
}

// printJSON writes {"version":1,"<noun>":items} as one line.
func printJSON(w io.Writer, noun string, items any) error {
	list, err := json.Marshal(items)
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "{\"version\":1,%q:%s}\n", noun, list)
	return err
}

// count is "1 intent", "2 intents".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
