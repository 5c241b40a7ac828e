package main

import "testing"

// TestEmptyMountFlags: a variable that a script forgot to set is no default.
func TestEmptyMountFlags(t *testing.T) {
	for _, name := range []string{"state", "semantics", "simulate", "event-log"} {
		t.Run(name, func(t *testing.T) {
			refused(t, exitUsage, "--"+name+" is empty", "mount", "--"+name, "", t.TempDir())
		})
	}
}
