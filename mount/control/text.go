package control

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable is text with everything that a terminal might obey written out, as in
// a Go string.
func Printable(text string) string {
	if utf8.ValidString(text) && strings.IndexFunc(text, IsControl) < 0 {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// IsControl reports whether r is nothing that is to be seen.
func IsControl(r rune) bool { return !unicode.IsPrint(r) }
