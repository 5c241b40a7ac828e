package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// factsFile is what is written down for the series.
func (l *lab) factsFile() string {
	return filepath.Join("tests", "lab", "testdata", l.series+".txt")
}

func (l *lab) writeFacts(facts []string) error {
	return os.WriteFile(l.factsFile(), []byte(strings.Join(facts, "\n")+"\n"), 0o644)
}

// compare holds the guest's facts against those written down for the series,
// line by line.
func (l *lab) compare(facts []string) error {
	text, err := os.ReadFile(l.factsFile())
	if err != nil {
		return err
	}
	want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(facts) == 0 {
		return errors.New("the guest told no facts")
	}
	differ := 0
	for _, line := range want {
		if !slices.Contains(facts, line) {
			differ++
			fmt.Println("- " + line)
		}
	}
	for _, line := range facts {
		if !slices.Contains(want, line) {
			differ++
			fmt.Println("+ " + line)
		}
	}
	if differ > 0 {
		return fmt.Errorf("%d lines differ from %s; -accept writes them down as they are now", differ, l.factsFile())
	}
	return nil
}
