package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/ranges"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "007": 7,
		"1k": 1 << 10, "1K": 1 << 10, "1Ki": 1 << 10, "2M": 2 << 20, "2Mi": 2 << 20, "3G": 3 << 30, "3Gi": 3 << 30,
		"9223372036854775807": math.MaxInt64, "8589934591G": 8589934591 << 30,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "-1", "+1", "k", "1T", "1kB", "1 k", " 1", "1_000", "0x10", "1.5k", "1e3", "١",
		"9223372036854775808", "8589934592G", "99999999999999999999k",
	} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		}
	}
}

func TestParseRange(t *testing.T) {
	for text, want := range map[string]ranges.Range{
		"0+1": {Off: 0, Len: 1}, "4096+64": {Off: 4096, Len: 64}, "80k+1M": {Off: 81920, Len: 1 << 20},
		"9223372036854775806+1": {Off: math.MaxInt64 - 1, Len: 1},
	} {
		if got, err := ParseRange(text); err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		"": "not a range", "4096": "not a range", "+": "offset", "1+": "length", "+1": "offset",
		"-1": "not a range", "-1+4": "offset", "1+-4": "length", "1+2+3": "length", "4096+0": "is empty",
		"9223372036854775807+1": "beyond", "9223372036854775808+1": "too large", "1+9223372036854775807": "beyond",
		"8G+8589934591G": "beyond", "a+b": "offset",
	} {
		if got, err := ParseRange(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, %v; want an error with %q", text, got, err, says)
		}
	}
}

// TestParseRangeRoundTrip holds for any range that there can be.
func TestParseRangeRoundTrip(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 10_000 {
		off := rng.Int64() >> rng.IntN(63)
		want := ranges.Range{Off: off, Len: 1 + rng.Int64N(math.MaxInt64-off)}
		got, err := ParseRange(fmt.Sprintf("%d+%d", want.Off, want.Len))
		if err != nil || got != want {
			t.Fatalf("%v: got %v, %v", want, got, err)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, text := range []string{"4096+64", "80k+1Mi", "-1+1", "1+", "9223372036854775807+1", "+", "1G+8589934591G"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRange(text)
		if err != nil {
			return
		}
		if r.Off < 0 || r.Len <= 0 || r.End() < r.Off {
			t.Errorf("%q was taken for %v", text, r)
		}
	})
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"15m": now.Add(-15 * time.Minute), "0s": now, "2h30m": now.Add(-150 * time.Minute),
		"2026-11-21T03:04:05Z":        time.Date(2026, 11, 21, 3, 4, 5, 0, time.UTC),
		"2026-11-21T03:04:05.5+01:00": time.Date(2026, 11, 21, 2, 4, 5, 5e8, time.UTC),
	} {
		if got, err := ParseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-5m", "yesterday", "15", "2026-11-21", "03:04"} {
		if got, err := ParseSince(text, now); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}
