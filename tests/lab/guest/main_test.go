//go:build lab

package guest

import (
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
