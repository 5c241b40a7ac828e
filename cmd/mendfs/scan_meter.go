package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mendfs/mendfs/cmd/mendfs/scan"
)

// meter tells how far a scan is: a bar that is drawn anew on a terminal, now and
// then a line elsewhere.
type meter struct {
	w     io.Writer
	bar   bool
	total int64 // bytes; 0: not known
	began time.Time
	first int64 // bytes that an earlier scan had read
	last  time.Time
	told  scan.Progress
}

const (
	drawEvery = 200 * time.Millisecond
	lineEvery = 10 * time.Second
	barWidth  = 30
)

// newMeter asks for the size of all only where it is shown.
func newMeter(w io.Writer, terminal bool, size func() (int64, error)) *meter {
	m := &meter{w: w, bar: terminal, began: time.Now(), last: time.Now(), first: -1}
	if terminal {
		m.total, _ = size() // without it the bar has no end
	}
	return m
}

// at is called often.
func (m *meter) at(p scan.Progress) {
	if m.first < 0 {
		m.first = p.Bytes
	}
	m.told = p
	every := lineEvery
	if m.bar {
		every = drawEvery
	}
	if now := time.Now(); now.Sub(m.last) >= every {
		m.last = now
		m.tell("\r", "\x1b[K")
	}
}

// end tells the outcome.
func (m *meter) end() { m.tell("\r", "\x1b[K\n") }

func (m *meter) tell(begin, end string) {
	text := m.text()
	if !m.bar {
		begin, end = "mendfs scan: ", "\n"
	} else if m.total > 0 {
		done := int(min(m.told.Bytes, m.total) * barWidth / m.total)
		text = fmt.Sprintf("[%s%s] %3d%% %s", strings.Repeat("#", done), strings.Repeat(" ", barWidth-done), min(m.told.Bytes, m.total)*100/m.total, text)
	}
	fmt.Fprint(m.w, begin+text+end) // talk: nobody depends on it
}

func (m *meter) text() string {
	text := fmt.Sprintf("%s read in %s", bytesText(m.told.Bytes), count(int(m.told.Files), "file"))
	if took := time.Since(m.began).Seconds(); took >= 1 {
		text += fmt.Sprintf(", %s/s", bytesText(int64(float64(m.told.Bytes-max(m.first, 0))/took)))
	}
	if m.told.Bad > 0 {
		text += ", " + bytesText(m.told.Bad) + " can't be read"
	}
	return text
}

// bytesText is a number of bytes in the largest unit that fits.
func bytesText(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return count(int(n), "byte")
}
