package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestManPage holds docs/mendfs.8 to the verbs and flags that there are.
func TestManPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/mendfs.8")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(text), `\-`, "-")
	flags := map[string]bool{"--help": true, "--version": true}
	for _, verb := range newRoot().Commands() {
		if verb.Hidden || verb.Name() == "help" || verb.Name() == "completion" {
			continue
		}
		if !strings.Contains(page, ".B mendfs "+verb.Name()) {
			t.Errorf("the verb %s is not in the man page", verb.Name())
		}
		verb.Flags().VisitAll(func(f *pflag.Flag) {
			flags["--"+f.Name] = true
			if !f.Hidden && f.Name != "help" && !strings.Contains(page, "--"+f.Name) {
				t.Errorf("the flag --%s of %s is not in the man page", f.Name, verb.Name())
			}
		})
	}
	for _, flag := range regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(page, -1) {
		if !flags[flag] {
			t.Errorf("the man page has %s, which no verb has", flag)
		}
	}
}
