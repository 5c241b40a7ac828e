package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// ParseSize reads a number of bytes: digits, and k, M, G or Ki, Mi, Gi for
// 1024, 1024² and 1024³ of them. It never returns a negative number.
func ParseSize(text string) (int64, error) {
	digits, unit := text, ""
	if i := strings.IndexFunc(text, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits, unit = text[:i], text[i:]
	}
	if digits == "" {
		return 0, fmt.Errorf("%q is not a size: want digits, and k, M or G behind them for more", text)
	}
	factor, ok := unitFactor(unit)
	if !ok {
		return 0, fmt.Errorf("%q is not a size: the units are k, M, G, Ki, Mi and Gi", text)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64/factor {
		return 0, fmt.Errorf("%q is too large for a size", text)
	}
	return n * factor, nil
}

func unitFactor(unit string) (int64, bool) {
	switch unit {
	case "":
		return 1, true
	case "k", "K", "Ki":
		return 1 << 10, true
	case "M", "Mi":
		return 1 << 20, true
	case "G", "Gi":
		return 1 << 30, true
	}
	return 0, false
}

// ParseRange reads OFF+LEN, two sizes. The range is not empty, and its end is
// a valid offset.
func ParseRange(text string) (ranges.Range, error) {
	off, length, ok := strings.Cut(text, "+")
	if !ok {
		return ranges.Range{}, fmt.Errorf("%q is not a range: want OFF+LEN, such as 4096+64", text)
	}
	var r ranges.Range
	var err error
	if r.Off, err = ParseSize(off); err != nil {
		return ranges.Range{}, fmt.Errorf("range %q: offset: %w", text, err)
	}
	if r.Len, err = ParseSize(length); err != nil {
		return ranges.Range{}, fmt.Errorf("range %q: length: %w", text, err)
	}
	switch {
	case r.Len == 0:
		return ranges.Range{}, fmt.Errorf("range %q is empty", text)
	case r.Off > math.MaxInt64-r.Len:
		return ranges.Range{}, fmt.Errorf("range %q ends beyond the largest possible offset", text)
	}
	return r, nil
}

// ParseSince reads a point in time: an RFC 3339 time, or how long before now,
// such as 90s, 15m, 2h.
func ParseSince(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at, nil
	}
	return time.Time{}, fmt.Errorf("%q is no time: want 2026-11-21T03:04:05Z, or how long ago, such as 15m or 2h", text)
}
