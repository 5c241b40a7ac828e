// Package coherence shows who sees whose changes on a mount beside its backing
// directory: changes made in the backing are seen through the mount, and changes through
// the mount by several processes, with write(2) and mappings, are never lost,
// nor do they cost the page cache anything.
package coherence

import (
	"fmt"
	"os"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page = harness.Page
	line = harness.Line
)

const rivalMark = "MENDFS_TEST_COHERENCE_RIVAL"

// TestMain is one of the processes of TestRivals where the environment says so.
func TestMain(m *testing.M) {
	text := os.Getenv(rivalMark)
	if text == "" {
		harness.Main(m)
		return
	}
	if err := playRival(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
